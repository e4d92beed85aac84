"""`appliance models …` and `appliance ctl models …`, as processes, against a real control API over
a scripted manager."""

import asyncio
import os
import pty
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.errors import Unavailable
from appliance.cli import models as commands
from appliance.cli.client import CallFailed
from appliance.control.server import serving_control
from appliance.models.status.views import FailedView, QueueView
from tests.control.fake_appliance import FakeAppliance, control_settings
from tests.control.scripted_manager import STARTED_AT_S, ScriptedManager, model_view, ready_view

PATIENCE_S = 30
HEADERS = "MODEL\tSTATUS\tPORT\tSLOTS\tACTIVE\tQUEUE\tMEMORY\tEXPIRES\tLAST-USED"
SMALL_ROW = "small\toff\t\t4\t0\t0\t\t\tnever"
BIG_ROW = "big\tready\t41000\t4\t2\t3\t3.0 GiB\tin 4m 30s\t25.0s ago"


class Process:
    """One running command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def line(self) -> str:
        assert self.process.stdout is not None
        text = (
            (await asyncio.wait_for(self.process.stdout.readline(), PATIENCE_S)).decode().removesuffix("\n")
        )
        self.lines.append(text)
        return text

    async def end(self) -> int:
        out, err = await asyncio.wait_for(self.process.communicate(), PATIENCE_S)
        self.lines += out.decode().splitlines()
        self.err = err.decode()
        return self.process.returncode or 0


class Terminal:
    """Runs commands against one appliance."""

    def __init__(self, fake: FakeAppliance, manager: ScriptedManager, address: str) -> None:
        self.fake, self.manager = fake, manager
        self.environ = {"PATH": os.environ["PATH"], "CONTROL_ADDRESS": address}
        self.out = self.err = ""

    @asynccontextmanager
    async def begin(self, *arguments: str) -> AsyncIterator[Process]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "appliance",
            *arguments,
            env=self.environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield Process(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()

    async def run(self, *arguments: str) -> int:
        async with self.begin(*arguments) as process:
            code = await process.end()
        self.out, self.err = "".join(f"{line}\n" for line in process.lines), process.err
        return code

    async def json(self, *arguments: str) -> Any:
        assert await self.run(*arguments, "--json") == 0, self.err
        return jsons.loads(self.out)


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    fake = FakeAppliance()
    manager = fake.manager = ScriptedManager(model_view("small"), ready_view("big"))
    manager.lines = [QueueView("small", 0, 0, 0, 0, 0), QueueView("big", 3, 12, 8, 1, 2, 4.5, 50)]
    fake.clock.advance(STARTED_AT_S + 30 - fake.clock.now_s())
    path = tmp_path / "c.sock"
    async with serving_control(control_settings(control_socket=path), fake.parts()):
        yield Terminal(fake, manager, f"unix:{path}")


BOTH = pytest.mark.parametrize("spelling", [["models"], ["ctl", "model"]], ids=["models", "ctl"])


# ---- seeing


@BOTH
async def test_the_log_of_a_model_is_shown_and_followed(
    terminal: Terminal, spelling: list[str], tmp_path: Path
) -> None:
    path = terminal.manager.log_path = tmp_path / "big_8080.log"
    path.write_text("one\ntwo\nthree\n")
    assert await terminal.run(*spelling, "logs", "big", "-n", "2") == 0, terminal.err
    assert terminal.out == "two\nthree\n"
    async with terminal.begin(*spelling, "logs", "big", "-n", "1", "-f") as process:
        assert await process.line() == "three"
        with path.open("a") as file:
            file.write("four\n")
        assert await process.line() == "four"
    assert await terminal.run(*spelling, "logs", "none-such") == 1
    assert terminal.manager.asked[0] == ("log", "big", 0)


@pytest.mark.parametrize("spelling", [["models"], ["models", "list"], ["ctl", "models"]], ids=" ".join)
async def test_models_are_listed_in_a_table(terminal: Terminal, spelling: list[str]) -> None:
    assert await terminal.run(*spelling) == 0, terminal.err
    assert terminal.out.splitlines() == [HEADERS, SMALL_ROW, BIG_ROW]
    response = await terminal.json(*spelling)
    assert [(model["alias"], model["status"]) for model in response["models"]] == [
        ("small", "MODEL_STATUS_OFF"),
        ("big", "MODEL_STATUS_READY"),
    ]


async def test_the_table_shows_loads_pins_replicas_and_endless_stays(terminal: Terminal) -> None:
    terminal.manager.put(model_view("small", status="loading", load_progress=40, is_pinned=True, replicas=2))
    terminal.manager.put(ready_view("big", expires_at_s=None))
    assert await terminal.run("models") == 0
    small, big = (line.split("\t") for line in terminal.out.splitlines()[1:])
    assert (small[1], small[3]) == ("loading 40%, pinned", "2x4")
    assert big[7] == "never"


@pytest.mark.parametrize("spelling", [["models"], ["ctl", "models"]], ids=" ".join)
async def test_models_are_watched_until_the_appliance_stops(terminal: Terminal, spelling: list[str]) -> None:
    async with terminal.begin(*spelling, "--watch") as process:
        assert [await process.line() for _ in range(4)] == [HEADERS, SMALL_ROW, BIG_ROW, ""]
        terminal.manager.put(model_view("small", status="crashed"))
        assert [(await process.line()).split("\t")[1:2] for _ in range(4)] == [
            ["STATUS"],
            ["crashed"],
            ["ready"],
            [],
        ]
        terminal.fake.become("stopping")
        assert await process.end() == 0, process.err


async def test_models_are_watched_as_json_a_line_each(terminal: Terminal) -> None:
    async with terminal.begin("models", "-w", "--json", "--interval", "1") as process:
        first, second = jsons.loads(await process.line()), jsons.loads(await process.line())
        assert first["models"] == second["models"]
        assert [model["alias"] for model in second["models"]] == ["small", "big"]


@BOTH
async def test_one_model_is_shown_with_all_that_is_known(terminal: Terminal, spelling: list[str]) -> None:
    terminal.manager.put(
        model_view(
            "small", status="failed", attempts=3, error_message="the file is cut short", aliases=("tiny",)
        )
    )
    assert await terminal.run(*spelling, "show", "tiny") == 0
    pairs = dict(line.split("\t", 1) for line in terminal.out.splitlines())
    assert (pairs["status"], pairs["error"], pairs["failed in a row"]) == (
        "failed",
        "the file is cut short",
        "3",
    )
    assert pairs["file"] == "/models/small.gguf (2.0 GiB)"
    assert (pairs["model"], pairs["further names"]) == ("small", "tiny")
    assert await terminal.run(*spelling, "show", "big") == 0
    assert (
        "process 4711\tport 41000, ready, 2.0 GiB GPU 0 + 1.0 GiB system memory, log /state/logs/a.log"
        in terminal.out
    )
    assert (await terminal.json(*spelling, "show", "big"))["port"] == 41000
    assert await terminal.run(*spelling, "show", "nobody") == 1
    assert terminal.err == "error: There is no model 'nobody'. `models` lists them.\n"


@pytest.mark.parametrize("spelling", [["models", "queue"], ["ctl", "queue"]], ids=" ".join)
async def test_lines_are_shown(terminal: Terminal, spelling: list[str]) -> None:
    assert await terminal.run(*spelling) == 0
    assert terminal.out.splitlines() == [
        "MODEL\tWAITING\tLIMIT\tOLDEST\tACTIVE\tREQUESTS\tANSWERED\tREFUSED",
        "small\t0\t100\t\t0\t0\t0\t0",
        "big\t3\t50\t4.5s\t2\t12\t8\t1",
    ]
    assert [line["alias"] for line in (await terminal.json(*spelling, "big"))["queues"]] == ["big"]
    assert await terminal.run(*spelling, "nobody") == 1


@pytest.mark.parametrize("spelling", [["models", "vram"], ["ctl", "vram"]], ids=" ".join)
async def test_memory_is_shown(terminal: Terminal, spelling: list[str]) -> None:
    assert await terminal.run(*spelling) == 0
    assert terminal.out.splitlines()[1:] == [
        "GPU 0\tNVIDIA H100\t80.0 GiB\t5.0 GiB\t75.0 GiB\t12%\t41 C\t120 W\tbig 2.0 GiB",
        "RAM\tsystem memory\t64.0 GiB\t1.0 GiB\t63.0 GiB\t\t\t\tbig 1.0 GiB",
    ]
    assert (await terminal.json(*spelling))["devices"][0]["index"] == 0


# ---- loading


@BOTH
async def test_a_loads_progress_is_lines_without_a_terminal(terminal: Terminal, spelling: list[str]) -> None:
    async with terminal.begin(*spelling, "load", "small", "--keep-alive", "10m") as process:
        assert await process.line() == "small off"
        await asyncio.wait_for(terminal.manager.load_begun.wait(), PATIENCE_S)
        terminal.manager.put(model_view("small", status="loading", load_progress=40, expected_in_s=3.0))
        assert await process.line() == "small loading 40%, ready in 3.0s"
        terminal.manager.ready("small")
        assert await process.end() == 0, process.err
    assert process.lines[2:] == ["small ready 100%", "small is ready on port 41000, loaded in 3.2s"]
    assert terminal.manager.asked == [("load", "small", 600.0)]


async def test_a_load_is_shown_as_lines_of_json(terminal: Terminal) -> None:
    async with terminal.begin("models", "load", "small", "--keep-alive", "-1", "--json") as process:
        assert jsons.loads(await process.line())["status"] == "MODEL_STATUS_OFF"
        await asyncio.wait_for(terminal.manager.load_begun.wait(), PATIENCE_S)
        terminal.manager.ready("small")
        assert await process.end() == 0
    assert jsons.loads(process.lines[-1])["status"] == "MODEL_STATUS_READY"
    assert terminal.manager.asked == [("load", "small", -1.0)]


async def test_a_failed_load_is_one_sentence(terminal: Terminal) -> None:
    async with terminal.begin("models", "load", "small") as process:
        await process.line()
        await asyncio.wait_for(terminal.manager.load_begun.wait(), PATIENCE_S)
        terminal.manager.fail(
            Unavailable("The model 'small' needs about 9000 MB of memory.", code="vram_exhausted")
        )
        assert await process.end() == 1
    assert process.err == "error: The model 'small' needs about 9000 MB of memory.\n"
    assert terminal.manager.asked == [("load", "small", None)]


async def test_ending_the_command_does_not_stop_the_load(terminal: Terminal) -> None:
    async with terminal.begin("models", "load", "small") as process:
        await process.line()
        await asyncio.wait_for(terminal.manager.load_begun.wait(), PATIENCE_S)
        process.process.send_signal(2)  # as Ctrl-C does
        assert await process.end() == 130
    terminal.manager.ready("small")
    await asyncio.wait_for(terminal.manager.load_ended.wait(), PATIENCE_S)
    assert not terminal.manager.load_was_cut


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", 600),
        ("1h30m", 5400),
        ("90", 90),
        ("1.5s", 1.5),
        ("250ms", 0.25),
        ("2d", 172_800),
        ("0", 0),
        ("-1", -1),
        ("-5m", -300),
    ],
)
def test_keep_alive_is_parsed_as_in_ollama(text: str, expected: float) -> None:
    assert commands.parse_keep_alive(text) == expected


@pytest.mark.parametrize("text", ["soon", "10 m", "m", "-", "1h-30m", "inf", "nan", "1e3"])
def test_an_invalid_keep_alive_is_wrong_usage(text: str) -> None:
    with pytest.raises(CallFailed, match="--keep-alive") as found:
        commands.parse_keep_alive(text)
    assert found.value.exit_code == 2


# ---- ejecting, resetting, pinning


@BOTH
async def test_a_model_is_ejected(terminal: Terminal, spelling: list[str]) -> None:
    assert await terminal.run(*spelling, "eject", "big") == 0
    assert terminal.out == "big is unloaded (2 requests finished first)\n"
    assert await terminal.run(*spelling, "eject", "big") == 0
    assert terminal.out == "big was not loaded\n"
    terminal.manager.put(ready_view("big"))
    assert await terminal.run(*spelling, "eject", "big", "--force") == 0
    assert terminal.out == "big is unloaded (2 requests cut off)\n"
    terminal.manager.put(ready_view("big"))
    assert (await terminal.json(*spelling, "eject", "big"))["was_loaded"] is True
    assert [asked[-1] for asked in terminal.manager.asked] == [False, False, True, False]


@BOTH
async def test_a_failed_model_is_reset(terminal: Terminal, spelling: list[str]) -> None:
    terminal.manager.failures["small"] = FailedView("small", 3, "the file is cut short")
    assert await terminal.run(*spelling, "reset", "small") == 0
    assert terminal.out == "small can be loaded again; 3 loads had failed: the file is cut short\n"
    assert await terminal.run(*spelling, "reset", "small") == 0
    assert terminal.out == "small had no failures\n"
    assert (await terminal.json(*spelling, "reset", "small"))["had_failures"] is False


@BOTH
async def test_a_model_is_pinned_and_unpinned(terminal: Terminal, spelling: list[str]) -> None:
    assert await terminal.run(*spelling, "pin", "big") == 0
    assert (terminal.out, terminal.manager.views["big"].is_pinned) == ("big is pinned\n", True)
    assert await terminal.run(*spelling, "unpin", "big") == 0
    assert (terminal.out, terminal.manager.views["big"].is_pinned) == ("big is not pinned\n", False)
    assert (await terminal.json(*spelling, "pin", "big"))["model"]["is_pinned"] is True


# ---- errors and exit codes


@BOTH
@pytest.mark.parametrize("verb", ["load", "eject", "reset", "pin", "unpin"])
async def test_a_model_that_is_not_there_is_exit_code_1(
    terminal: Terminal, spelling: list[str], verb: str
) -> None:
    assert await terminal.run(*spelling, verb, "nobody") == 1
    assert (terminal.out, terminal.err) == ("", "error: There is no model 'nobody'.\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "dream"],
        ["models", "load"],
        ["models", "load", "small", "--keep-alive", "soon"],
        ["models", "--interval", "-1"],
        ["models", "--address", "nowhere"],
        ["ctl", "model", "dream"],
        ["ctl", "models", "dream"],
        ["models", "check", "--loud"],
        ["models", "schema", "--loud"],
    ],
    ids=" ".join,
)
async def test_wrong_usage_is_exit_code_2(terminal: Terminal, arguments: list[str]) -> None:
    assert await terminal.run(*arguments) == 2
    assert terminal.err
    assert terminal.out == ""
    assert terminal.manager.asked == []


async def test_an_unreachable_appliance_is_exit_code_3(terminal: Terminal, tmp_path: Path) -> None:
    assert await terminal.run("models", "--address", f"unix:{tmp_path / 'none.sock'}") == 3
    assert terminal.err.startswith("error: No appliance responds at unix:")


async def test_a_missing_token_is_exit_code_4(tmp_path: Path) -> None:
    fake = FakeAppliance()
    fake.manager = ScriptedManager(model_view("small"))
    path = tmp_path / "c.sock"
    async with serving_control(
        control_settings(control_socket=path, control_token="a-long-random-token"), fake.parts()
    ):
        terminal = Terminal(fake, fake.manager, f"unix:{path}")
        assert await terminal.run("models", "eject", "small") == 4
        terminal.environ["CONTROL_TOKEN"] = "a-long-random-token"
        assert await terminal.run("models", "eject", "small") == 0


async def test_an_appliance_without_models_says_what_to_set(tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    fake = FakeAppliance()
    async with serving_control(control_settings(control_socket=path), fake.parts()):
        terminal = Terminal(fake, ScriptedManager(), f"unix:{path}")
        assert await terminal.run("models") == 0
        assert terminal.out == f"{HEADERS}\n"
        assert await terminal.run("models", "load", "small") == 1
        assert "MODEL_DIR" in terminal.err


async def test_help_names_every_verb_of_both_spellings(terminal: Terminal) -> None:
    assert await terminal.run("models", "--help") == 0
    for verb in ("list", "show", "load", "eject", "reset", "pin", "unpin", "queue", "vram"):
        assert re.search(rf"\b{verb}\b", terminal.out), verb
    assert await terminal.run("ctl", "--help") == 0
    for verb in ("models", "model", "queue", "vram"):
        assert re.search(rf"\b{verb}\b", terminal.out), verb


# ---- on a terminal


class Screen:
    """What a command writes to a terminal of its own."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.text = ""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.ours, self._read)

    def _read(self) -> None:
        try:
            self.text += os.read(self.ours, 65_536).decode(errors="replace")
        except OSError:  # the last one who could write has gone
            asyncio.get_running_loop().remove_reader(self.ours)
        self._more.set()

    async def shows(self, words: str) -> None:
        """Wait until the words were written, whatever was written between their letters to steer the terminal."""
        async with asyncio.timeout(PATIENCE_S):
            while words not in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text):
                self._more.clear()
                await self._more.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.ours)
        os.close(self.ours)
        os.close(self.theirs)


