"""compose.yaml starts it hardened, without a key, and healthy."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.image.box import WAIT_S, docker, fresh_name

ROOT = Path(__file__).parents[2]
Compose = Callable[..., str]


@pytest.fixture
def compose(image: str) -> Iterator[Compose]:
    """Run compose in a project of its own, on a port that is free, with an environment that holds no settings of ours."""
    name = fresh_name()
    environ = {k: v for k, v in os.environ.items() if k.startswith("DOCKER_") or k in {"PATH", "HOME"}}
    environ |= {"APPLIANCE_IMAGE": image, "PUBLISH": "127.0.0.1:0"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            ["docker", "compose", "-p", name, "-f", str(ROOT / "compose.yaml"), *arguments],
            env=environ,
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    run("down", "-v", "--timeout", "30")


def test_up_without_a_key_is_healthy_and_hardened(compose: Compose) -> None:
    compose("up", "-d", "--no-build", "--wait")
    box = compose("ps", "-q", "appliance").strip()
    host = json.loads(docker("inspect", box).stdout)[0]["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert sorted(word.removeprefix("CAP_") for word in host["CapAdd"]) == ["NET_ADMIN", "SETGID", "SETUID"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert set(host["Tmpfs"]) == {"/run", "/tmp"}
    assert host["PidsLimit"] == 512
    assert host["Memory"] == 1 << 30
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert {binding["HostIp"] for bindings in host["PortBindings"].values() for binding in bindings} == {
        "127.0.0.1"
    }
    state = json.loads(
        docker(
            "exec",
            box,
            "python3",
            "-c",
            "import urllib.request as r; print(r.urlopen('http://127.0.0.1:14444/healthz').read().decode())",
        ).stdout
    )
    assert state["ok"] is True
    assert state["demo"] is True
    assert state["nat"]["outcome"] == "rule"


def test_the_published_port_is_of_this_machine_alone_by_default(compose: Compose) -> None:
    environ = {k: v for k, v in os.environ.items() if k.startswith("DOCKER_") or k in {"PATH", "HOME"}}
    done = subprocess.run(
        ["docker", "compose", "-f", str(ROOT / "compose.yaml"), "config", "--format", "json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    port = json.loads(done.stdout)["services"]["appliance"]["ports"][0]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "14000", 14000)


def config(*profiles: str, more: str = "", **variables: str) -> dict[str, Any]:
    """What compose makes of the file with these profiles and variables (system C's `.env` names among them).

    `more` is a file that is given beside it.
    """
    environ = {
        k: v for k, v in os.environ.items() if k.startswith("DOCKER_") or k in {"PATH", "HOME"}
    } | variables
    words = ["-f", str(ROOT / more)] if more else []
    words += [word for profile in profiles for word in ("--profile", profile)]
    done = subprocess.run(
        ["docker", "compose", "-f", str(ROOT / "compose.yaml"), *words, "config", "--format", "json"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout)["services"])


def test_open_webui_of_the_examples_joins_the_appliance() -> None:
    services = config(more="examples/open_webui.compose.yaml", OPEN_WEBUI_KEY="key-of-open-webui")
    assert set(services) == {"appliance", "open-webui"}
    [port] = services["open-webui"]["ports"]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "3000", 8080)
    environment = services["open-webui"]["environment"]
    assert environment["OPENAI_API_KEY"] == environment["RAG_OPENAI_API_KEY"] == "key-of-open-webui"


def test_engines_and_the_edge_come_with_their_profile_only() -> None:
    assert set(config()) == {"appliance"}
    assert set(config("vllm")) == {"appliance", "vllm", "edge"}
    assert set(config("hosted")) == {"appliance", "edge"}
    assert set(config("models")) == {"appliance", "llama-server"}
    services = config(
        "engines",
        MODEL_DIR="/data/models",
        MODEL="qwen.gguf",
        SERVED_MODEL_NAME="qwen",
        PORT="9000",
        EDGE_API_KEY="a-key-of-twelve",
        BACKENDS="http://llm-1:8080,http://llm-2:8080",
        MAX_ALLOWED_REQUEST_QUEUE="6",
    )
    assert set(services) == {"appliance", "llm-1", "llm-2", "edge"}
    for name in ("llm-1", "llm-2"):
        command = " ".join(services[name]["command"])
        assert "/models/qwen.gguf --alias qwen" in command  # else the file's name
        assert [(v["source"], v["target"], v["read_only"]) for v in services[name]["volumes"]] == [
            ("/data/models", "/models", True)
        ]
        assert "ports" not in services[name]  # only the appliance speaks with them
    assert [(p["host_ip"], p["published"], p["target"]) for p in services["edge"]["ports"]] == [
        ("127.0.0.1", "9000", 80)
    ]
    environ = services["appliance"]["environment"]
    assert environ["BACKENDS"] == "http://llm-1:8080,http://llm-2:8080"
    assert environ["MAX_ALLOWED_REQUEST_QUEUE"] == "6"
    assert (
        environ["APPLIANCE_API_KEYS"] == "a-key-of-twelve"
    )  # a neighbour in the network cannot go round the edge
