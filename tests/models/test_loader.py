"""How a llama-server comes to be ready and goes again: its program, its port, its record.

The real program, and ones that are none.
"""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.base.tasks import Tasks
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits
from appliance.models.runner import loader as loader_module
from appliance.models.runner import program as program_module
from appliance.models.runner.failures import LoadFailed
from appliance.models.runner.loader import Loader
from appliance.models.runner.orphans import Records
from appliance.models.runner.ports import find_free_port, owner_of
from appliance.models.runner.proc import started_ticks
from appliance.models.runner.process import Process, StopTimes
from appliance.models.runner.program import find_program
from appliance.models.runner.runner import Runner
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.entries import Params, System

pytestmark = pytest.mark.timeout(60)


class Yard:
    """A loader with the real program, and models for it."""

    def __init__(self, loader: Loader, binary: str, folder: Path) -> None:
        self.loader, self.folder = loader, folder
        self.system = System().model_copy(update={"cpu_threads": 1})
        self.binary = binary
        self.serial = 0

    def runner(self, **params: object) -> Runner:
        self.serial += 1
        model = Model(
            "tiny", self.folder / "tiny-chat.gguf", Params(n_ctx=2048).model_copy(update=params), "table"
        )
        return Runner(self.serial, "tiny", model, (-1,), 1, 1, 0.0, 0.0)

    async def load(self, runner: Runner, binary: str | None = None) -> None:
        await self.loader.load(
            runner,
            None,
            Catalogue(
                {"tiny": runner.model}, self.system, llama_server=self.binary if binary is None else binary
            ),
            lambda: None,
        )

    def records(self) -> list[dict[str, object]]:
        return [json.loads(path.read_text()) for path in self.loader.records._folder.glob("*.json")]


@pytest.fixture
async def yard(tmp_path: Path, llama_binary: str, tiny_models: Path) -> AsyncIterator[Yard]:
    tasks, wire = Tasks(), ConnectionPool(PoolLimits())
    first = find_free_port((), 20_000 + os.getpid() % 9000, 29_900)
    loader = Loader(
        log_dir=tmp_path / "logs",
        records=Records(tmp_path / "runners"),
        environ=os.environ,
        tasks=tasks,
        wire=wire,
        first_port=first,
        last_port=first + 90,
        times=StopTimes(5.0, 5.0),
    )
    runners: list[Runner] = []
    made = Yard(loader, llama_binary, tiny_models)
    plain = made.runner

    def remembered(**params: object) -> Runner:
        runner = plain(**params)
        runners.append(runner)
        return runner

    made.runner = remembered  # type: ignore[method-assign]
    yield made
    for runner in runners:
        assert await loader.stop(runner) != "stuck"
    await tasks.close()
    await wire.close()


async def test_it_comes_up_with_a_record_and_goes_with_it(yard: Yard) -> None:
    runner = yard.runner()
    await yard.load(runner)
    process = runner.process
    assert process is not None
    assert owner_of(runner.port, process.pid) == "ours"
    assert [(row["pid"], row["port"], row["alias"], row["command"]) for row in yard.records()] == [
        (process.pid, runner.port, "tiny", process.command)
    ]
    assert process.log_path.name == f"tiny_{runner.port}.log"
    assert await yard.loader.stop(runner) == "term"
    assert (yard.records(), yard.loader._ports) == ([], {})


async def test_two_side_by_side_get_ports_of_their_own(yard: Yard) -> None:
    runners = [yard.runner() for _ in range(2)]
    await asyncio.gather(*map(yard.load, runners))
    assert len({runner.port for runner in runners}) == 2