@asynccontextmanager
async def on_a_screen(
    terminal: Terminal, *arguments: str
) -> AsyncIterator[tuple[Screen, asyncio.subprocess.Process]]:
    screen = Screen()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "appliance",
        *arguments,
        stdin=screen.theirs,
        stdout=screen.theirs,
        stderr=screen.theirs,
        env={**terminal.environ, "TERM": "xterm-256color", "COLUMNS": "150", "LINES": "30"},
    )
    try:
        yield screen, process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        screen.close()


async def test_on_a_terminal_a_load_has_a_progress_bar(terminal: Terminal) -> None:
    async with on_a_screen(terminal, "models", "load", "small") as (screen, process):
        await asyncio.wait_for(terminal.manager.load_begun.wait(), PATIENCE_S)
        terminal.manager.put(model_view("small", status="loading", load_progress=40, expected_in_s=3.0))
        await screen.shows("━")
        await screen.shows(" 40% ")
        await screen.shows("ready in 3.0s")
        terminal.manager.ready("small")
        await screen.shows("100%")
        await screen.shows("small is ready on port 41000, loaded in 3.2s")
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0


async def test_on_a_terminal_the_watched_table_is_refreshed_in_place(terminal: Terminal) -> None:
    async with on_a_screen(terminal, "models", "--watch") as (screen, process):
        await screen.shows("in 4m 30s")
        terminal.fake.clock.advance(5)
        await screen.shows("in 4m 25s")  # without any change: it counts down
        terminal.manager.put(model_view("small", status="starting", load_progress=0))
        await screen.shows("starting 0%")
        assert "\x1b[1A" in screen.text  # up again, over what was there
        terminal.fake.become("stopping")
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) == 0
