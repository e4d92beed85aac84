"""`appliance ctl backend …`, `backends --watch` and `strategy` against a whole running appliance."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from appliance.base import jsons
from tests.fakes.engine_server import EngineServer
from tests.journeys.running import Running
from tests.journeys.test_backends import QUICK, ask, backend


class Terminal:
    """Runs the command in a process of its own."""

    def __init__(self, running: Running) -> None:
        self._address = running.control_address
        self.out = self.err = ""

    async def run(self, *arguments: str, **environ: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "appliance",
            "ctl",
            "--address",
            self._address,
            *arguments,
            env={"PATH": os.environ["PATH"], **environ},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 30)
        self.out, self.err = out.decode(), err.decode()
        return process.returncode or 0

    def pairs(self) -> dict[str, str]:
        return dict(line.split("\t", 1) for line in self.out.splitlines())


@pytest.fixture
async def engines():
    async with EngineServer("vllm") as first, EngineServer("vllm", key="key-of-the-second") as second:
        yield first, second


async def test_a_backend_is_added_drained_resumed_and_removed(start, engines, tmp_path: Path) -> None:
    first, second = engines
    running = await start(BACKENDS=f"e0={first.url}", **QUICK)
    terminal = Terminal(running)
    (tmp_path / "key").write_text("key-of-the-second\n")
    assert (
        await terminal.run(
            "backend",
            "add",
            second.url,
            "--name",
            "e1",
            "--weight",
            "2",
            "--max-in-flight",
            "7",
            "--key-file",
            str(tmp_path / "key"),
        )
        == 0
    )
    assert (terminal.pairs()["name"], terminal.pairs()["weight"], terminal.pairs()["origin"]) == (
        "e1",
        "2",
        "runtime",
    )
    assert "key-of-the-second" not in terminal.out
    for _ in range(100):
        await terminal.run("backend", "show", "e1")
        if terminal.pairs()["state"] == "ready":
            break
        await asyncio.sleep(0.05)
    assert (terminal.pairs()["kind"], terminal.pairs()["limit"], terminal.pairs()["models"]) == (
        "vllm",
        "7",
        "tiny",
    )
    assert {
        backend(headers) for _, headers, _ in await asyncio.gather(*(ask(running) for _ in range(8)))
    } == {"e0", "e1"}
    assert await terminal.run("backend", "drain", "e0") == 0
    assert terminal.pairs()["state"] == "draining"
    assert {backend((await ask(running))[1]) for _ in range(4)} == {"e1"}
    assert await terminal.run("backend", "resume", "e0") == 0
    assert await terminal.run("backend", "remove", "e1") == 0
    assert terminal.out == "e1 is removed\n"
    assert await terminal.run("backends") == 0
    assert [line.split("\t")[0] for line in terminal.out.splitlines()] == ["NAME", "e0"]
    assert (
        await terminal.run(
            "backend", "add", second.url, "--key-env", "SECOND_KEY", SECOND_KEY="key-of-the-second"
        )
        == 0
    )


async def test_the_strategy_is_switched(start, engines) -> None:
    running = await start(BACKENDS=f"e0={engines[0].url}", **QUICK)
    terminal = Terminal(running)
    assert await terminal.run("strategy", "round_robin") == 0
    assert terminal.out == "round_robin\n"
    assert running.appliance.router.strategy == "round_robin"


async def test_backends_are_watched_until_the_appliance_stops(start, engines) -> None:
    running = await start(BACKENDS=f"e0={engines[0].url}", **QUICK)
    terminal = Terminal(running)
    # a stream ends with its time
    assert await terminal.run("backends", "--watch", "--interval", "1", "--timeout", "1.5") != 0
    assert terminal.out.count("e0\tvllm") >= 2
    await terminal.run("backends", "--watch", "--timeout", "0.5", "--json")
    assert jsons.loads(terminal.out.splitlines()[0])["backends"][0]["name"] == "e0"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["backend", "show", "nobody"], 1, "no backend 'nobody'"),
        (["backend", "remove", "nobody"], 1, "no backend 'nobody'"),
        (["backend", "drain", "nobody"], 1, "no backend 'nobody'"),
        (["strategy", "best"], 1, "Invalid strategy 'best'"),
        (["strategy", "round_robin", "--pool", "none"], 1, "no pool 'none'"),
        (["backend", "add", "ftp://127.0.0.1"], 1, "ftp"),
        (["backend", "add", "http://127.0.0.1:9", "--kind", "abacus"], 1, "llamacpp"),
        (["backend", "add", "http://127.0.0.1:9", "--key-file", "/no/such"], 2, "cannot read the file"),
        (["backend", "add", "http://127.0.0.1:9", "--key-env", "NO_SUCH_VARIABLE"], 2, "is not set"),
        (
            ["backend", "add", "http://127.0.0.1:9", "--key-env", "A", "--key-file", "/x"],
            2,
            "cannot be used together",
        ),
    ],
)
async def test_refusals_have_their_exit_codes(
    start,
    engines,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    running = await start(BACKENDS=f"e0={engines[0].url}", **QUICK)
    terminal = Terminal(running)
    assert await terminal.run(*arguments) == code
    assert said in terminal.err
