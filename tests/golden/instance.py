"""The appliance in a process of its own, and what is recorded of it.

Nothing of the package is imported: what goes over the wire must hold whatever its modules and classes are called.
"""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.golden.normalise import Normaliser, metrics_page
from tests.golden.wire import Heard, request_bytes, talk

ROOT = Path(__file__).parents[2]
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# Time plays no part in what is recorded: nothing is paced, nothing is told for waiting, nothing is given up.
CALM = {
    "STREAM_DELAY_MS": "0",
    "HEARTBEAT_S": "0",
    "UPSTREAM_TOTAL_TIMEOUT_S": "60",
    "BREAKER_FAILURES": "100",
    "SLOW_START_S": "0",
    "BACKEND_STARTUP_GRACE_S": "60",
    "GPU_MODE": "none",
    "SHUTDOWN_GRACE_S": "2",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], Awaitable[bool] | bool], *, what: str, seconds: float = 60.0) -> None:
    """Wait until something holds. Raises AssertionError."""
    for _ in range(int(seconds / 0.02)):
        holds = condition()
        if holds if isinstance(holds, bool) else await holds:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"it did not come to pass: {what}")


@dataclass
class Instance:
    """One running appliance; `record` collects what it answers."""

    port: int
    control_port: int
    folder: Path
    normaliser: Normaliser
    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    async def ask(
        self,
        method: str,
        target: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        port: int = 0,
        events: int = 0,
        seen: Callable[[bytes], None] | None = None,
    ) -> Heard:
        """Ask, and record nothing."""
        raw = request_bytes(method, target, body=body, headers=headers)
        (heard,) = await talk(port or self.port, raw, methods=(method,), events=events, seen=seen)
        return heard

    async def json(
        self, method: str, target: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        """Ask, and give the JSON of the answer."""
        return json.loads((await self.ask(method, target, body, headers)).body)

    async def note(
        self,
        name: str,
        method: str,
        target: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        port: int = 0,
        events: int = 0,
        seen: Callable[[bytes], None] | None = None,
    ) -> Heard:
        """Ask, and record request and answer under a name."""
        heard = await self.ask(method, target, body, headers, port=port, events=events, seen=seen)
        request: dict[str, Any] = {"line": self.normaliser.text(f"{method} {target}")}
        if body is not None:
            said = body if isinstance(body, str | dict | list) else body.decode("latin-1")
            request["body"] = (
                self.normaliser.value(said)
                if not isinstance(said, str)
                else f"{said[:200]} … {len(said)} bytes"
                if len(said) > 200
                else said
            )
        if headers:
            request["headers"] = headers
        self.put(name, {"request": request, "answer": self.normaliser.answer(heard)})
        return heard

    async def note_raw(
        self, name: str, raw: bytes, *, answers: int = 1, methods: tuple[str, ...] = ()
    ) -> None:
        """Send bytes as they are, and record them with all answers."""
        heard = await talk(self.port, raw, answers=answers, methods=methods)
        said = raw.decode("latin-1")
        self.put(
            name,
            {
                "request": {"bytes": said[:300].split("\r\n"), "size": len(raw)},
                "answers": [self.normaliser.answer(one) for one in heard],
            },
        )

    async def note_metrics(self, name: str = "metrics", *, port: int = 0, target: str = "/metrics") -> None:
        """Record the families of the metrics page, in both formats."""
        for form, headers in (("text", {}), ("openmetrics", {"Accept": OPENMETRICS})):
            heard = await self.ask("GET", target, None, headers, port=port)
            found = self.normaliser.answer(heard)
            page = heard.body.decode()
            self.put(
                f"{name} {form}",
                {
                    **found,
                    "body": metrics_page(page, self.normaliser),
                    "ends_with_eof": page.endswith("# EOF\n"),
                },
            )

    def put(self, name: str, value: Any) -> None:
        assert name not in self.record, f"{name!r} is recorded twice"
        self.record[name] = value

    async def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """Run a verb of the command line beside it; give (exit code, stdout, stderr)."""
        return await run(
            *arguments,
            folder=self.folder,
            CONTROL_ADDRESS=f"127.0.0.1:{self.control_port}",
            PROXY_PORT=str(self.port),
            **variables,
        )


def environ_of(folder: Path) -> dict[str, str]:
    """Give what every process is started with: nothing of this machine's own settings."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "STATE_DIR": str(folder / "state"),
        "MACHINE_ID_PATH": str(folder / "machine-id"),
        "GPU_SPOOF_STATE_DIR": str(folder / "gpu"),
        "NAT_REDIRECT": "off",
        "LOG_FORMAT": "json",
    }


async def run(*arguments: str, folder: Path, **variables: str) -> tuple[int, str, str]:
    """Run `python -m appliance …` to its end; give (exit code, stdout, stderr)."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance",
        *arguments,
        env={**environ_of(folder), **variables},
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@asynccontextmanager
async def serving(
    *,
    known: dict[str, str] | None = None,
    extra_ports: tuple[str, ...] = (),
    files: dict[str, Any] | None = None,
    verb: tuple[str, ...] = ("serve",),
    ready: str = "/healthz",
    **variables: str,
) -> AsyncIterator[Instance]:
    """Run an appliance with these variables while the context is open.

    Takes   known: texts with what stands for them; extra_ports: variables that get a free port; files: name → value, written as JSON
            beforehand; ready: the address that is 200 once it serves; `{folder}` in a variable or file is its own folder, `{PROXY_PORT}` in
            the verb its port
    """
    with tempfile.TemporaryDirectory(prefix="golden-") as made:
        folder = Path(made).resolve()
        (folder / "files").mkdir()
        for name, value in (files or {}).items():
            (folder / name).write_text(json.dumps(value).replace("{folder}", str(folder)))
        ports = {name: free_port() for name in ("PROXY_PORT", "CONTROL_PORT", *extra_ports)}
        environ = {
            **environ_of(folder),
            **CALM,
            **{name: str(port) for name, port in ports.items()},
            **{name: value.replace("{folder}", str(folder)) for name, value in variables.items()},
        }
        arguments = [word.replace("{PROXY_PORT}", str(ports["PROXY_PORT"])) for word in verb]
        with (folder / "log").open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "appliance", *arguments],
                env=environ,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        instance = Instance(
            ports["PROXY_PORT"],
            ports["CONTROL_PORT"],
            folder,
            Normaliser({str(folder): "<folder>", **(known or {})}),
            process,
            ports,
        )
        try:
            await until(lambda: _answers(instance, ready), what="the appliance answers")
            yield instance
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(process.wait, 20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _answers(instance: Instance, path: str) -> bool:
    assert instance.process.poll() is None, f"it ended with {instance.process.returncode}:\n{instance.log}"
    try:
        return (await instance.ask("GET", path)).status == 200
    except OSError:
        return False


def log_lines(log: str) -> list[dict[str, Any]]:
    """Give the JSON lines of a log."""
    return [json.loads(line) for line in log.splitlines() if re.match(r"\{.*\}$", line)]
