"""A compose project of a test's own: its services, and requests to the ports that they publish."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from appliance.base import jsons
from tests.image.box import ASK, WAIT_S, Reply, docker, fresh_name

ROOT = Path(__file__).parents[2]


def clean_environ(**more: str) -> dict[str, str]:
    """Return an environment that holds no settings of ours."""
    return {k: v for k, v in os.environ.items() if k.startswith("DOCKER_") or k in {"PATH", "HOME"}} | more


class Project:
    """One compose project. `close` removes it with its volumes."""

    def __init__(self, image: str, files: list[Path], *profiles: str, **variables: str) -> None:
        self.image = image
        self.name = fresh_name()
        self.environ = clean_environ(PUBLISH="127.0.0.1:0", PORT="0", **variables)
        self._words = [word for file in files for word in ("-f", str(file))]
        self._words += [word for profile in profiles for word in ("--profile", profile)]

    def compose(self, *arguments: str, is_checked: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of compose; a failure is told with all that it said."""
        done = subprocess.run(
            ["docker", "compose", "-p", self.name, *self._words, *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=3 * WAIT_S,
            check=False,
        )
        assert done.returncode == 0 or not is_checked, done.stdout + done.stderr + self._logs()
        return done

    def _logs(self) -> str:
        return self.compose("logs", "--no-color", is_checked=False).stdout[-8000:]

    def up(self, *arguments: str) -> "Project":
        """Start it, and wait until every service is healthy or has done its work."""
        self.compose("up", "-d", "--wait", *(arguments or ("--no-build",)))
        return self

    def close(self) -> None:
        self.compose("down", "-v", "--timeout", "30", is_checked=False)

    def container(self, service: str) -> str:
        return self.compose("ps", "-a", "-q", service).stdout.strip()

    def environ_of(self, service: str) -> dict[str, str]:
        """Return the variables of a service's container."""
        config = json.loads(docker("inspect", self.container(service)).stdout)[0]["Config"]
        return dict(line.split("=", 1) for line in config["Env"] if "=" in line)

    def wait_for(
        self, service: str, port: int, path: str, wanted: Callable[[Reply], bool], key: str = ""
    ) -> Reply:
        """Ask until the answer is as wanted: a container without a health check is up before it listens."""
        ends = time.monotonic() + WAIT_S
        while True:
            try:
                reply = self.ask(service, port, "GET", path, key=key)
                if wanted(reply):
                    return reply
                last = str(reply)
            except AssertionError as exc:
                last = str(exc)
            assert time.monotonic() < ends, last + self._logs()
            time.sleep(0.5)

    def ask(self, service: str, port: int, method: str, path: str, body: Any = None, key: str = "") -> Reply:
        """Send one request to the port of the engine's machine at which the service's port is published."""
        host, _, published = self.compose("port", service, str(port)).stdout.strip().rpartition(":")
        headers = {"authorization": f"Bearer {key}"} if key else {}
        done = docker(
            *("run", "--rm", "-i", "--network", "host", "--entrypoint", "python3", self.image),
            *("-c", ASK, host, published, method, path, "30", json.dumps(headers)),
            text="" if body is None else jsons.dumps_text(body),
        )
        return Reply(**json.loads(done.stdout))
