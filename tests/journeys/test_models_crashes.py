"""Failures of models that run here, on real llama-servers: killed, hung, damaged, competing for a port."""

import asyncio
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from appliance.models.manager import watchdog
from appliance.models.runner.process import StopTimes
from tests.journeys.model_tables import Managed, Stopwatch, runs, wrapper
from tests.journeys.running import until
from tests.tools.tiny_models import REPLY

LONG = 3000  # tokens: two seconds or three, so that a slow machine sees the stream run


# ---- killed


async def test_server_killed_in_a_stream_fails_only_that_stream(
    managed: Managed,
) -> None:
    appliance = await managed("a", "b")
    assert await appliance.chat("b") == REPLY
    broken = await appliance.start_stream("a", LONG)
    with appliance.paused("a"):
        other = await appliance.start_stream("b", 700)
        assert not broken.done()
        os.kill(appliance.pid("a"), signal.SIGKILL)
        result = await broken
    assert (result.status, result.end, result.other) == (200, "error", [])
    assert result.error["message"]
    assert str(appliance.folder) not in result.error["message"]
    watch = Stopwatch()
    assert await appliance.chat("a") == REPLY  # loaded again, after the rest that a crash brings
    assert 0.2 < watch.s < 5.0
    assert (await other).is_whole
    counts = appliance.manager.counts()
    assert (counts.crashes, counts.by_model) == (1, {"a": 2, "b": 1})
    assert appliance.manager.model("a").attempts == 0  # it answered, so it starts from nothing
    assert await appliance.is_free()


async def test_server_killed_before_the_first_byte_costs_only_time(
    managed: Managed,
) -> None:
    """The server is paused, so that requests surely wait for their first byte when it is killed."""
    appliance = await managed("a")
    assert await appliance.chat("a") == REPLY
    pid = appliance.pid("a")
    os.kill(pid, signal.SIGSTOP)
    asked = [asyncio.create_task(appliance.chat("a")), asyncio.create_task(appliance.stream("a"))]
    assert await until(lambda: appliance.active("a") == 2)
    os.kill(pid, signal.SIGKILL)
    said, result = await asyncio.gather(*asked)
    assert said == REPLY
    assert (result.end, result.text) == ("done", REPLY)
    assert appliance.manager.counts().crashes == 1
    assert appliance.manager.counts().loads == 2
    retried = [
        receipt for receipt in appliance.running.appliance.receipts.latest(10) if len(receipt.attempts) > 1
    ]
    assert len(retried) == 2
    assert await appliance.is_free()


async def test_a_server_killed_while_it_loads_is_loaded_again(
    managed: Managed, tmp_path: Path, llama_binary: str
) -> None:
    slow = wrapper(
        tmp_path, llama_binary, f"[ -e {tmp_path}/second ] || {{ touch {tmp_path}/second; exec sleep 60; }}"
    )
    appliance = await managed("a", binary=slow)
    asked = asyncio.create_task(appliance.chat("a"))
    assert await until(lambda: appliance.status("a") == "starting" and (tmp_path / "second").exists())
    os.kill(appliance.pid("a"), signal.SIGKILL)
    assert await asked == REPLY
    assert appliance.manager.counts().loads == 2
    assert appliance.manager.counts().loaded == 1


async def test_repeated_crashes_pause_longer_and_are_given_up(
    managed: Managed, tmp_path: Path, llama_binary: str
) -> None:
    dying = wrapper(
        tmp_path, llama_binary, f"if [ -e {tmp_path}/ill ]; then echo 'error: no luck today' >&2; exit 3; fi"
    )
    appliance = await managed("a", "b", binary=dying, model_load_max_retries=1)
    assert await appliance.chat("b") == REPLY
    (tmp_path / "ill").touch()
    watch = Stopwatch()
    status, _, value = await appliance.ask("a")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert "no luck today" in value["error"]["message"]
    assert 0.4 < watch.s < 5.0
    assert (appliance.status("a"), appliance.manager.failed_models()[0].attempts) == ("failed", 2)
    watch = Stopwatch()
    assert (await appliance.ask("a"))[0] == 503  # at once: it is not tried any more
    assert watch.s < 0.2
    assert await appliance.chat("b") == REPLY
    (tmp_path / "ill").unlink()
    found = appliance.manager.reset("a")
    assert found is not None
    assert found.attempts == 2
    assert await appliance.chat("a") == REPLY


