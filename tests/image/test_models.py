"""A model of the operator's own in the hardened container: its llama-server is mounted, steps down with the rest, and answers."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.image.box import HARDENED, Box, answer_of, chat, docker
from tests.tools import tiny_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mounts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments that mount a llama-server where it expects its libraries, and a folder of models."""
    done = subprocess.run(
        [str(ROOT / "tests/tools/llama-server")],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    program = Path(done.stdout.strip())
    tree = program.parents[2] if program.parent.name == "bin" else program.parent
    models = tiny_models.ensure(tiny_models.cached_folder())
    # The image's /root is closed to its user; where the tree lies below it, an open one is laid over it.
    open_home = tmp_path_factory.mktemp("root")
    open_home.chmod(0o755)
    opened = ["-v", f"{open_home}:/root"] if tree.is_relative_to("/root") else []
    return [
        *opened,
        "-v",
        f"{tree}:{tree}:ro",
        "-v",
        f"{models}:/models:ro",
        "-e",
        f"LLAMA_SERVER_PATH={program}",
        "-e",
        "MODEL_DIR=/models",
    ]


def test_a_folder_of_models_is_served_by_processes_without_privileges(
    start: Callable[..., Box], mounts: list[str]
) -> None:
    box = start(*HARDENED, *mounts).wait_health()
    reply = box.ask("POST", "/v1/chat/completions", chat("hello") | {"model": "tiny-chat"})
    assert answer_of(reply) == tiny_models.REPLY
    row = next(row for row in box.processes() if any("llama-server" in word for word in row["command"]))
    assert row["Uid"].split() == ["10001"] * 4
    assert row["CapEff"] == "0" * 16
    assert row["NoNewPrivs"] == "1"
    loaded = box.ask("GET", "/v1/models/status").json["models"]["tiny-chat"]
    assert loaded["status"] == "ready"
    assert docker("exec", box.name, "ls", "/var/lib/appliance/model-logs").stdout.split() == [
        f"tiny-chat_{loaded['port']}.log"
    ]


def test_it_goes_with_the_container(start: Callable[..., Box], mounts: list[str]) -> None:
    box = start(*HARDENED, *mounts).wait_health()
    assert box.ask("POST", "/v1/models/tiny-chat/load", {}).status == 200
    docker("stop", "-t", "20", box.name)
    assert box.exit_code == 0


def test_the_image_with_a_llama_server_needs_none_mounted(image: str) -> None:
    box = Box(
        f"{image.partition(':')[0]}-llama",
        *HARDENED,
        "-v",
        f"{folder()}:/models:ro",
        "-e",
        "MODEL_DIR=/models",
    )
    try:
        body = chat("hello") | {"model": "tiny-chat"}
        assert answer_of(box.wait_health().ask("POST", "/v1/chat/completions", body)) == tiny_models.REPLY
        assert box.run("appliance", "models", "check").returncode == 0
    finally:
        box.close()


def folder() -> Path:
    return tiny_models.ensure(tiny_models.cached_folder())
