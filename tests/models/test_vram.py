"""GPU memory as the driver reports it.

GPUs through a stand-in for NVML in a process of its own, system memory from files of ours and the real /proc.
"""

import json
import mmap
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.errors import Unavailable
from appliance.models.runner import vram
from appliance.models.runner.proc import descendants_of
from appliance.models.runner.system_memory import SystemMemory
from appliance.models.runner.vram import pick_memory, wait_memory_freed
from appliance.models.status.views import RAM, DeviceView
from tests.tools import fake_nvml
from tests.tools.fake_nvml import Figures

MIB, GIB = 1 << 20, 1 << 30

# Answers one line of JSON for each line that it reads: `read`, `of PID`, `pick_memory {arguments}`, `wait
# BEFORE EXPECTED`. It writes `waiting` before the first reading of a wait.
SERVE = """
import asyncio, json, logging, sys
from dataclasses import asdict
from appliance.base.errors import ApplianceError
from appliance.base import logs
from appliance.models.runner.vram import NvmlMemory, pick_memory, wait_memory_freed
logs.configure(level="info", form="json", stream=sys.stderr)
report = lambda value: print(json.dumps(value), flush=True)
try:
    memory = NvmlMemory(json.loads(sys.argv[1]))
    report("there")
except ApplianceError as exc:
    report([type(exc).__name__, exc.message])
for line in sys.stdin:
    word, _, rest = line.strip().partition(" ")
    try:
        if word == "read":
            report([asdict(view) for view in memory.read()])
        elif word == "of":
            report(list(memory.of_process(int(rest)).items()))
        elif word == "pick_memory":
            chosen, why = pick_memory(**json.loads(rest))
            report([type(chosen).__name__, chosen.is_gpu, why])
        elif word == "wait":
            before, expected = map(int, rest.split())
            report("waiting")
            report(asyncio.run(wait_memory_freed(memory, [0], {0: before}, expected, limit_s=20)))
    except ApplianceError as exc:
        report([type(exc).__name__, exc.message])
"""