async def test_what_a_wrapper_started_is_ended_with_it(
    managed: Managed, tmp_path: Path, llama_binary: str
) -> None:
    """A program before llama-server need not replace itself by it.

    What listens is then its child, and must not outlive it.
    """
    appliance = await managed("a", binary=wrapper(tmp_path, llama_binary, ending='"$real" "$@"; exit'))
    assert await appliance.chat("a") == REPLY
    pid = appliance.pid("a")
    mine = appliance.own_servers()
    assert len(mine) == 2
    os.kill(pid, signal.SIGKILL)
    assert await until(lambda: not any(runs(one) for one in mine))
    assert await appliance.chat("a") == REPLY
    mine = appliance.own_servers()
    await appliance.manager.eject("a")
    assert await until(lambda: not any(runs(one) for one in mine))


# ---- deaf


async def test_one_that_ignores_sigterm_is_killed_after_the_limit(managed: Managed) -> None:
    appliance = await managed("a", "b", max_concurrent_models=1)
    appliance.manager.loader.times = StopTimes(term_s=0.5, kill_s=2.0)
    assert await appliance.chat("a") == REPLY
    pid = appliance.pid("a")
    os.kill(pid, signal.SIGSTOP)  # SIGTERM cannot reach it any more
    watch = Stopwatch()
    assert await appliance.chat("b") == REPLY
    assert 0.5 <= watch.s < 4.0
    assert not runs(pid)
    assert appliance.statuses() == {"a": "off", "b": "ready"}


