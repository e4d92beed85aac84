"""An appliance for tests of the control API: real router, receipts and log; scripted backend, worker, reload."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError
from appliance.base.log_buffer import LogBuffer
from appliance.base.settings import Problem, SettingDescription
from appliance.base.watch import Watched
from appliance.control.parts import ControlParts, ReloadResult, SettingChange
from appliance.control.server import serving_control
from appliance.control.settings import ControlSettings
from appliance.control.v1 import control_pb2_grpc
from appliance.downloads.jobs import DownloadJobs
from appliance.downloads.request import DownloadFolders
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt, Receipt, Receipts
from appliance.engines.settings import EngineSettings
from appliance.engines.stream import Stream
from appliance.engines.types import BackendState, EngineReply, EngineRequest, ModelCard
from appliance.front.pipeline.request import Request
from tests.control.scripted_manager import ScriptedManager
from tests.fakes.backend import ScriptedBackend as Base
from tests.fakes.backend import router_of


def completion(text: str) -> bytes:
    return jsons.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "house/model",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text, "reasoning_content": "hm"},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        }
    )


def event(delta: dict[str, Any], *, finish: str | None = None, index: int = 0) -> bytes:
    return (
        b"data: "
        + jsons.dumps(
            {
                "id": "c1",
                "object": "chat.completion.chunk",
                "model": "house/model",
                "choices": [{"index": index, "delta": delta, "finish_reason": finish}],
            }
        )
        + b"\n\n"
    )


class ScriptedBackend(Base):
    """Replies by `script`: bytes = whole, a list = the pieces of a stream, an error = raised, `hang` = never."""

    def __init__(self) -> None:
        super().__init__(FakeClock())
        self.script: Any = completion("hello")
        self.reply_status = 200
        self.begun = asyncio.Event()
        self.cancelled = asyncio.Event()  # waiting for the upstream was ended from our side
        self.release = asyncio.Event()  # ends a hang
        self.closed = asyncio.Event()  # the stream was closed
        self.sent = 0

    def cards(self) -> list[ModelCard]:
        return [ModelCard("house/model", 1, "house", "upstream/model", ("house",))]

    def serves(self, model: str) -> bool:
        return model != "no-such"

    def describe(self) -> BackendState:
        return BackendState(
            self.name,
            self.kind,
            True,
            "by script",
            (
                {
                    "url": "http://127.0.0.1:1/v1",
                    "rested_s": 1.5,
                    "failed_in_a_row": 2,
                    "last_error": "connect: refused",
                },
            ),
            ("house/model",),
            1,
        )

    async def close(self) -> None: ...

    async def answer(self, request: EngineRequest) -> EngineReply:
        receipt = request.receipt
        receipt.backend, receipt.endpoint, receipt.served_model = (
            self.name,
            "http://127.0.0.1:1/v1",
            "upstream/model",
        )
        receipt.attempts.append(Attempt("http://127.0.0.1:1/v1", Outcome.OK, 200, 1.5))
        receipt.prompt_tokens, receipt.completion_tokens = 3, 2
        if isinstance(self.script, ApplianceError) or self.script is ZeroDivisionError:
            raise self.script
        if self.script == "hang":
            await self._hang()
        if isinstance(self.script, bytes):
            return EngineReply(status=self.reply_status, body=self.script)
        return EngineReply(events=Events(self, iter(self.script)), content_type="text/event-stream")

    async def next_chunk(self, pieces: Iterator[Any]) -> bytes:
        for piece in pieces:
            if isinstance(piece, ApplianceError):
                raise piece
            if piece == "hang":
                await self._hang()
                continue
            self.sent += 1
            return bytes(piece)
        raise StopAsyncIteration

    async def _hang(self) -> None:
        self.begun.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


class Events(Stream):
    """A stream that only its reader closes."""

    def __init__(self, backend: ScriptedBackend, pieces: Iterator[Any]) -> None:
        self._backend = backend
        self._pieces = pieces

    async def __anext__(self) -> bytes:
        return await self._backend.next_chunk(self._pieces)

    async def aclose(self) -> None:
        self._backend.closed.set()


class ScriptedWorker:
    """Changes its state on demand; `refuses` makes every start fail."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {
            "state": "running",
            "command": "work --fast",
            "pid": 4711,
            "restarts": 2,
            "exit_code": None,
            "started_at_s": 1_800_000_000.5,
            "reason": "",
        }
        self.refuses = ""
        self.did: list[str] = []
        self.is_stopping = asyncio.Event()
        self.may_stop = asyncio.Event()
        self.may_stop.set()
        self.has_stopped = asyncio.Event()

    def as_dict(self) -> dict[str, Any]:
        return dict(self.state)

    async def start(self) -> None:
        self.did.append("start")
        self.state |= (
            {"state": "refused", "reason": self.refuses}
            if self.refuses
            else {"state": "running", "pid": 4712}
        )

    async def stop(self) -> None:
        self.is_stopping.set()
        await self.may_stop.wait()
        self.did.append("stop")
        self.has_stopped.set()
        self.state |= {"state": "stopped", "pid": None, "exit_code": -15, "reason": "stopped by request"}

    async def restart(self) -> None:
        await self.stop()
        await self.start()


