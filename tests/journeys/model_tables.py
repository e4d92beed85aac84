"""The appliance with a table of several tiny models, which it runs by real llama-server processes of its own.

    appliance = await managed("a", "b", max_concurrent_models=1)    # two chat models, one at a time
    appliance = await managed("chat", "embed", chat={"pinned": True})    # `embed…`: the embedding model

Keys of one model are given by its name.

Each table is a file under tmp_path, and may be changed and read again (`appliance.change`). What the models
answer stands in tests/tools/tiny_models.py: they load in a tenth of a second or so.
"""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from appliance.control.parts import ReloadResult
from appliance.models.manager.manager import ModelManager
from appliance.models.runner.proc import started_ticks
from appliance.models.runner.runner import Runner
from appliance.models.status.views import DeviceView
from appliance.reload import Reloader
from tests.journeys.llama_servers import HELLO
from tests.journeys.running import Running, Start, free_port, until
from tests.tools.tiny_models import REPLY

MIB = 1 << 20
PORTS = 10  # of each appliance: a range of its own, below those that the kernel gives out


def port_range() -> dict[str, str]:
    """Give the variables of a range of ports that are all free, and that hardly any other test is given."""
    while True:
        first = 20_000 + free_port() % (10_000 // PORTS) * PORTS
        with ExitStack() as stack:
            try:
                for port in range(first, first + PORTS):
                    probe = stack.enter_context(socket.socket())
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return {"MODEL_FIRST_PORT": str(first), "MODEL_LAST_PORT": str(first + PORTS - 1)}


def table_of(
    folder: Path,
    names: Iterable[str],
    *,
    system: Mapping[str, Any] | None = None,
    models: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a table of models.

    Names that begin with `embed` are the embedding model, all others the chat model, two requests at a time
    each. A row with a command is taken as it is.
    """
    rows = {}
    for name in names:
        row = dict((models or {}).get(name, {}))
        if "command" in row:
            rows[name] = row
            continue
        is_embedding = name.startswith("embed")
        params = (
            {"n_ctx": 8192, "parallel_override": 2, "n_gpu_layers": 0}
            | ({"embedding": True} if is_embedding else {})
            | row.pop("params", {})
        )
        rows[name] = {
            "model_path": str(folder / ("tiny-embed.gguf" if is_embedding else "tiny-chat.gguf")),
            "params": params,
        } | row
    return {"system": {"cpu_threads": 1, "keep_warm_models": 0} | dict(system or {}), "models": rows}


@dataclass
class ManagedAppliance:
    """A running appliance and its table."""

    running: Running
    config: Path
    table: dict[str, Any]
    folder: Path  # of the tiny models
    session: aiohttp.ClientSession

    @property
    def manager(self) -> ModelManager:
        assert self.running.appliance.manager is not None
        return self.running.appliance.manager

    # ---- looking

    def status(self, alias: str) -> str:
        return self.manager.model(alias).status

    def statuses(self) -> dict[str, str]:
        return {view.alias: view.status for view in self.manager.models()}

    def runners(self, alias: str) -> list[Runner]:
        return self.manager.model_state(alias).runners

    def pid(self, alias: str) -> int:
        """Give the process id of its one llama-server."""
        (process,) = [runner.process for runner in self.runners(alias)]
        assert process is not None
        return process.pid

    def queue_length(self, alias: str) -> int:
        """How many wait for it."""
        return next(queue.queue_length for queue in self.manager.queues() if queue.alias == alias)

    def active(self, alias: str) -> int:
        """How many of its slots are taken."""
        return sum(runner.active for runner in self.runners(alias))

    def own_servers(self) -> set[int]:
        """Give every llama-server of this appliance, wrappers included, by the port in its command line."""
        ports = {runner.port for alias in self.manager.model_states for runner in self.runners(alias)}
        return {pid for pid, port in servers_of(self.folder).items() if port in ports}

    async def is_free(self) -> bool:
        """Whether nobody waits and no slot is taken within a second."""
        return await until(
            lambda: (
                not any(self.active(alias) or self.queue_length(alias) for alias in self.manager.model_states)
            ),
            seconds=1.0,
        )

    # ---- asking

    async def ask(
        self,
        alias: str,
        *,
        path: str = "/v1/chat/completions",
        headers: dict[str, str] | None = None,
        method: str = "POST",
        **more: Any,
    ) -> tuple[int, dict[str, str], Any]:
        """Ask a model; give (status, headers, JSON or text)."""
        body = (
            None
            if method == "GET"
            else {"model": alias} | ({"messages": HELLO} if "chat" in path else {}) | more
        )
        async with self.session.request(
            method, self.running.base_url + path, json=body, headers=headers
        ) as response:
            text = await response.text()
            return (
                response.status,
                dict(response.headers),
                json.loads(text) if "application/json" in response.headers["Content-Type"] else text,
            )

    async def chat(self, alias: str, **more: Any) -> str:
        """Ask a chat model and give what it said; anything but an answer fails the test."""
        status, _, value = await self.ask(alias, **more)
        assert status == 200, value
        return str(value["choices"][0]["message"]["content"])

    async def stream(
        self,
        alias: str,
        n_tokens: int = 0,
        *,
        on_text: Callable[[], None] | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> "StreamResult":
        """Ask for a stream, of really `n_tokens` tokens if given, and read it to its end."""
        body = (
            {"model": alias, "messages": HELLO, "stream": True}
            | ({"max_tokens": n_tokens, "ignore_eos": True} if n_tokens else {})
            | more
        )
        result = StreamResult()
        try:
            async with self.session.post(
                self.running.v1 + "/chat/completions", json=body, headers=headers
            ) as response:
                result.status, result.headers = response.status, dict(response.headers)
                if response.status != 200:
                    result.end, result.error = "refused", json.loads(await response.text())["error"]
                    return result
                async for line in response.content:
                    result.take(line)
                    if result.n_pieces == 1 and on_text is not None:
                        on_text()
        except aiohttp.ClientError as exc:
            result.end = f"cut: {exc!r}"
        return result

    async def start_stream(self, alias: str, n_tokens: int, **more: Any) -> "asyncio.Task[StreamResult]":
        """Begin a stream, and come back once it has begun to say something."""
        begun = asyncio.Event()
        task = asyncio.create_task(self.stream(alias, n_tokens, on_text=begun.set, **more))
        waiting = asyncio.create_task(begun.wait())
        await asyncio.wait({task, waiting}, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert begun.is_set(), task.result() if task.done() else "it said nothing for 10 s"
        return task

    @contextmanager
    def paused(self, alias: str) -> Iterator[None]:
        """Pause its llama-servers: their requests go on only afterwards, however slow this machine is."""
        pids = [runner.process.pid for runner in self.runners(alias) if runner.process is not None]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in filter(runs, pids):
                os.kill(pid, signal.SIGCONT)

    # ---- changing the table

    async def change(self, **models: Any) -> ReloadResult:
        """Give models other keys (None = remove the model), write the table, and let it be read again."""
        for alias, row in models.items():
            if row is None:
                del self.table["models"][alias]
            else:
                self.table["models"] |= table_of(self.folder, [alias], models={alias: row})["models"]
        return await self.reload()

    async def reload(self, **overrides: str) -> ReloadResult:
        self.config.write_text(json.dumps(self.table))
        return await Reloader(self.running.appliance).reload(overrides, False)


@dataclass
class StreamResult:
    """A stream as its client saw it.

    `end`: done, error (an error event), refused (no stream), cut (neither end nor error).
    """

    end: str = "cut"
    status: int = 0
    text: str = ""
    n_pieces: int = 0
    error: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    comments: list[bytes] = field(default_factory=list)
    other: list[bytes] = field(default_factory=list)  # what an event stream does not have

    def take(self, line: bytes) -> None:
        if line == b"data: [DONE]\n":
            self.end = "done"
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                self.end, self.error = "error", event["error"]
            for choice in event.get("choices", ()):
                piece = choice["delta"].get("content") or ""
                self.text += piece
                self.n_pieces += bool(piece)
        elif line.startswith(b":"):
            self.comments.append(line)
        elif line != b"\n":
            self.other.append(line)

    @property
    def is_whole(self) -> bool:
        """Whether it said its sentence and came to its proper end."""
        return self.end == "done" and self.text.startswith(REPLY)


Managed = Callable[..., Awaitable[ManagedAppliance]]


@pytest.fixture
async def managed(
    start: Start, llama_binary: str, tiny_models: Path, tmp_path: Path
) -> AsyncIterator[Managed]:
    """Start an appliance with a table.

    `await managed("a", "b", variables={…}, binary=…, max_concurrent_models=1, groups={…}, a={…})`.
    """
    appliances: list[ManagedAppliance] = []
    async with AsyncExitStack() as stack:

        async def begin(
            *names: str, variables: Mapping[str, str] | None = None, binary: Path | str = "", **keys: Any
        ) -> ManagedAppliance:
            models = {name: keys.pop(name) for name in names if name in keys}
            groups = {"groups": keys.pop("groups")} if "groups" in keys else {}
            config = tmp_path / f"config-{len(appliances)}.json"
            table = table_of(tiny_models, names, system=keys, models=models) | groups
            config.write_text(json.dumps(table))
            running = await start(
                CONFIG_PATH=str(config),
                LLAMA_SERVER_PATH=str(binary or llama_binary),
                **port_range(),
                **(variables or {}),
            )
            session = await stack.enter_async_context(
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=60)
                )
            )
            appliances.append(ManagedAppliance(running, config, table, tiny_models, session))
            return appliances[-1]

        yield begin
        for appliance in appliances:  # pytest shows it when the test fails
            print(appliance.statuses(), appliance.manager.counts(), appliance.manager.queues(), sep="\n")


def wrapper(folder: Path, binary: str, *before: str, ending: str = 'exec "$real" "$@"') -> Path:
    """Write a program in front of llama-server.

    The lines of `before` run at each start of a server, not when it is asked for its help.
    """
    path = folder / f"llama-server-{len(list(folder.glob('llama-server-*')))}"
    path.write_text(
        "\n".join(
            (
                "#!/bin/bash",
                f"real={binary}",
                'case "$*" in *--help*) exec "$real" --help;; esac',
                *before,
                ending,
            )
        )
        + "\n"
    )
    path.chmod(0o755)
    return path


def runs(pid: int) -> bool:
    """Whether there is such a process (a zombie is none)."""
    return started_ticks(pid) is not None


def servers_of(folder: Path) -> dict[int, int]:
    """Give by process id the port of each process that has `--port` and a model of `folder` as arguments."""
    found = {}
    for name in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0") if name.isdigit() else []
        except OSError:
            continue
        if b"--port" in words and any(word.startswith(bytes(folder)) for word in words) and runs(int(name)):
            found[int(name)] = int(words[words.index(b"--port") + 1])
    return found


class Memory:
    """Memory as a test says it, in the place of the driver's reading.

    Others hold `taken_bytes`, each of our llama-servers `each_bytes`.
    """

    is_gpu = False

    def __init__(
        self, appliance: ManagedAppliance, total_bytes: int, *, taken_bytes: int = 0, each_bytes: int = 0
    ) -> None:
        self._appliance = appliance
        self.total_bytes, self.taken_bytes, self.each_bytes = total_bytes, taken_bytes, each_bytes

    def read(self) -> list[DeviceView]:
        used = self.taken_bytes + self.each_bytes * len(
            self._appliance.own_servers() if self.each_bytes else ()
        )
        return [DeviceView(-1, "system memory", self.total_bytes, used, self.total_bytes - used)]

    def of_process(self, pid: int) -> dict[int, int]:
        return {-1: self.each_bytes} if runs(pid) and self.each_bytes else {}


@dataclass
class Stopwatch:
    began_s: float = field(default_factory=time.monotonic)

    @property
    def s(self) -> float:
        return time.monotonic() - self.began_s