async def test_hung_server_is_ended_and_loaded_again(
    managed: Managed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five looks in a row without an answer (as in docs/compatibility.md)."""
    monkeypatch.setattr(watchdog, "PROBE_TIMEOUT_S", 0.3)
    monkeypatch.setattr(watchdog, "RELOAD_AFTER_S", 0.1)
    appliance = await managed("a", variables={"MODEL_LOOK_S": "0.05"})
    appliance.manager.loader.times = StopTimes(term_s=0.2, kill_s=2.0)
    assert await appliance.chat("a") == REPLY
    pid = appliance.pid("a")
    assert await until(lambda: appliance.manager.health()[0].status == "healthy")
    os.kill(pid, signal.SIGSTOP)
    asked = asyncio.create_task(appliance.stream("a"))  # what waits for it is served by the next
    assert await until(lambda: not runs(pid), seconds=10)
    assert (await asked).text == REPLY
    assert appliance.pid("a") != pid
    assert await until(lambda: appliance.manager.health()[0].status == "healthy")


# ---- files


async def test_files_that_are_no_models_fail_at_once(
    managed: Managed, tmp_path: Path, tiny_models: Path
) -> None:
    text, cut = tmp_path / "text.gguf", tmp_path / "cut.gguf"
    text.write_text("This is no model.\n" * 1000)
    whole = (tiny_models / "tiny-chat.gguf").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])  # its header is whole: only llama-server sees what is missing
    appliance = await managed(
        "text",
        "cut",
        "good",
        max_concurrent_models=1,
        text={"model_path": str(text)},
        cut={"model_path": str(cut)},
    )
    assert await appliance.chat("good") == REPLY
    pid = appliance.pid("good")
    status, _, value = await appliance.ask("text")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert "is not a GGUF model" in value["error"]["message"]
    assert runs(pid)  # nobody gave way for it
    watch = Stopwatch()
    status, _, value = await appliance.ask("cut")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert watch.s < 3.0  # no second try: it would fail in the same way
    assert appliance.manager.model("cut").attempts == 1
    assert appliance.statuses() | {"good": ""} == {"text": "failed", "cut": "failed", "good": ""}
    assert await appliance.chat("good") == REPLY
    cut.write_bytes(whole)
    appliance.manager.reset("cut")
    assert await appliance.chat("cut") == REPLY


async def test_a_missing_file_is_found_when_it_comes(
    managed: Managed, tmp_path: Path, tiny_models: Path
) -> None:
    late = tmp_path / "late.gguf"
    appliance = await managed("late", "good", late={"model_path": str(late)})
    status, _, value = await appliance.ask("late")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert "not found" in value["error"]["message"]
    assert await appliance.chat("good") == REPLY
    shutil.copyfile(tiny_models / "tiny-chat.gguf", late)
    assert await appliance.chat("late") == REPLY  # nobody need reset it


# ---- ports


@contextmanager
def listening(*ports: int) -> Iterator[None]:
    with ExitStack() as stack:
        for port in ports:
            one = stack.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
            one.listen()
        yield


async def test_ports_that_are_taken_are_passed_over(managed: Managed) -> None:
    appliance = await managed("a", "b", "c")
    first = appliance.manager.loader.first_port
    with listening(first, first + 2):
        for alias in "abc":
            assert await appliance.chat(alias) == REPLY
        assert [appliance.manager.model(alias).port for alias in "abc"] == [first + 1, first + 3, first + 4]


@pytest.mark.parametrize("is_shared", [False, True])
async def test_port_taken_before_the_bind_is_replaced(
    managed: Managed, tmp_path: Path, llama_binary: str, is_shared: bool
) -> None:
    """The wrapper lets somebody take the port before it starts llama-server.

    Who shares it with llama-server would answer for it at times.
    """
    thief = wrapper(
        tmp_path,
        llama_binary,
        f"if [ ! -e {tmp_path}/ready ]; then",
        f"  {sys.executable} {tmp_path}/thief.py $(sed 's/.*--port //; s/ .*//' <<<\"$*\") {tmp_path}/ready",
        f"  until [ -e {tmp_path}/ready ]; do sleep 0.02; done",
        "fi",
        ending='exec "$real" "$@"' + " --reuse-port" * is_shared,
    )
    (tmp_path / "thief.py").write_text(THIEF)
    appliance = await managed("a", binary=thief)
    first = appliance.manager.loader.first_port
    try:
        assert [await appliance.chat("a") for _ in range(8)] == [REPLY] * 8
        assert appliance.manager.model("a").port != first
        assert appliance.manager.model("a").attempts == 0
        assert appliance.manager.counts().loads == 1
    finally:
        os.kill(int((tmp_path / "ready").read_text()), signal.SIGKILL)


# It answers like a llama-server that is ready, and leaves the process group of the one that started it.
THIEF = """
import http.server, os, socket, sys
if os.fork():
    sys.exit()
os.setsid()
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "15")
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')
    def log_message(self, *_):
        pass
class Sharing(http.server.ThreadingHTTPServer):
    def server_bind(self):
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()
server = Sharing(("127.0.0.1", int(sys.argv[1])), Healthy)
with open(sys.argv[2] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[2] + ".new", sys.argv[2])
server.serve_forever()
"""


async def test_all_ports_taken_is_said(managed: Managed) -> None:
    appliance = await managed("a", model_load_max_retries=0)
    first, last = appliance.manager.loader.first_port, appliance.manager.loader.last_port
    with listening(*range(first, last + 1)):
        status, _, value = await appliance.ask("a")
    assert (status, value["error"]["code"]) == (503, "model_failed")
    assert f"all ports from {first} to {last} are taken" in value["error"]["message"]
    appliance.manager.reset("a")
    assert await appliance.chat("a") == REPLY
