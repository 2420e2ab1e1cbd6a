"""The OpenAPI document is true: a tool that nobody here wrote asks what it allows, and what it forbids."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import schemathesis
from asking import infer, network, png
from running import running
from test_serving_engine import PATIENT, WAIT, pictures

from nestor.serving.guard import Keys
from nestor.serving.server import Server

SECRET = "s3cret-of-ann"
HEADERS = {"x-api-key": SECRET}
# What a schema cannot say is told with 400: that a floor lies below its ceiling, that data has as many numbers as its
# shape, that bytes are a picture.
CONFIG = f"""
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404"]
[auth.openapi.bearer]
bearer = "{SECRET}"
[auth.openapi.key]
api_key = "{SECRET}"
"""
# Pictures, so that not every body is refused for being none.
HOOKS = f"""
import schemathesis
from hypothesis import strategies as st
schemathesis.openapi.media_type("image/*", st.just({png()!r}))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(network, PATIENT, batch=4, port=0, keys=Keys({"ann": SECRET}))
    with running(server):
        yield server


def test_what_is_allowed_is_answered_and_what_is_forbidden_is_refused(server: Server, tmp_path: Path):
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    (tmp_path / "hooks.py").write_text(HOOKS)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"]
    described = httpx2.get(f"{server.address}/openapi.json", headers=HEADERS)
    (tmp_path / "openapi.json").write_bytes(described.content)
    bounds = ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--mode", "all", "--max-examples", "10"]
    steady = ["--seed", "0", "--generation-deterministic", "--no-shrink", "--warnings", "off"]
    done = subprocess.run(
        [*command, "openapi.json", "--url", server.address, *bounds, *steady, "--no-color"],
        cwd=tmp_path,
        env={"SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(tmp_path), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=20 * WAIT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [(asked, good)] = re.findall(r"(\d+) generated, (\d+) passed", done.stdout)
    assert asked == good
    assert int(good) > 100


def test_good_answers_are_as_the_document_says(server: Server):
    document = schemathesis.openapi.from_url(f"{server.address}/openapi.json", headers=HEADERS)
    asked = {
        ("/predict", "/predict?routing=true"): {"content": png()},
        ("/v2/models/{name}/infer", "/v2/models/elastic/infer"): {"content": json.dumps(infer(pictures(2)))},
    }
    with httpx2.Client(base_url=server.address, timeout=WAIT, headers=HEADERS) as client:
        for (route, path), body in asked.items():
            answer = client.post(path, **body)
            assert answer.status_code == 200
            document[route]["POST"].validate_response(answer)
