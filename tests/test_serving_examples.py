"""The examples of serving: manifests that fit their schema, and commands that the server understands."""

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.main import get_command

from nestor.cli import app
from nestor.cli.parse import seconds
from nestor.serving.guard import Limits

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCHEMA = json.loads((Path(__file__).parent / "kserve_schema.json").read_text())


def manifests() -> list[Any]:
    return list(yaml.safe_load_all((EXAMPLES / "kserve.yaml").read_text()))


def options(arguments: list[str]) -> dict[str, Any]:
    """What `nestor serve` makes of arguments, without running it."""
    serve: Any = get_command(app).commands["serve"]  # pyright: ignore[reportAttributeAccessIssue]
    with serve.make_context("serve", [*arguments]) as context:
        return context.params


def test_both_manifests_fit_their_schema_and_each_other():
    runtime, service = manifests()
    for each in (runtime, service):
        jsonschema.validate(each, SCHEMA, cls=jsonschema.Draft202012Validator)
    model, formats = service["spec"]["predictor"]["model"], runtime["spec"]["supportedModelFormats"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"] in [{"name": each["name"], "version": each["version"]} for each in formats]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, "spec", "containers", 0, "name"), "server"),
        ((0, "spec", "containers", 0, "image"), ""),
        ((0, "spec", "containers", 0, "securityContext", "runAsNonRoot"), "yes"),
        ((0, "spec", "containers", 0, "resources", "limits", "memory"), "2 GB"),
        ((0, "spec", "protocolVersions"), ["v3"]),
        ((0, "apiVersion"), "serving.kserve.io/v1beta1"),
        ((1, "spec", "predictor", "minReplica"), 1),
        ((1, "spec", "predictor", "model", "modelFormat"), {}),
        ((1, "metadata", "name"), "Elastic_1"),
    ],
)
def test_the_schema_refuses_what_is_wrong(path: tuple, value: Any):
    changed = deepcopy(manifests())
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed[path[0]], SCHEMA, cls=jsonschema.Draft202012Validator)


def test_the_runtime_starts_a_server_that_it_can_watch():
    container = manifests()[0]["spec"]["containers"][0]
    found = options(container["args"])
    assert str(found["model"]) == "/mnt/models"
    assert found["host"] == "0.0.0.0"
    assert seconds(found["p95"], "p95") == 0.15
    [port] = container["ports"]
    probes = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
    assert {found["port"], port["containerPort"], *(each["port"] for each in probes)} == {8080}
    assert [each["path"] for each in probes] == ["/v2/health/live", "/v2/health/live", "/v2/health/ready"]
    assert container["securityContext"]["runAsNonRoot"]


def test_the_container_runs_as_a_numbered_user_and_gets_signals_itself():
    lines = (EXAMPLES / "Containerfile").read_text().splitlines()
    said = [line.split(maxsplit=1) for line in lines if line and line[0].isupper()]
    last = dict(said)
    user, _, _ = last["USER"].partition(":")
    assert int(user) == manifests()[0]["spec"]["containers"][0]["securityContext"]["runAsUser"] != 0
    assert [kind for kind, _ in said].index("USER") > max(i for i, (kind, _) in enumerate(said) if kind == "RUN")
    assert json.loads(last["ENTRYPOINT"]) == ["nestor", "serve"]
    copied = [name for kind, names in said if kind == "COPY" for name in names.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)


def test_the_proxy_and_the_text_say_what_the_server_does():
    proxy, text = ((EXAMPLES / name).read_text() for name in ("nginx.conf", "serving.md"))
    defaults = options(["elastic/"])
    assert re.findall(r"client_max_body_size\s+(\d+)m", proxy) == [str(defaults["max_bytes"] // 1_000_000)]
    limit = f"{Limits().seconds:g}s"
    assert re.findall(r"client_(?:header|body)_timeout\s+(\w+)", proxy) == [limit, limit]
    assert proxy.count("{") == proxy.count("}")
    for name in re.findall(r"\]\((\w+\.?\w*)\)", text):
        assert (EXAMPLES / name).exists()
    for flag in re.findall(r"`(--[a-z-]+)`", text):
        assert any(flag in option.opts for option in get_command(app).commands["serve"].params), flag  # pyright: ignore[reportAttributeAccessIssue]
