"""The shim in front of nvidia-smi: a real tool gets everything, else "no driver", or a simulation."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from appliance.host.smi import shim, simulated

ROOT = Path(__file__).parent.parent.parent
SHIM = ROOT / "shims" / "nvidia-smi"
DOUBLE = ROOT / "tests" / "fakes" / "real_nvidia_smi.py"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": f"{SHIM.parent}:{os.environ['PATH']}",
        "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
        "STATE_DIR": str(tmp_path / "state"),
    }


@pytest.fixture
def real(tmp_path: Path, environ: dict[str, str]) -> dict[str, str]:
    """An environment with the double of a real tool behind the shim."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(DOUBLE, folder / "nvidia-smi")
    (folder / "nvidia-smi").chmod(0o755)
    return {
        **environ,
        "PATH": f"{SHIM.parent}:{folder}:{os.environ['PATH']}",
        "RECORD": str(tmp_path / "record.json"),
    }


def run(environ: dict[str, str], *argv: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["nvidia-smi", *argv], env={**environ, **more}, capture_output=True, input=b"typed", check=False
    )


@pytest.mark.parametrize("code", [0, 2, 6, 9, 12, 255])
@pytest.mark.parametrize("mode", ["auto", "real", ""])
def test_real_tool_gets_and_returns_everything_unchanged(real, code: int, mode: str) -> None:
    argv = ["--query-gpu=name", "--format=csv", "with blank", "", "-x=ü"]
    done = run(real, *argv, GPU_MODE=mode, REPLAY_OUT="out\n\x01ü", REPLAY_ERR="err", REPLAY_CODE=str(code))
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n\x01ü".encode(), b"err")
    record = json.loads(Path(real["RECORD"]).read_text())
    assert (record["argv"], record["stdin"]) == (argv, "typed")


def test_signals_reach_the_real_tool(real) -> None:
    process = subprocess.Popen(
        ["nvidia-smi", "-l", "1"],
        env={**real, "REPLAY_FOREVER": "1"},
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout.readline() == b"looping\n"
    assert json.loads(Path(real["RECORD"]).read_text())["pid"] == process.pid
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 42


def test_without_a_gpu_the_output_is_that_of_no_driver(environ) -> None:
    for mode in ("none", "auto"):
        done = run(environ, "-L", GPU_MODE=mode)
        if mode == "auto" and done.returncode == 0:
            pytest.skip("this machine has a GPU")
        assert (done.returncode, done.stderr) == (9, b"")
        assert b"couldn't communicate with the NVIDIA driver" in done.stdout
    assert run(environ, "-h", GPU_MODE="none").returncode == 0


def test_gpu_is_simulated_only_on_demand(environ) -> None:
    done = run(environ, "-L", GPU_MODE="simulated")
    assert done.returncode == 0
    assert b" (simulated) (UUID: GPU-" in done.stdout


def test_callers_with_another_environment_get_the_same_output(environ) -> None:
    simulated.write_shim_state({**environ, "GPU_SPOOF_NAME": "Test GPU"}, "simulated")
    assert run(environ, "-L").stdout.startswith(b"GPU 0: Test GPU (simulated)")
    assert run(environ, "-L", GPU_MODE="none").returncode == 9


def test_closed_pipe_ends_it_quietly(environ) -> None:
    done = subprocess.run(
        "nvidia-smi -q | head -1",
        shell=True,
        env={**environ, "GPU_MODE": "simulated"},
        capture_output=True,
        check=False,
    )
    assert done.stderr == b""


def test_shim_never_finds_itself(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    shutil.copy(SHIM, tmp_path / "a" / "nvidia-smi")
    os.symlink(SHIM, tmp_path / "b" / "nvidia-smi")
    path = f"{SHIM.parent}:{tmp_path}/a:{tmp_path}/b"
    found = shim.find_real(path, str(SHIM))
    assert found is None or not found.startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("mode", "real", "gpu", "who"),
    [
        ("", None, False, "none"),
        ("", "/x", False, "real"),
        ("auto", "/x", True, "real"),
        ("none", "/x", True, "none"),
        ("real", None, False, "none"),
        ("simulated", None, False, "simulated"),
        ("simulated", "/x", False, "simulated"),
        ("simulated", "/x", True, "real"),
    ],
)
def test_tool_is_chosen_by_mode_and_facts(
    tmp_path: Path,
    mode: str,
    real: str | None,
    gpu: bool,
    who: str,
) -> None:
    environ = {"GPU_MODE": mode, "GPU_SPOOF_STATE_DIR": str(tmp_path), "STATE_DIR": str(tmp_path)}
    assert shim.decide(environ, real, gpu)[0] == who
