"""The simulated nvidia-smi: every form, the mark in each of them, wrong arguments in the tool's own way."""

import csv
import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from appliance.host.settings import HostSettings
from appliance.host.smi import command as smi
from appliance.host.smi import fields as smi_fields
from appliance.host.smi import simulated

MARK = " (simulated)"
NAMES = [
    "NVIDIA GeForce RTX 4090",
    "H100" + MARK,
    "H100 (SIMULATED)",
    "X" * 64,
    "NVIDIA H100 (simulated) x",
    "Zq9  ",
    "(simulated)",
]
FORMS = [
    [],
    ["-L"],
    ["--list-gpus"],
    ["-q"],
    ["-q", "-x"],
    ["-q", "-i", "0"],
    ["-q", "-x", "-i", "0"],
    ["--query-gpu=name", "--format=csv"],
    ["--query-gpu=gpu_name,uuid", "--format=csv,noheader"],
    ["--query-gpu", "name", "--format", "csv,nounits,noheader"],
]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"), "STATE_DIR": str(tmp_path / "state")}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], environ: dict[str, str]):
    def call(*argv: str, **more: str) -> tuple[int, str]:
        code = smi.main(list(argv), {**environ, **more})
        out = capsys.readouterr()
        assert out.err == ""
        return code, out.out

    return call


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
@pytest.mark.parametrize("name", NAMES)
def test_every_name_in_every_form_ends_in_the_mark(run, form: list[str], name: str) -> None:
    code, out = run(*form, GPU_SPOOF_NAME=name, GPU_SIM_COUNT="2")
    assert code == 0
    assert out.count(MARK) >= 1
    head = "".join(c for c in name[:6] if c.isalnum())
    for line in out.splitlines():
        if head and head in line and "UUID" not in line.partition("(UUID")[0] and "Driver" not in line:
            assert MARK in line, line


def test_the_table_is_91_wide_and_keeps_the_mark(run) -> None:
    _, out = run(GPU_SIM_COUNT="3", GPU_SPOOF_NAME="A very long name of a GPU that does not fit")
    lines = out.splitlines()
    assert {len(line) for line in lines[1:]} == {91}
    rows = [line for line in lines if re.match(r"\|\s+\d  ", line)]
    assert len(rows) == 3
    assert all("... (simulated)" in row for row in rows)
    assert "No running processes found" in out


def test_csv_is_read_by_a_csv_reader(run) -> None:
    fields = [row[0] for row in smi_fields.QUERIES["gpu"]]
    _, out = run(f"--query-gpu={','.join(fields)}", "--format=csv", GPU_SIM_COUNT="2")
    header, *rows = list(csv.reader(io.StringIO(out), skipinitialspace=True))
    assert len(rows) == 2
    assert {len(row) for row in [header, *rows]} == {len(fields)}
    found = dict(zip(header, rows[0], strict=True))
    assert found["memory.total [MiB]"] == "24576 MiB"
    assert found["index"] == "0"
    assert found["power.draw [W]"] == "21.50 W"


def test_units_header_and_aliases(run) -> None:
    assert (
        run("--query-gpu=gpu_name,memory.total", "--format=csv,nounits")[1].splitlines()[0]
        == "name, memory.total [MiB]"
    )
    assert run("--query-gpu=memory.total", "--format=csv,noheader,nounits")[1] == "24576\n"
    assert (
        run("--query-gpu=memory.total", "--format=csv,noheader", GPU_SPOOF_MEMORY_TOTAL="8 GiB")[1]
        == "8192 MiB\n"
    )


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["--query-gpu=nonsense", "--format=csv"], 2, 'Field "nonsense" is not a valid field to query.\n\n'),
        (
            ["--query-gpu=name,cuda_version", "--format=csv"],
            2,
            'Field "cuda_version" is not a valid field to query.\n\n',
        ),
        (["--query-gpu=name"], 2, '"--format=" switch is missing'),
        (["--query-gpu=name", "--format=xml"], 2, "csv"),
        (["--query-gpu=name", "--format=csv,x"], 2, '"x"'),
        (["--nonsense"], 2, "--nonsense"),
        (["-Z"], 2, "-Z"),
        (["-i"], 2, "missing its value"),
        (["-L", "-i", "9"], 6, "No devices were found\n"),
        (["-q", "-i", "GPU-none"], 6, "No devices were found\n"),
        (["-l", "abc"], 2, "abc"),
        (["-q", "-d", "NONSENSE"], 2, "NONSENSE"),
        (["-x"], 2, "Invalid combination"),
        (["dmon"], 3, "not available on a simulated GPU"),
        (["-f", "/none/such/file"], 2, "/none/such/file"),
    ],
)
def test_wrong_arguments_get_text_and_exit_code_on_stdout(run, argv: list[str], code: int, text: str) -> None:
    found, out = run(*argv)
    assert found == code
    assert text in out


