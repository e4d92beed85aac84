"""A running container of the image, and the few things that tests do with one. Speaks to the engine through its command line."""

import json
import os
import subprocess
import time
import uuid
from dataclasses import dataclass
from typing import Any

from appliance.base import jsons

HARDENED = [
    "--read-only",
    "--tmpfs",
    "/run",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "--cap-add",
    "NET_ADMIN",
    "--cap-add",
    "SETUID",
    "--cap-add",
    "SETGID",
    "--security-opt",
    "no-new-privileges",
]
BARE = [
    "--read-only",
    "--tmpfs",
    "/run",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
]
WAIT_S = 90  # far more than anything here takes; a test that reaches it has failed

ASK = """
import http.client, json, sys
host, port, method, path, timeout = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], float(sys.argv[5])
more = json.loads(sys.argv[6]) if len(sys.argv) > 6 else {}
body = sys.stdin.buffer.read()
connection = http.client.HTTPConnection(host, port, timeout=timeout)
connection.request(method, path, body or None, ({"content-type": "application/json"} if body else {}) | more)
answer = connection.getresponse()
print(json.dumps({"status": answer.status, "headers": {k.lower(): v for k, v in answer.getheaders()}, "text": answer.read().decode()}))
"""

_PROCESSES = """
import json, os
rows = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        status = dict(line.rstrip().split(":\\t", 1) for line in open(f"/proc/{pid}/status") if ":\\t" in line)
        command = open(f"/proc/{pid}/cmdline").read().split("\\0")[:-1]
    except OSError:
        continue
    rows.append({"pid": int(pid), "command": command, **status})
print(json.dumps(rows))
"""


def docker(
    *arguments: str, is_checked: bool = True, text: str = "", timeout_s: float = WAIT_S
) -> subprocess.CompletedProcess[str]:
    """Run the engine's command; a failure is told with all that it said."""
    done = subprocess.run(
        ["docker", *arguments], input=text, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    if is_checked and done.returncode != 0:
        raise AssertionError(
            f"docker {' '.join(arguments)} → exit {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def fresh_name() -> str:
    """Give a name for a container, volume, project or image that `tests/image/run` finds again, should we be broken off."""
    return f"{os.environ.get('APPLIANCE_TEST_RUN', 'appliance-test')}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class Reply:
    """What an address of the appliance answered."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


class Box:
    """One container. `close` removes it with its unnamed volumes."""

    def __init__(self, image: str, *arguments: str, command: tuple[str, ...] = ()) -> None:
        self.image = image
        self.name = fresh_name()
        docker("run", "-d", "--name", self.name, "--health-interval", "1s", *arguments, image, *command)

    def close(self) -> None:
        docker("rm", "-f", "-v", self.name, is_checked=False)

    def inspect(self) -> dict[str, Any]:
        return dict(json.loads(docker("inspect", self.name).stdout)[0])

    @property
    def exit_code(self) -> int:
        return int(self.inspect()["State"]["ExitCode"])

    def logs(self) -> str:
        done = docker("logs", self.name)
        return done.stdout + done.stderr

    def wait_health(self, wanted: str = "healthy") -> "Box":
        """Wait until the image's own health check says `wanted`."""
        ends = time.monotonic() + WAIT_S
        while time.monotonic() < ends:
            state = self.inspect()["State"]
            if state["Running"] and state["Health"]["Status"] == wanted:
                return self
            if not state["Running"]:
                break
            time.sleep(0.2)
        raise AssertionError(f"the container is not {wanted}: {self.inspect()['State']}\n{self.logs()}")

    def wait_log(self, words: str) -> str:
        """Wait until `words` stand in the log; give the log."""
        ends = time.monotonic() + WAIT_S
        while time.monotonic() < ends:
            text = self.logs()
            if words in text:
                return text
            time.sleep(0.2)
        raise AssertionError(f"{words!r} never came into the log:\n{self.logs()}")

    def run(self, *command: str, text: str = "", is_checked: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as the container's own user."""
        return docker("exec", "-i", self.name, *command, text=text, is_checked=is_checked)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        host: str = "127.0.0.1",
        port: int = 14000,
    ) -> Reply:
        """Send one request from inside the container."""
        text = "" if body is None else jsons.dumps_text(body)
        return Reply(
            **json.loads(
                self.run("python3", "-c", ASK, host, str(port), method, path, "30", text=text).stdout
            )
        )

    def ask_from_outside(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        port: int = 14000,
        patience_s: int = 5,
    ) -> subprocess.CompletedProcess[str]:
        """Send one request from another container of the same network. What is printed is a Reply in JSON."""
        address = next(iter(self.inspect()["NetworkSettings"]["Networks"].values()))["IPAddress"]
        text = "" if body is None else jsons.dumps_text(body)
        return docker(
            "run",
            "--rm",
            "-i",
            "--entrypoint",
            "python3",
            self.image,
            "-c",
            ASK,
            address,
            str(port),
            method,
            path,
            str(patience_s),
            text=text,
            is_checked=False,
        )

    def processes(self) -> list[dict[str, Any]]:
        """Give /proc/*/status of the service's processes, with pid and command: of all that come from process 1.

        What the engine brings in from outside (this very look, and a health check at any moment) has no parent in here.
        """
        rows: list[dict[str, Any]] = json.loads(self.run("python3", "-c", _PROCESSES).stdout)
        outside = {row["pid"] for row in rows if row["PPid"] == "0" and row["pid"] != 1}
        while more := {row["pid"] for row in rows if int(row["PPid"]) in outside} - outside:
            outside |= more
        return [row for row in rows if row["pid"] not in outside]

    def machine_id(self) -> str:
        """Give the machine-id that the appliance itself reports."""
        return str(
            json.loads(self.run("python3", "-m", "appliance", "ctl", "--json", "identity").stdout)[
                "machine_id"
            ]
        )


def chat(words: str, **more: Any) -> dict[str, Any]:
    """Make the body of a chat request."""
    return {"model": "any", "messages": [{"role": "user", "content": words}], **more}


def answer_of(reply: Reply) -> str:
    assert reply.status == 200, reply
    return str(reply.json["choices"][0]["message"]["content"])