async def test_port_taken_meanwhile_is_replaced_by_another(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", yard.loader.first_port))
        squatter.listen()
        squatted = squatter.getsockname()[1]
        given: list[int] = []

        def blind(taken: set[int], first: int, last: int) -> int:
            """As if it had been free when it was looked at."""
            given.append(squatted if squatted not in taken else find_free_port(taken, first, last))
            return given[-1]

        monkeypatch.setattr(loader_module, "find_free_port", blind)
        runner = yard.runner()
        await yard.load(runner)
    assert (given[0], runner.port) == (squatted, given[1])
    assert len(yard.records()) == 1
    assert set(yard.loader._ports) == {runner.port}


async def test_five_taken_ports_end_the_load(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = LoadFailed("couldn't bind", is_port=True)

    async def fails(self: Process, limit_s: float, on_progress: object) -> None:
        raise taken

    def next_port(taken: set[int], first: int, last: int) -> int:
        """Other programs of this machine take none of them meanwhile."""
        return max(taken, default=first - 1) + 1

    monkeypatch.setattr(Process, "wait_ready", fails)
    monkeypatch.setattr(loader_module, "find_free_port", next_port)
    first = yard.loader.first_port
    with pytest.raises(LoadFailed, match=f"took each of 5 ports, the last was {first + 4}") as caught:
        await yard.load(yard.runner())
    assert caught.value.can_retry
    assert (yard.records(), yard.loader._ports) == ([], {})


async def test_stop_during_the_start_leaves_nothing(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = yard.runner()
    add, spawned = yard.loader.records.add, list[int]()

    def add_and_stop(pid: int, *, port: int, alias: str, command: list[str], mark: str) -> None:
        add(pid, port=port, alias=alias, command=command, mark=mark)
        spawned.append(pid)
        runner.is_stop_requested = True  # its stop came a moment ago, when there was no process yet

    monkeypatch.setattr(yard.loader.records, "add", add_and_stop)
    with pytest.raises(LoadFailed, match="it was stopped while it was started"):
        await yard.load(runner)
    assert started_ticks(spawned[0]) is None
    assert (yard.records(), yard.loader._ports) == ([], {})


async def test_stop_before_the_start_starts_nothing(yard: Yard) -> None:
    runner = yard.runner()
    runner.is_stop_requested = True
    with pytest.raises(LoadFailed, match="it was stopped before it was started"):
        await yard.load(runner)
    assert runner.process is not None
    assert runner.process.pid == 0


async def test_a_second_stop_does_not_free_what_is_anothers_by_now(yard: Yard) -> None:
    runner = yard.runner()
    await yard.load(runner)
    await yard.loader.stop(runner)
    other = yard.runner()
    await yard.load(other)
    assert other.port == runner.port
    await yard.loader.stop(runner)
    assert yard.loader._ports == {other.port: other.serial}


async def test_one_that_cannot_be_loaded_leaves_no_record_and_no_port(yard: Yard, tmp_path: Path) -> None:
    runner = yard.runner()
    (tmp_path / "none.gguf").write_bytes(b"GGUF and nothing else")
    runner.model = Model("tiny", tmp_path / "none.gguf", Params(), "table")
    with pytest.raises(LoadFailed, match="failed to read") as caught:
        await yard.load(runner)
    assert not caught.value.can_retry
    assert (yard.records(), yard.loader._ports) == ([], {})


async def test_option_unknown_to_this_server_is_a_permanent_failure(yard: Yard, tmp_path: Path) -> None:
    program = tmp_path / "older"
    program.write_text("#!/bin/sh\necho '--port N  --model F  --ctx-size N'\n")
    program.chmod(0o755)
    runner = yard.runner(chat_template="chatml")
    with pytest.raises(LoadFailed, match="chat_template") as caught:
        await yard.load(runner, str(program))
    assert not caught.value.can_retry
    assert yard.loader._ports == {}


async def test_without_a_free_port_it_may_be_tried_again(yard: Yard) -> None:
    yard.loader.last_port = yard.loader.first_port - 1
    runner = yard.runner()
    with pytest.raises(LoadFailed, match="are taken") as caught:
        await yard.load(runner)
    assert caught.value.can_retry


# ---- the program


async def test_changed_program_is_used_from_the_next_load_on(yard: Yard, tmp_path: Path) -> None:
    runner = yard.runner()
    await yard.load(runner)
    link = tmp_path / "other-llama-server"
    link.symlink_to(yard.binary)
    other = yard.runner()
    await yard.load(other, str(link))
    assert other.process is not None
    assert other.process.command[0] == str(link)


async def test_missing_program_fails_the_load_and_is_found_later(yard: Yard, tmp_path: Path) -> None:
    link = tmp_path / "late-llama-server"
    runner = yard.runner()
    with pytest.raises(
        LoadFailed, match=r"llama-server not found: .*late-llama-server. Set LLAMA_SERVER_PATH"
    ) as caught:
        await yard.load(runner, str(link))
    assert not caught.value.can_retry
    link.symlink_to(yard.binary)
    await yard.load(runner, str(link))
    assert runner.process is not None


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("#!/bin/sh\necho hello\n", "is not that of a llama-server (exit code 0)"),
        ("#!/bin/sh\nexit 3\n", "is not that of a llama-server (exit code 3)"),
        ("#!/nowhere/interpreter\n", "failed:"),
        ("#!/bin/sh\nsleep 5\n", "failed:"),
        ("#!/bin/sh\nprintf '\\377\\376 --porto'\n", "is not that of a llama-server"),
    ],
)
def test_program_that_is_no_llama_server_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, problem: str
) -> None:
    monkeypatch.setattr(program_module, "HELP_TIMEOUT_S", 0.3)
    program = tmp_path / "program"
    program.write_text(script)
    program.chmod(0o755)
    assert problem in find_program(str(program)).problem


