"""The package as people install it: from a folder, an sdist, a wheel, into an empty environment; then it is used.

The environments borrow the dependencies of the one that runs the tests, so that no registry is needed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from pathlib import Path

import pytest

from tests.journeys.running import free_port

ROOT = Path(__file__).parents[1]
IN_A_CLONE = (
    "appliance",
    "protos",
    "etc",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
)
# A PYTHONPATH would put the package from there before the installed one.
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
OFFLINE = ("--no-index", "--no-deps", "--no-build-isolation")


def clone(target: Path) -> Path:
    """Copy what a clone or an archive has, which is no generated code."""
    generated = shutil.ignore_patterns("*_pb2*.py*", "__pycache__")
    for name in IN_A_CLONE:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=generated)
        else:
            target.mkdir(exist_ok=True)
            shutil.copy(path, target / name)
    return target


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel, as `make dist` makes them from a clone."""
    source = clone(tmp_path_factory.mktemp("source") / "appliance")
    target = source / "dist"
    command = [sys.executable, "protos/package_build.py", str(target)]
    done = subprocess.run(command, cwd=source, env=ENVIRON, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in target.iterdir()) == sorted(
        Path(line).name for line in done.stdout.splitlines()[-2:]
    )
    return target


class Environment:
    """A virtual environment without pip and without the appliance."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=False)
        (site,) = (folder / "lib").glob("python*/site-packages")
        # Only what lies in that folder itself: an editable installation there is not seen.
        (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def pip(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pip", "--python", str(self.folder / "bin/python"), *words]
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**ENVIRON, **environ},
            capture_output=True,
            text=True,
            check=False,
        )

    def install(self, what: Path, **environ: str) -> None:
        done = self.pip("install", *OFFLINE, str(what), **environ)
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / "bin/appliance", *words],
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "environment")
    assert not (made.folder / "bin/appliance").exists()
    return made


def journey(environment: Environment) -> None:
    """Check, serve, chat, ask for the status, stop."""
    where = subprocess.run(
        [environment.folder / "bin/python", "-c", "import appliance; print(appliance.__file__)"],
        cwd=environment.folder,
        env=ENVIRON,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert where.startswith(str(environment.folder))
    port, control = free_port(), free_port()
    variables = {
        "PROXY_PORT": str(port),
        "CONTROL_PORT": str(control),
        "STATE_DIR": str(environment.folder / "state"),
        "MACHINE_ID_PATH": str(environment.folder / "machine-id"),
        "GPU_SPOOF_STATE_DIR": str(environment.folder / "gpu"),
        "NAT_REDIRECT": "off",
    }
    for program in ("aiserve-gpuproxyd", "aiserve-gpuproxy-admin", "aiserve-gpuproxy-client"):
        done = subprocess.run([environment.folder / "bin" / program, "-h"], capture_output=True, text=True)
        assert (done.returncode, program in done.stdout) == (0, True), done.stderr
    checked = environment.run("check", **variables)
    assert (checked.returncode, checked.stderr) == (0, "The settings are fine.\n")
    log = environment.folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [environment.folder / "bin/appliance", "serve"],
            cwd=environment.folder,
            env={"PATH": "/usr/bin:/bin", **variables},
            stdout=out,
            stderr=out,
        )
    try:
        wait_until_healthy(port, process, log)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            b'{"messages": [{"role": "user", "content": "Hello"}]}',
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            message = json.loads(answer.read())["choices"][0]["message"]
        assert message["content"] == "[demo engine] You said: Hello"
        status = environment.run("ctl", "status", "--json", CONTROL_ADDRESS=f"127.0.0.1:{control}")
        assert status.returncode == 0, status.stderr
        assert json.loads(status.stdout)["state"].endswith("SERVING")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_a_wheel_is_all_that_it_takes(dist: Path, environment: Environment) -> None:
    (wheel,) = dist.glob("*.whl")
    environment.install(wheel)
    journey(environment)


def test_an_sdist_needs_no_generator(dist: Path, environment: Environment, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden/grpc_tools"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('no generator here')")
    (sdist,) = dist.glob("*.tar.gz")
    environment.install(sdist, PYTHONPATH=str(hidden.parent))
    journey(environment)


def test_a_clone_or_an_archive_can_be_installed(environment: Environment, tmp_path: Path) -> None:
    source = clone(tmp_path / "clone")
    stale = source / "build/lib/appliance/gone.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    environment.install(source)
    journey(environment)
    assert not list(environment.folder.rglob("gone.py"))


def test_an_editable_installation_gives_the_command_too(environment: Environment, tmp_path: Path) -> None:
    source = clone(tmp_path / "clone")
    done = environment.pip("install", *OFFLINE, "-e", str(source))
    assert done.returncode == 0, done.stdout + done.stderr
    assert environment.run("ctl", "--help").returncode == 0
    assert (source / "appliance/control/v1/control_pb2.py").exists()


def test_the_install_and_start_of_router_model_custom(
    environment: Environment, tiny_models: Path, llama_binary: str, tmp_path: Path
) -> None:
    """Its guide's commands in a clone: pip install -r, cp configOriginal.json config.json, python run.py."""
    source = clone(tmp_path / "clone")
    for name in ("requirements.txt", "configOriginal.json", "run.py"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "--python", str(environment.folder / "bin/python")]
    done = subprocess.run(
        [*command, "install", *OFFLINE, "-r", "requirements.txt"],
        cwd=source,
        env=ENVIRON,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    port = free_port()
    table = (source / "configOriginal.json").read_text().replace("/app/llama-server", llama_binary)
    table = table.replace("/app/models/Qwen3-4B-Instruct.gguf", str(tiny_models / "tiny-chat.gguf"))
    (source / "config.json").write_text(table.replace("8000", str(port)))
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [environment.folder / "bin/python", "run.py"],
            cwd=source,
            env={
                "PATH": "/usr/bin:/bin",
                "CONTROL_PORT": str(free_port()),
                "STATE_DIR": str(tmp_path / "state"),
                "MACHINE_ID_PATH": str(tmp_path / "machine-id"),
                "GPU_SPOOF_STATE_DIR": str(tmp_path / "gpu"),
                "NAT_REDIRECT": "off",
            },
            stdout=out,
            stderr=out,
        )
    try:
        wait_until_healthy(port, process, log)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=20) as answer:
            assert [row["id"] for row in json.loads(answer.read())["data"]] == ["qwen3-4b-chat"]
    finally:
        process.terminate()
        assert process.wait(20) == 0, log.read_text()