class Believer:
    """A process that uses the fake driver: it reads commands by lines and responds by lines."""

    def __init__(self, library: Path, figures: Figures, devices: list[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(devices)],
            env=fake_nvml.environ(library, figures),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.start = self.answer()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], 30)[0], "no answer in 30 s"
        return json.loads(self._process.stdout.readline())

    def send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def ask(self, line: str) -> Any:
        self.send(line)
        return self.answer()

    def close(self) -> list[dict]:
        """End it, and give what it logged."""
        _, errors = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, errors
        return [json.loads(line) for line in errors.splitlines()]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("the stand-in for NVML is compiled by gcc")
    return fake_nvml.compiled(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def figures(tmp_path: Path) -> Figures:
    made = Figures(tmp_path / "gpus")
    made.gpu(0, total_mib=24_576, used_mib=1024, percent=30, celsius=55, watts=120)
    made.gpu(1, total_mib=8192, used_mib=512)
    return made


@pytest.fixture
def believe(library: Path, figures: Figures) -> Iterator[Callable[..., Believer]]:
    made: list[Believer] = []

    def believe(*devices: int) -> Believer:
        made.append(Believer(library, figures, list(devices)))
        return made[-1]

    yield believe
    for one in made:
        if one._process.returncode is None:
            one.close()


# --- GPUs


def test_all_of_gpu_devices_are_read_in_their_order(believe: Callable[..., Believer]) -> None:
    second, first = believe(1, 0).ask("read")
    assert first == {
        "index": 0,
        "name": "NVIDIA H200 (stand-in)",
        "total_bytes": 24 * GIB,
        "used_bytes": GIB,
        "free_bytes": 23 * GIB,
        "utilization_percent": 30.0,
        "temperature_celsius": 55.0,
        "power_watts": 120.0,
    }
    assert (second["index"], second["total_bytes"], second["free_bytes"]) == (1, 8 * GIB, 8 * GIB - 512 * MIB)


def test_next_reading_shows_memory_reported_as_full(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    gpu = believe(0)
    assert gpu.ask("read")[0]["free_bytes"] == 23 * GIB
    figures.gpu(0, total_mib=24_576, used_mib=24_576)
    assert gpu.ask("read")[0]["free_bytes"] == 0


def test_figures_that_the_driver_does_not_measure_are_none(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    figures.gpu(0, percent=-1, celsius=-1, watts=-1)
    view = believe(0).ask("read")[0]
    assert (view["utilization_percent"], view["temperature_celsius"], view["power_watts"]) == (
        None,
        None,
        None,
    )
    assert view["total_bytes"] == 24 * GIB


def test_lost_gpu_is_shown_as_last_known_and_logged_once(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    gpu = believe(0, 1)
    known = gpu.ask("read")
    figures.lose(0)
    figures.gpu(1, total_mib=8192, used_mib=1024)
    first, second = gpu.ask("read")
    assert first == known[0]
    assert second["used_bytes"] == GIB
    assert gpu.ask("read")[0] == known[0]
    figures.find_again(0)
    figures.gpu(0, total_mib=24_576, used_mib=2048)
    assert gpu.ask("read")[0]["used_bytes"] == 2 * GIB
    figures.lose(0)
    assert gpu.ask("read")[0]["used_bytes"] == 2 * GIB
    logged = [line for line in gpu.close() if line["event"] == "memory_unreadable"]
    assert [(line["device"], line["error"], line["last_free_bytes"]) for line in logged] == [
        (0, "GPU is lost", 23 * GIB),
        (0, "GPU is lost", 22 * GIB),
    ]


def test_a_driver_that_goes_away_raises_nothing(believe: Callable[..., Believer], figures: Figures) -> None:
    gpu = believe(0)
    known = gpu.ask("read")
    figures.fail(9)
    assert gpu.ask("read") == known
    assert gpu.ask("of 1") == []


def test_a_process_is_counted_with_what_it_started(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    script = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    child = int(script.stdout.readline())
    try:
        figures.process(0, child, 700)
        figures.process(1, script.pid, 100)
        figures.process(0, os.getpid(), 5000)
        gpu = believe(0, 1)
        assert gpu.ask(f"of {script.pid}") == [[0, 700 * MIB], [1, 100 * MIB]]
        assert gpu.ask(f"of {child}") == [[0, 700 * MIB]]
    finally:
        os.kill(child, 9)
        script.wait(10)


def test_process_in_both_lists_counts_once(believe: Callable[..., Believer], figures: Figures) -> None:
    mine = os.getpid()
    figures.process(0, mine, 300)
    figures.process(0, mine, 300, kind="graphics")
    figures.process(1, mine, -1)
    assert believe(0, 1).ask(f"of {mine}") == [[0, 300 * MIB]]


@pytest.mark.parametrize(("devices", "named"), [([0, 2], "GPU 2"), ([-1], "GPU -1")])
def test_an_index_that_does_not_exist_is_refused_at_once(
    believe: Callable[..., Believer], devices: list[int], named: str
) -> None:
    kind, text = believe(*devices).start
    assert kind == "Invalid"
    assert f"names {named}, but the driver has GPUs 0 to 1. Correct system.gpu_devices" in text


def test_an_index_that_does_not_exist_is_never_taken_for_no_gpu(believe: Callable[..., Believer]) -> None:
    assert believe(0).ask('pick_memory {"gpu_devices": [7], "is_simulated": false}')[0] == "Invalid"


def test_real_gpus_are_taken_and_named(believe: Callable[..., Believer]) -> None:
    assert believe(0).ask('pick_memory {"gpu_devices": [0, 1], "is_simulated": false}') == [
        "NvmlMemory",
        True,
        "GPU memory of 0 (NVIDIA H200 (stand-in)), 1 (NVIDIA H200 (stand-in))",
    ]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"gpu_devices": [0], "is_simulated": True}, "simulated and has none"),
        ({"gpu_devices": [0], "is_simulated": False, "offloads": False}, "no model puts layers on a GPU"),
        ({"gpu_devices": [], "is_simulated": False}, "gpu_devices is empty"),
    ],
)
def test_system_memory_is_picked_when_no_layer_is_on_a_gpu(
    believe: Callable[..., Believer], given: dict, why: str
) -> None:
    name, is_gpu, text = believe(0).ask("pick_memory " + json.dumps(given))
    assert (name, is_gpu) == ("SystemMemory", False)
    assert why in text


def test_without_a_working_driver_system_memory_is_used(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    figures.fail(9)
    gpu = believe(0)
    assert gpu.start == ["Unavailable", "the NVIDIA driver does not respond: Driver Not Loaded"]
    assert gpu.ask('pick_memory {"gpu_devices": [0], "is_simulated": false}') == [
        "SystemMemory",
        False,
        "system memory: the NVIDIA driver does not respond: Driver Not Loaded",
    ]


class NoDevices:
    """Bindings of a driver that counts no GPU, or that does not show the memory of one."""

    class NVMLError(Exception):
        """The driver's own error."""

    def __init__(self, count: int) -> None:
        self.count = count

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        raise self.NVMLError("Not Supported")


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "the NVIDIA driver reports no GPU"),
        (1, "the NVIDIA driver does not show the memory of the GPUs [0]: Not Supported"),
    ],
)
def test_driver_without_a_usable_gpu(monkeypatch: pytest.MonkeyPatch, count: int, message: str) -> None:
    monkeypatch.setattr(vram, "_start_nvml", lambda: NoDevices(count))
    with pytest.raises(Unavailable) as caught:
        vram.NvmlMemory([0])
    assert caught.value.message == message


