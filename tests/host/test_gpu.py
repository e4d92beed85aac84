"""Which GPU is here: NVML's answers through a library of our own, and the made-up one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import fake_nvml

ASK = (
    "import json,sys; from appliance.host.gpu import find_gpus;"
    "from appliance.host.settings import HostSettings;"
    "print(json.dumps(find_gpus(HostSettings.from_env(json.loads(sys.argv[1])), {}).as_dict()))"
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("the stand-in for NVML is compiled by gcc")
    return fake_nvml.compiled(tmp_path_factory.mktemp("nvml"))


def find(tmp_path: Path, library: Path | None, mode: str, **environ: str) -> dict:
    """Ask in a process of its own: NVML is loaded once a process."""
    variables = {
        "GPU_MODE": mode,
        "STATE_DIR": str(tmp_path / "state"),
        "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
    }
    given = {**os.environ, **environ, **({"LD_LIBRARY_PATH": str(library)} if library else {})}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(variables)],
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["auto", "real", "simulated"])
def test_real_gpu_is_reported_whatever_the_mode(tmp_path: Path, library: Path, mode: str) -> None:
    found = find(tmp_path, library, mode, FAKE_NVML_GPUS="2")
    assert (found["mode"], found["simulated"]) == ("real", False)
    assert [g["name"] for g in found["gpus"]] == ["NVIDIA H200 (stand-in)"] * 2
    assert found["gpus"][1]["pci_bus_id"] == "00000000:02:00.0"
    assert found["gpus"][0]["memory_total_mib"] == 143771


@pytest.mark.parametrize(
    ("environ", "reason"),
    [({"FAKE_NVML_ERROR": "9"}, "Driver Not Loaded"), ({"FAKE_NVML_GPUS": "0"}, "no device")],
)
def test_no_driver_or_device_means_no_gpu(tmp_path: Path, library: Path, environ: dict, reason: str) -> None:
    found = find(tmp_path, library, "auto", **environ)
    assert found["mode"] == "none"
    assert reason in found["reason"]


def test_mode_none_hides_a_real_gpu(tmp_path: Path, library: Path) -> None:
    assert find(tmp_path, library, "none")["gpus"] == []


def test_simulated_gpu_says_so_and_stays_the_same(tmp_path: Path, library: Path) -> None:
    first, again = (find(tmp_path, library, "simulated", FAKE_NVML_ERROR="9") for _ in range(2))
    assert first == again
    assert first["simulated"]
    assert first["gpus"][0]["name"].endswith(" (simulated)")
