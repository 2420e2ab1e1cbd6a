"""The examples of serving: manifests that fit their schema, and commands that the server understands."""

import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from asking import network
from packaging.requirements import Requirement
from running import running
from test_serving_engine import PATIENT, WAIT
from typer.main import get_command

from nestor.cli import app
from nestor.cli.parse import seconds
from nestor.serving.guard import Limits
from nestor.serving.ray import Settings
from nestor.serving.remote import DYING
from nestor.serving.server import Server

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
SCHEMA = json.loads((Path(__file__).parent / "kserve_schema.json").read_text())
# Of the clients of KServe and Kubernetes themselves, so that it is not only our own schema that is fitted.
MODELS = json.loads((Path(__file__).parent / "kserve_models.json").read_text())["models"]
PLAIN = {"str": "string", "int": "integer", "bool": "boolean"}


def manifests() -> list[Any]:
    return list(yaml.safe_load_all((EXAMPLES / "kserve.yaml").read_text()))


def model(kind: str) -> dict[str, Any]:
    """The schema of a kind as its client knows it; a field whose own model is not kept may not be used."""
    found = {name: {"type": "object", "additionalProperties": False} | _fields(each) for name, each in MODELS.items()}
    return {"$ref": f"#/$defs/{kind}", "$defs": found}


def _fields(model: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {name: _typed(each) for name, each in model["fields"].items()}, "required": model["required"]}


def _typed(name: str) -> Any:
    if name.startswith("list["):
        return {"type": "array", "items": _typed(name.removeprefix("list[").removesuffix("]"))}
    if name.startswith("dict("):
        _, _, of = name.removesuffix(")").partition(", ")
        return {"type": "object", "additionalProperties": _typed(of)}
    if name in PLAIN:
        return {"type": PLAIN[name]}
    return {"$ref": f"#/$defs/{name}"} if name in MODELS else name == "object"


def options(arguments: list[str]) -> dict[str, Any]:
    """What `nestor serve` makes of arguments, without running it."""
    serve: Any = get_command(app).commands["serve"]  # pyright: ignore[reportAttributeAccessIssue]
    with serve.make_context("serve", [*arguments]) as context:
        return context.params


def test_both_manifests_fit_their_schema_and_each_other():
    runtime, service = manifests()
    for each in (runtime, service):
        jsonschema.validate(each, SCHEMA, cls=jsonschema.Draft202012Validator)
    for each, kind in ((runtime, "V1alpha1ServingRuntime"), (service, "V1beta1InferenceService")):
        jsonschema.validate(each, model(kind), cls=jsonschema.Draft202012Validator)
    served, formats = service["spec"]["predictor"]["model"], runtime["spec"]["supportedModelFormats"]
    assert served["runtime"] == runtime["metadata"]["name"]
    assert served["modelFormat"] in [{"name": each["name"], "version": each["version"]} for each in formats]
    assert served["protocolVersion"] in runtime["spec"]["protocolVersions"]


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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0, "spec", "container"), []),
        ((0, "spec", "containers", 0, "lifecycle", "preStop", "run"), {}),
        ((0, "spec", "containers", 0, "ports", 0), {"protocol": "TCP"}),
        ((0, "spec", "multiModel"), "no"),
        ((1, "spec", "predictor", "minReplica"), 1),
        ((1, "spec", "predictor", "terminationGracePeriodSeconds"), "50s"),
        ((1, "spec", "predictor", "model", "modelFormat"), None),
        ((1, "spec", "predictor", "volumes"), [{"name": "more"}]),
    ],
)
def test_the_clients_own_models_refuse_what_is_wrong(path: tuple, value: Any):
    changed = deepcopy(manifests())
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    kind = ("V1alpha1ServingRuntime", "V1beta1InferenceService")[path[0]]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed[path[0]], model(kind), cls=jsonschema.Draft202012Validator)


def test_a_replica_has_the_time_that_stopping_takes():
    runtime, service = manifests()
    command = runtime["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert command[0] == "sleep"
    stopping = inspect.signature(Server).parameters["patience"].default + DYING
    assert service["spec"]["predictor"]["terminationGracePeriodSeconds"] >= int(command[1]) + stopping + 5
    text = (EXAMPLES / "serving.md").read_text()
    assert f"{stopping - DYING:g} s" in text


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
    assert re.fullmatch(r"\S+:\d+\.\d+\.\d+-\S+", last["FROM"])
    copied = [name for kind, names in said if kind == "COPY" for name in names.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)


def test_the_container_has_one_version_of_each_package_that_the_server_needs():
    lines = (EXAMPLES / "pins.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["serve"]]
    for each in map(Requirement, [*wanted, *project["build-system"]["requires"]]):
        assert each.specifier.contains(pins[each.name.replace("_", "-")]), each
    # The version that everything else is tested with.
    assert f"torch=={pins['torch']}" in (ROOT / "constraints.txt").read_text().splitlines()
    said = (EXAMPLES / "Containerfile").read_text()
    assert "PIP_CONSTRAINT=/tmp/pins.txt" in said


def test_the_container_asks_the_server_whether_it_lives():
    [said] = re.findall(r"HEALTHCHECK .*\\\n\s+CMD (\[.*\])", (EXAMPLES / "Containerfile").read_text())
    python, flag, code = json.loads(said)
    assert (python, flag) == ("python", "-c")
    server = Server(network, PATIENT, batch=4, port=0)
    command = [sys.executable, flag, code.replace("http://127.0.0.1:8080", server.address)]
    with running(server):
        assert subprocess.run(command, timeout=WAIT).returncode == 0
    assert subprocess.run(command, timeout=WAIT, capture_output=True).returncode != 0


def test_every_command_of_the_text_is_one_that_is_understood():
    """Those of the how-to page are run, by `test_examples`."""
    fences = re.findall(r"^```\w*\n(.*?)^```$", (EXAMPLES / "serving.md").read_text(), re.M | re.S)
    container = re.sub(r" \\\n#", "", (EXAMPLES / "Containerfile").read_text())
    lines = [line for fence in fences for line in fence.splitlines() if re.match(r"[a-z]+ .*[^{]$", line)]
    lines += re.findall(r"^#   (podman .*)", container, re.M)
    understood = [known(shlex.split(line)) for line in lines]
    assert sorted(understood) == ["curl", "nestor", "pip", "pip", "podman", "podman", "serve"]


def known(words: list[str]) -> str:
    """The program of a command, all of which was understood."""
    match words:
        case ["nestor", "serve", *more]:
            options(more)
        case ["curl", "-H", _, "--data-binary", _, address]:
            assert address.partition("?")[0] == "http://127.0.0.1:8000/predict"
        case ["pip", "install", what]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            assert set(re.findall(r"\w+", what)) - {"nestor"} <= extras.keys()
        case ["serve", "run", "nestor.serving.ray:app", *more]:
            Settings(**dict(each.split("=") for each in more))  # pyright: ignore[reportArgumentType]
        case ["podman", "build", *more]:
            assert (ROOT / more[more.index("-f") + 1]).exists()
        case ["podman", "run", *more]:
            found = options(more[more.index("nestor") + 1 :])
            assert f"127.0.0.1:{found['port']}:{found['port']}" in more
        case _:
            raise AssertionError(f"nobody knows whether this works: {shlex.join(words)}")
    return words[0]


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