class FakeAppliance:
    """Everything that the control API uses."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.backend = ScriptedBackend()
        self.worker: ScriptedWorker | None = ScriptedWorker()
        self.manager: ScriptedManager | None = None
        self.jobs: DownloadJobs | None = None
        self.accounts: Any = None
        self.folders: Callable[[], DownloadFolders] | None = None
        self.receipts = Receipts()
        self.lines = LogBuffer()
        self.changed: Watched[int] = Watched(0)
        self.state = "serving"
        self.finished: list[Receipt] = []
        self.settled = asyncio.Event()
        self.shutdowns: list[float | None] = []
        self.reloads: list[tuple[dict[str, str], bool]] = []
        self.log_level = "info"
        self.is_reload_broken = False
        self.grace_s = 5.0
        self.hurry = asyncio.Event()
        self._ids = itertools.count(1)

    def become(self, state: str) -> None:
        self.state = state
        self.changed.set(self.changed.value + 1)

    def status(self) -> dict[str, Any]:
        return {
            "ok": self.state == "serving",
            "state": self.state,
            "version": "1.2.3",
            "started_at_s": 1_800_000_000.25,
            "uptime_s": 12.5,
            "demo": False,
            "engine": "hosted",
            "public_model": "house/model",
            "upstream_base": "upstream/model",
            "aliases": ["house"],
            "novita_endpoints": ["http://127.0.0.1:1/v1"],
            "gpu": self.gpu(),
            "worker": self.worker.as_dict() if self.worker else {},
            "nat": {"outcome": "listener", "keeper": "listener", "detail": "127.0.0.1:14444"},
            "machine_id": "ab" * 16,
            "steps": [
                {
                    "name": "nat",
                    "outcome": "done",
                    "detail": "a second listener",
                    "remedy": "",
                    "is_mandatory": False,
                }
            ],
            "in_flight": 3,
            "warnings": ["something to know"],
            "backends": [],
        }

    def gpu(self) -> dict[str, Any]:
        return {
            "mode": "simulated",
            "simulated": True,
            "reason": "GPU_MODE=simulated",
            "gpus": [
                {
                    "index": 0,
                    "name": "NVIDIA H100 (simulated)",
                    "uuid": "GPU-1",
                    "pci_bus_id": "00000000:01:00.0",
                    "memory_total_mib": 81559,
                    "driver": "590.1",
                }
            ],
        }

    def settings(self) -> list[SettingDescription]:
        return [
            SettingDescription(
                "LOG_LEVEL",
                "general",
                "info",
                self.log_level,
                "debug, info",
                "How much is logged",
                False,
                False,
                True,
            ),
            SettingDescription(
                "CONTROL_TOKEN", "control", "", "(hidden)", "text", "Token", True, True, False
            ),
        ]

    async def reload(self, overrides: dict[str, str], dry_run: bool) -> ReloadResult:
        self.reloads.append((overrides, dry_run))
        wanted = overrides.get("LOG_LEVEL", "info")
        if wanted not in {"debug", "info"}:
            return ReloadResult(
                (),
                (Problem("LOG_LEVEL", wanted, "debug, info", "Set LOG_LEVEL to an allowed value."),),
                False,
                "Nothing was changed: the new settings have problems.",
            )
        changes = (
            (SettingChange("LOG_LEVEL", self.log_level, wanted, False),) if wanted != self.log_level else ()
        )
        if dry_run or not changes:
            return ReloadResult(changes, (), False, "Nothing was changed.")
        if self.is_reload_broken:
            return ReloadResult(
                changes,
                (Problem("reload", "", "settings that can be put in place", "It broke."),),
                False,
                "Nothing was changed: putting the new settings in place failed.",
            )
        self.log_level = wanted
        return ReloadResult(changes, (), True, "Applied.")

    def guarded_request(self, route: str) -> Request:
        receipt = Receipt(f"req_{next(self._ids)}", self.clock.now_s(), route)
        return Request("POST", route, {}, b"", "", receipt.id, receipt, route, lifecycle=self)

    def admit_guarded(self, request: Request) -> None:
        pass

    in_flight = 0

    def settle(self, request: Request) -> None:
        receipt = request.receipt
        receipt.finish = request.finish
        receipt.status = receipt.status or 499
        self.receipts.add(receipt)
        self.finished.append(receipt)
        self.settled.set()

    def drain(self) -> None:
        if self.state == "serving":
            self.become("draining")

    def resume(self) -> None:
        if self.state == "draining":
            self.become("serving")

    def parts(self) -> ControlParts:
        return ControlParts(
            router=router_of(self.backend, clock=self.clock, settings=EngineSettings(model_strict=True)),
            fleet=None,
            receipts=self.receipts,
            worker=self.worker,
            status=self.status,
            changed=self.changed,
            identity=lambda: {"machine_id": "ab" * 16, "hostname": "box", "gpu": self.gpu()},
            settings=self.settings,
            reload=self.reload,
            drain=self.drain,
            resume=self.resume,
            shutdown=self.shutdowns.append,
            lines=self.lines,
            pipeline=self,
            is_draining=lambda: self.state != "serving",
            grace_s=lambda: self.grace_s,
            hurry=self.hurry,
            manager=self.manager,
            jobs=self.jobs,
            folders=self.folders,
            clock=self.clock,
            accounts=self.accounts,
        )


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def control_settings(**values: Any) -> ControlSettings:
    """Return settings that listen nowhere by default."""
    return ControlSettings(**{"control_port": 0, **values})


class OpenControl:
    """A control API that is open, with a channel to it."""

    def __init__(self, fake: FakeAppliance, channel: Any, address: str) -> None:
        self.fake = fake
        self.channel = channel
        self.address = address
        self.stub = control_pb2_grpc.ControlStub(channel)


@asynccontextmanager
async def opened(
    folder: Path, fake: FakeAppliance | None = None, *, max_calls: int = 256, **values: Any
) -> AsyncIterator[OpenControl]:
    """Open a control API on a unix socket in `folder`, and a channel to it."""
    fake = fake or FakeAppliance()
    settings = control_settings(control_socket=folder / "c.sock", **values)
    async with (
        serving_control(settings, fake.parts(), max_calls=max_calls) as addresses,
        grpc.aio.insecure_channel(addresses[-1]) as channel,
    ):
        yield OpenControl(fake, channel, addresses[-1])


async def refused(call: Callable[[], Awaitable[Any]] | Any) -> grpc.aio.AioRpcError:
    """Return the error of a call; fail if it has none."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError("the call was not refused")


async def rest_of(call: Any) -> list[Any]:
    """Read a stream's messages to its end."""
    found = []
    while (message := await call.read()) is not grpc.aio.EOF:
        found.append(message)
    return found