def test_help_is_read_without_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVITA_API_KEY", "sk-secret")
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nenv > {tmp_path}/seen\necho '--port N'\n")
    program.chmod(0o755)
    assert find_program(str(program)).problem == ""
    assert "sk-secret" not in (tmp_path / "seen").read_text()


def test_the_real_one_is_known_by_its_help(llama_binary: str) -> None:
    program = find_program(llama_binary)
    assert (program.path, program.problem) == (llama_binary, "")
    assert "--ctx-size" in program.flags.names


def server(path: Path, *, knows: str) -> str:
    """Write a program that helps as a llama-server does, and counts how often it was asked."""
    path.write_text(f"#!/bin/sh\necho x >> {path}.asked\necho '--port PORT {knows}'\n")
    path.chmod(0o755)
    return str(path)


def bare_loader(tmp_path: Path, tasks: Tasks) -> Loader:
    return Loader(
        log_dir=tmp_path,
        records=Records(tmp_path / "runners"),
        environ={},
        tasks=tasks,
        wire=ConnectionPool(PoolLimits()),
    )


async def looked(tmp_path: Path, *wanted: str) -> Loader:
    async with Tasks() as tasks:
        loader = bare_loader(tmp_path, tasks)
        for one in wanted:
            await loader.find_program(Catalogue({}, llama_server=one))
        return loader


async def test_a_llama_server_is_asked_once_for_its_help(tmp_path):
    one = server(tmp_path / "one", knows="--jinja")
    loader = await looked(tmp_path, one, one, one)
    assert "--jinja" in loader.program.flags.names
    assert Path(f"{one}.asked").read_text() == "x\n"


async def test_loads_that_begin_while_it_is_asked_wait_for_that(tmp_path):
    one = server(tmp_path / "one", knows="--jinja")
    async with Tasks() as tasks:
        loader = bare_loader(tmp_path, tasks)
        await asyncio.gather(*(loader.find_program(Catalogue({}, llama_server=one)) for _ in range(3)))
    assert Path(f"{one}.asked").read_text() == "x\n"


async def test_after_a_reload_the_new_llama_server_is_used(tmp_path):
    loader = await looked(
        tmp_path, server(tmp_path / "one", knows="--jinja"), two := server(tmp_path / "two", knows="--mlock")
    )
    assert loader.program.path == two
    assert "--mlock" in loader.program.flags.names


async def test_missing_program_is_looked_for_again(tmp_path):
    loader = await looked(tmp_path, str(tmp_path / "one"))
    assert "not found" in loader.program.problem
    server(tmp_path / "one", knows="--jinja")
    await loader.find_program(Catalogue({}, llama_server=str(tmp_path / "one")))
    assert not loader.program.problem
