"""compose.yaml starts it hardened, without a key, and healthy."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

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
        done = subprocess.run(["docker", "compose", "-p", name, "-f", str(ROOT / "compose.yaml"), *arguments], env=environ,
                              capture_output=True, text=True, timeout=WAIT_S, check=False)
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
    assert {binding["HostIp"] for bindings in host["PortBindings"].values() for binding in bindings} == {"127.0.0.1"}
    state = json.loads(docker("exec", box, "python3", "-c",
                              "import urllib.request as r; print(r.urlopen('http://127.0.0.1:14444/healthz').read().decode())").stdout)
    assert state["ok"] is True
    assert state["demo"] is True
    assert state["nat"]["outcome"] == "rule"


def test_the_published_port_is_of_this_machine_alone_by_default(compose: Compose) -> None:
    environ = {k: v for k, v in os.environ.items() if k.startswith("DOCKER_") or k in {"PATH", "HOME"}}
    done = subprocess.run(["docker", "compose", "-f", str(ROOT / "compose.yaml"), "config", "--format", "json"], env=environ,
                          capture_output=True, text=True, timeout=WAIT_S, check=True)
    port = json.loads(done.stdout)["services"]["appliance"]["ports"][0]
    assert (port["host_ip"], port["published"], port["target"]) == ("127.0.0.1", "14000", 14000)