def test_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(vram.ctypes, "CDLL", missing)
    with pytest.raises(Unavailable, match=r"there is no NVIDIA driver \(libnvidia-ml.so.1\)"):
        vram.NvmlMemory([0])


def test_driver_without_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vram.ctypes, "CDLL", lambda name: None)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(Unavailable, match="the NVML bindings are not installed"):
        vram.NvmlMemory([0])


def test_gpu_that_does_not_report_its_memory_is_not_used(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    figures.lose(0)
    name, _, why = believe(1).ask('pick_memory {"gpu_devices": [0], "is_simulated": false}')
    assert (name, "GPU is lost" in why) == ("SystemMemory", True)


def test_memory_that_comes_back_late_is_waited_for(
    believe: Callable[..., Believer], figures: Figures
) -> None:
    gpu = believe(0)
    gpu.send(f"wait {23 * GIB} {GIB}")
    assert gpu.answer() == "waiting"
    figures.gpu(0, total_mib=24_576, used_mib=0)
    assert gpu.answer() is True


# --- waiting, decided without a clock


class Scripted:
    """Memory whose free bytes follow a list; the last stays."""

    def __init__(self, *free: int, is_gpu: bool = True) -> None:
        self.is_gpu, self._free, self.reads = is_gpu, list(free), 0

    def read(self) -> list[DeviceView]:
        self.reads += 1
        free = self._free.pop(0) if len(self._free) > 1 else self._free[0]
        return [DeviceView(0, "scripted", 1000, 1000 - free, free)]

    def of_process(self, pid: int) -> dict[int, int]:
        return {}


async def waited(memory: Scripted, expected: int, *, limit_s: float = 5.0) -> bool:
    async def sleep(_: float) -> None: ...

    return await wait_memory_freed(memory, [0], {0: 100}, expected, limit_s=limit_s, sleep=sleep)


async def test_wait_ends_when_nine_tenths_are_freed() -> None:
    memory = Scripted(100, 100, 300, 820)
    assert await waited(memory, 800)
    assert memory.reads == 4


async def test_wait_ends_early_when_no_more_memory_is_freed() -> None:
    memory = Scripted(100, 400)
    assert not await waited(memory, 800)
    assert memory.reads == 7  # the first, the rise, and five without a change


async def test_wait_goes_on_until_memory_begins_to_be_freed() -> None:
    memory = Scripted(*[100] * 30, 900)
    assert await waited(memory, 800)


async def test_wait_ends_at_its_limit() -> None:
    memory = Scripted(100)
    assert not await waited(memory, 800, limit_s=2)
    assert memory.reads == 20


async def test_system_memory_needs_no_wait() -> None:
    memory = Scripted(100, is_gpu=False)
    assert await waited(memory, 800)
    assert memory.reads == 0


# --- system memory


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., SystemMemory]:
    def machine(
        files: dict[str, str] | None = None,
        *,
        total_kib: int = 1000,
        available_kib: int = 600,
        group: str = "0::/a/b",
    ) -> SystemMemory:
        texts = {
            "proc/meminfo": f"MemTotal: {total_kib} kB\nMemFree: 10 kB\nMemAvailable: {available_kib} kB\nHugePages_Total: 0\n",
            "proc/self/cgroup": f"2:cpu:/elsewhere\n{group}\n",
            **(files or {}),
        }
        for name, text in texts.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return SystemMemory(proc=tmp_path / "proc", cgroups=tmp_path / "cgroup")

    return machine


def sizes(memory: SystemMemory) -> tuple[int, int, int]:
    """In KiB: total, used, free."""
    (view,) = memory.read()
    assert view.index == RAM
    return view.total_bytes >> 10, view.used_bytes >> 10, view.free_bytes >> 10


def group_v2(limit: str, used_kib: int, reclaimable_kib: int, **more: str) -> dict[str, str]:
    return {
        "memory.max": limit,
        "memory.current": str(used_kib << 10),
        "memory.stat": f"anon 5\ninactive_file {reclaimable_kib << 10}\n",
        **more,
    }