def test_gpu_is_selected_by_index_uuid_or_bus_id(run, environ) -> None:
    second = simulated.list_gpus({**environ, "GPU_SIM_COUNT": "2"})[1]
    for name in (
        "1",
        second.uuid,
        second.uuid.lower(),
        second.bus_id,
        second.bus_id.lower().removeprefix("00000000:"),
    ):
        assert run("-L", "-i", name, GPU_SIM_COUNT="2")[1].startswith("GPU 1: "), name


def test_report_has_colons_in_column_55_and_its_sections(run) -> None:
    _, out = run("-q")
    assert {line.index(": ") for line in out.splitlines() if ": " in line} == {55}
    assert "    FB Memory Usage\n        Total" in out
    _, part = run("-q", "-d", "memory,UTILIZATION")
    assert "FB Memory Usage" in part
    assert "Clocks" not in part


def test_the_xml_is_xml(run) -> None:
    root = ElementTree.fromstring(run("-q", "-x", GPU_SPOOF_NAME="A<&>B")[1].encode())
    gpu = root.find("gpu")
    assert gpu.findtext("product_name") == "A<&>B (simulated)"
    assert gpu.findtext("fb_memory_usage/total") == "24576 MiB"
    assert gpu.findtext("utilization/gpu_util") == "0 %"


@pytest.mark.parametrize("query", smi_fields.QUERIES)
def test_each_query_lists_and_prints_its_fields(run, query: str) -> None:
    _, out = run(f"--help-query-{query}")
    assert f'"{smi_fields.QUERIES[query][0][0]}"' in out
    code, answer = run(f"--query-{query}=gpu_uuid", "--format=csv")
    assert code == 0
    assert len(answer.splitlines()) == (2 if query == "gpu" else 1)


def test_version_help_and_file(run, tmp_path: Path) -> None:
    assert [line.partition(" :")[0].strip() for line in run("--version")[1].splitlines()] == [
        "NVIDIA-SMI version",
        "NVML version",
        "DRIVER version",
        "CUDA Version",
    ]
    assert "--query-gpu=" in run("-h")[1]
    run("-L", "-f", str(tmp_path / "out"))
    assert MARK in (tmp_path / "out").read_text()


@pytest.mark.parametrize("argv", [["-lms", "20"], ["--loop-ms=20"]])
def test_loop_runs_until_it_is_stopped(environ, argv: list[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "appliance.host.smi.command",
        "--query-gpu=index",
        "--format=csv,noheader",
        *argv,
    ]
    process = subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(3)] == ["0\n"] * 3
    process.terminate()
    assert process.wait(10) == -15


def test_defaults_of_the_shim_are_those_of_the_settings() -> None:
    settings = HostSettings.from_env({})
    for variable, default in simulated.DEFAULTS.items():
        assert str(getattr(settings, variable.lower())) == default
    assert all(
        simulated.add_mark(n).endswith(MARK) and simulated.add_mark(n).count(MARK.strip()) <= 2 for n in NAMES
    )


def test_two_processes_at_once_make_one_identity(environ) -> None:
    code = (
        "import os; from appliance.host.smi import simulated; print(simulated.list_gpus(os.environ)[0].uuid)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    found = {p.communicate()[0].strip() for p in processes}
    assert len(found) == 1
    assert re.fullmatch(
        r"GPU-[0-9A-F]{8}-[0-9A-F]{4}-4[0-9A-F]{3}-[89AB][0-9A-F]{3}-[0-9A-F]{12}", found.pop()
    )


def test_damaged_or_foreign_identity_is_not_used(environ) -> None:
    first = simulated.list_gpus(environ)[0].uuid
    path = Path(environ["GPU_SPOOF_STATE_DIR"]) / "identity.json"
    path.write_text("{ damaged")
    assert simulated.list_gpus(environ)[0].uuid != first
    second = simulated.list_gpus(environ)[0].uuid
    path.chmod(0o666)
    assert simulated.list_gpus(environ)[0].uuid != second


def test_configured_identity_is_used_for_the_first_gpu(environ) -> None:
    chosen = {
        "GPU_SPOOF_UUID": "GPU-11111111-2222-4333-8444-555555555555",
        "GPU_SPOOF_PCI_BUS_ID": "00000000:0a:00.0",
        "GPU_SIM_COUNT": "2",
    }
    first, second = simulated.list_gpus({**environ, **chosen})
    assert (first.uuid, first.bus_id) == (chosen["GPU_SPOOF_UUID"], "00000000:0A:00.0")
    assert second.uuid != first.uuid
