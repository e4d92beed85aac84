"""docs/kubernetes.md: what stands there is valid for Kubernetes, hardened, and names variables and verbs that exist."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from appliance.settings import known_variables
from appliance.sidecar import parse

PAGE = Path(__file__).parents[1] / "docs" / "kubernetes.md"
OBJECTS: list[dict[str, Any]] = [
    one
    for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for one in yaml.safe_load_all(block)
]
CONTAINERS = [
    (one["metadata"]["name"], container)
    for one in OBJECTS
    if one["kind"] == "Deployment"
    for container in one["spec"]["template"]["spec"]["containers"]
]
OURS = [container for _, container in CONTAINERS if container["image"].startswith("appliance")]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("value", OBJECTS, ids=lambda value: f"{value['kind']}-{value['metadata']['name']}")
def test_each_object_is_valid(value: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(value, version, strict=True)


def test_a_misspelt_key_would_be_seen() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            OBJECTS[0] | {"spec": OBJECTS[0]["spec"] | {"replica": 2}}, "1.37", strict=True
        )


@pytest.mark.parametrize("container", OURS, ids=lambda container: container["name"])
def test_ours_run_hardened_and_say_what_they_need(container: dict[str, Any]) -> None:
    assert container["securityContext"] == {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"limits", "requests"} <= set(container["resources"])
    assert {row["name"] for row in container["env"]} - {"POD_NAME"} <= known_variables()


def test_the_sidecars_command_line_is_one() -> None:
    sidecar = next(container for container in OURS if container["name"] == "sidecar")
    words = sidecar["args"]
    assert words[0] == "sidecar"
    options = parse(words[1:])
    assert (options.engine, options.port, options.model) == ("vllm", 9000, "qwen")
    assert sidecar["ports"][0]["containerPort"] == options.port
