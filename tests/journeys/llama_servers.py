"""Real llama-server processes with tiny models, for the journeys.

`first, second = await llama(), await llama(slots=1)`.

What the models answer stands in tests/tools/tiny_models.py. A server ends with its test, and with the test
run however that ends.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools import tiny_models as models

TOOL = Path(__file__).parents[1] / "tools" / "llama-server"
DIES_WITH_US = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "--",
]  # a program, not a function run after the fork: gRPC aborts that one
HELLO = [{"role": "user", "content": "hello"}]


def long_body(n_tokens: int, **more: Any) -> dict[str, Any]:
    """A chat that really generates `n_tokens` tokens.

    Some 0.5 ms each on an idle core, so thousands for one that lasts.
    """
    return {
        "model": "tiny",
        "messages": HELLO,
        "max_tokens": n_tokens,
        "ignore_eos": True,
        "stream": True,
        **more,
    }


class LlamaServer:
    """One llama-server. It keeps its port and its log over restarts."""

    def __init__(self, command: list[str], log: Path, *, api_key: str = "") -> None:
        self._command, self._api_key, self.log, self.port = command, api_key, log, 0
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    async def start(self, *, within_s: float = 30.0) -> None:
        """Start it and wait until it is healthy.

        Raises AssertionError with its log when it ends or takes longer.
        """
        before = self.text().count("\n")
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.log.parent), "GGML_NO_BACKTRACE": "1"}
        if self._api_key:
            environ["LLAMA_API_KEY"] = self._api_key  # where `ps` does not show it
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*DIES_WITH_US, *self._command, "--port", str(self.port)],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        for _ in range(int(within_s / 0.02)):
            new = "\n".join(self.text().split("\n")[before:])
            if self.process.poll() is not None:
                raise AssertionError(f"llama-server ended with {self.process.returncode}:\n{new}")
            # It chooses the port itself, so that tests side by side never choose the same.
            if listening := re.search(r"listening on http://[^\s:]+:(\d+)", new):
                self.port = int(listening[1])
                if await asyncio.to_thread(self.is_healthy):
                    return
            await asyncio.sleep(0.02)
        raise AssertionError(f"llama-server was not ready within {within_s} s:\n{self.text()}")

    def get(self, path: str, *, timeout_s: float = 5.0) -> Any:
        """Ask it directly, past the appliance: the JSON at `path`. Raises OSError."""
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        )
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return json.load(answer)

    def is_healthy(self) -> bool:
        try:
            return bool(self.get("/health")["status"] == "ok")
        except OSError:
            return False

    def slots(self) -> list[dict[str, Any]]:
        """Its slots as it tells them: `[{"id": int, "is_processing": bool, "n_ctx": int, …}, …]`."""
        return list(self.get("/slots"))

    def busy(self) -> int:
        """How many of its slots work on a request."""
        return sum(slot["is_processing"] for slot in self.slots())

    def text(self) -> str:
        """Its log, of all its lives."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill9(self) -> None:
        """End it as the kernel would: nothing is said to those who wait for it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def terminate(self, *, within_s: float = 15.0) -> None:
        """Ask it to end, and wait for that. Raises TimeoutError."""
        assert self.process is not None
        self.process.terminate()
        async with asyncio.timeout(within_s):
            while self.process.poll() is None:
                await asyncio.sleep(0.02)

    async def restart(self) -> None:
        """Start it again on the same port; kill it first if it still runs."""
        self.kill9()
        await self.start()

    def pause(self) -> None:
        """Stop it where it is: connections stay open and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


Llama = Callable[..., Awaitable[LlamaServer]]


@pytest.fixture(scope="session")
def llama_binary() -> str:
    """A llama-server for this machine, fetched where it is missing."""
    done = subprocess.run([str(TOOL)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.fail(f"no llama-server could be had:\n{done.stderr}", pytrace=False)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def tiny_models() -> Path:
    """The folder with the tiny models, made where they are missing."""
    return models.ensure(models.cached_folder())


@pytest.fixture
async def llama(llama_binary: str, tiny_models: Path, tmp_path: Path) -> AsyncIterator[Llama]:
    """Start servers.

    `await llama(slots=2, ctx=8192, alias="tiny", lora=False, embeddings=False, rerank=False, api_key="",
    port=0, extra=())`.

    `ctx` is in tokens for each slot, `port` 0 is a free one, `extra` are more arguments. With `embeddings` or
    `rerank` it serves tiny-embed or tiny-rerank, and nothing else. `lora` loads the adapter at scale 0, for
    requests to ask for.
    """
    servers: list[LlamaServer] = []

    async def begin(
        *,
        slots: int = 2,
        ctx: int = models.CONTEXT,
        alias: str = "",
        lora: bool = False,
        embeddings: bool = False,
        rerank: bool = False,
        api_key: str = "",
        port: int = 0,
        extra: tuple[str, ...] = (),
    ) -> LlamaServer:
        model = "tiny-embed" if embeddings else "tiny-rerank" if rerank else "tiny-chat"
        name = alias or ("tiny" if model == "tiny-chat" else model)
        command = [
            llama_binary,
            "-m",
            str(tiny_models / f"{model}.gguf"),
            "--alias",
            name,
            "--host",
            "127.0.0.1",
            "-t",
            "1",
            "--metrics",
            "--slots",
            "--parallel",
            str(slots),
            "--ctx-size",
            str(slots * (ctx if model == "tiny-chat" else 512)),
        ]
        command += (
            ["--embeddings"] if embeddings else ["--rerank"] if rerank else ["--jinja", "--no-kv-unified"]
        )
        if lora:
            command += ["--lora-scaled", f"{tiny_models / 'tiny-lora.gguf'}:0"]
        server = LlamaServer([*command, *extra], tmp_path / f"llama-{len(servers)}.log", api_key=api_key)
        server.port = port
        servers.append(server)
        await server.start()
        return server

    yield begin
    for server in servers:
        server.kill9()
        print(
            f"{server.url}, the end of its log:", server.text()[-3000:], sep="\n"
        )  # pytest shows it when the test fails