def at(folder: str, files: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": text for name, text in files.items()}


def test_without_limits_all_memory_of_the_machine_counts(machine: Callable[..., SystemMemory]) -> None:
    assert sizes(machine()) == (1000, 400, 600)


def test_group_limit_bounds_memory_and_cache_is_free(
    machine: Callable[..., SystemMemory],
) -> None:
    assert sizes(machine(at("cgroup/a/b", group_v2(str(500 << 10), 300, 100)))) == (500, 200, 300)


def test_the_machine_can_be_tighter_than_the_group(machine: Callable[..., SystemMemory]) -> None:
    assert sizes(machine(at("cgroup/a/b", group_v2(str(900 << 10), 50, 0)), available_kib=70)) == (
        900,
        830,
        70,
    )


def test_the_tightest_group_on_the_way_up_counts(machine: Callable[..., SystemMemory]) -> None:
    above = at("cgroup/a", group_v2(str(300 << 10), 250, 0))
    assert sizes(machine({**at("cgroup/a/b", group_v2("max", 200, 0)), **above})) == (300, 250, 50)


def test_memory_high_of_a_group_is_a_limit_too(machine: Callable[..., SystemMemory]) -> None:
    assert sizes(machine(at("cgroup/a/b", group_v2("max", 100, 0, **{"memory.high": str(400 << 10)})))) == (
        400,
        100,
        300,
    )


def test_a_group_over_its_limit_has_nothing_left(machine: Callable[..., SystemMemory]) -> None:
    assert sizes(machine(at("cgroup/a/b", group_v2(str(500 << 10), 600, 0)))) == (500, 500, 0)


@pytest.mark.parametrize("group", ["0::/", "0::/not/mounted/here", "0::/../outside"])
def test_in_a_container_the_root_of_the_mount_is_our_group(
    machine: Callable[..., SystemMemory], group: str
) -> None:
    assert sizes(machine(at("cgroup", group_v2(str(500 << 10), 300, 0)), group=group)) == (500, 300, 200)


def test_groups_of_the_first_version_are_read_too(machine: Callable[..., SystemMemory]) -> None:
    ours = at(
        "cgroup/memory/a",
        {
            "memory.limit_in_bytes": str(500 << 10),
            "memory.usage_in_bytes": str(300 << 10),
            "memory.stat": f"inactive_file 0\ntotal_inactive_file {100 << 10}\n",
        },
    )
    no_limit = at(
        "cgroup/memory",
        {"memory.limit_in_bytes": str(2**63 - 4096), "memory.usage_in_bytes": "0", "memory.stat": ""},
    )
    assert sizes(machine({**ours, **no_limit}, group="4:memory:/a\n0::/")) == (500, 200, 300)


def test_a_reading_that_fails_gives_what_was_last_known(
    machine: Callable[..., SystemMemory], tmp_path: Path
) -> None:
    memory = machine()
    (tmp_path / "proc/meminfo").unlink()
    assert sizes(memory) == (1000, 400, 600)
    machine(available_kib=500)
    assert sizes(memory) == (1000, 500, 500)


def test_unknown_size_of_system_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"meminfo has no line .MemTotal.: the size of the system memory is not known"
    ):
        SystemMemory(proc=tmp_path)


def test_this_machine_is_read() -> None:
    memory, why = pick_memory([], is_simulated=False)
    (view,) = memory.read()
    assert not memory.is_gpu
    assert why == "system memory: gpu_devices is empty"
    assert 0 < view.free_bytes < view.total_bytes <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_mapped_file_counts_as_memory_of_its_process(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(os.urandom(64 * MIB))
    memory = SystemMemory()
    before = memory.of_process(os.getpid())[RAM]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert sum(mapped[i] for i in range(0, len(mapped), 4096)) > 0
        assert memory.of_process(os.getpid())[RAM] - before > 56 * MIB


def test_children_of_a_script_count_as_its_own_memory() -> None:
    grow = "import sys; held = b'x' * (64 << 20); print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        ["sh", "-c", '"$0" -c "$1"; true', sys.executable, grow],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as script:
        assert script.stdout is not None
        assert script.stdout.readline() == b"ready\n"
        assert len(descendants_of(script.pid)) == 2
        assert SystemMemory().of_process(script.pid)[RAM] > 64 * MIB


def test_exited_process_takes_no_memory() -> None:
    done = subprocess.Popen(["true"])
    done.wait(10)
    assert SystemMemory().of_process(done.pid) == {}


def test_status_is_read_where_smaps_is_not_readable(machine: Callable[..., SystemMemory]) -> None:
    assert machine({"proc/7/status": "Name:\tx\nVmRSS:\t   300 kB\n"}).of_process(7) == {RAM: 300 << 10}
    assert machine(
        {"proc/7/smaps_rollup": "00-ff ---p 00000000 00:00 0   [rollup]\nRss:  300 kB\nPss:  200 kB\n"}
    ).of_process(7) == {RAM: 200 << 10}


def test_children_are_found_by_their_parents(machine: Callable[..., SystemMemory], tmp_path: Path) -> None:
    machine(
        {
            "proc/7/stat": "7 (sh) S 1 7",
            "proc/8/stat": "8 (a) b) S 7 7",
            "proc/9/stat": "9 (c) S 8 7",
            "proc/10/stat": "10 (d) S 1 7",
        }
    )
    assert descendants_of(7, tmp_path / "proc") == [7, 8, 9]