def test_run_py_without_the_packages_says_what_to_do(tmp_path: Path) -> None:
    shutil.copy(ROOT / "run.py", tmp_path / "run.py")
    command = [sys.executable, "-S", "-I", "run.py"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install -r requirements.txt" in done.stderr) == (1, True)


def test_what_the_package_demands_is_what_it_runs_with(dist: Path, environment: Environment) -> None:
    (wheel,) = dist.glob("*.whl")
    environment.install(wheel)
    checked = environment.pip("check")
    assert not [line for line in checked.stdout.splitlines() if line.startswith("appliance ")]


def lower_bound(name: str) -> tuple[int, ...]:
    found = re.search(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return tuple(map(int, found[1].split(".")))


def test_generated_code_demands_no_more_than_the_package_does(dist: Path, tmp_path: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "wheel", "zip")
    folder = tmp_path / "wheel/appliance/control/v1"
    protobuf = re.search(r"Protobuf Python Version: ([\d.]+)", (folder / "control_pb2.py").read_text())
    grpc = re.search(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (folder / "control_pb2_grpc.py").read_text())
    assert protobuf is not None
    assert grpc is not None
    assert tuple(map(int, protobuf[1].split("."))) <= lower_bound("protobuf")
    assert tuple(map(int, grpc[1].split("."))) <= lower_bound("grpcio")
    assert f'"grpcio-tools=={grpc[1]}"' in (ROOT / "protos/package_build.py").read_text()
