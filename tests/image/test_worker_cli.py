"""The worker's command line gets into the image at build time, by address and checksum."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.image.box import WAIT_S, Box, docker, fresh_name

ROOT = Path(__file__).parents[2]
PROGRAM = '#!/bin/sh\necho "worker $*"\n'
WAIT = """
import socket, time
while True:
    try:
        socket.create_connection(("127.0.0.1", 8000), 1).close()
        break
    except OSError:
        time.sleep(0.05)
"""


@pytest.fixture
def address(start: Callable[..., Box]) -> str:
    """Where a container gives the program to whoever asks; the builder is one network away."""
    box = start("--user", "10001", command=("sh", "-c", "cd /tmp && exec python3 -m http.server 8000"))
    box.run("sh", "-c", "cat >/tmp/inference", text=PROGRAM)
    box.run("python3", "-c", WAIT)
    box_address = next(iter(box.inspect()["NetworkSettings"]["Networks"].values()))["IPAddress"]
    return f"http://{box_address}:8000/inference"


@pytest.fixture
def build() -> Iterator[Callable[[str, str], tuple[int, str, str]]]:
    """Build with the two arguments: (exit code, what the builder said, image)."""
    name = fresh_name()

    def run(url: str, sha256: str) -> tuple[int, str, str]:
        done = docker(
            "build",
            "-t",
            name,
            "--build-arg",
            f"WORKER_CLI_URL={url}",
            "--build-arg",
            f"WORKER_CLI_SHA256={sha256}",
            str(ROOT),
            is_checked=False,
            timeout_s=WAIT_S,
        )
        return done.returncode, done.stdout + done.stderr, name

    yield run
    docker("rmi", name, is_checked=False)


def test_it_is_on_path_and_can_be_run(
    address: str, build: Callable[[str, str], tuple[int, str, str]]
) -> None:
    code, said, image = build(address, hashlib.sha256(PROGRAM.encode()).hexdigest())
    assert code == 0, said
    assert docker("run", "--rm", image, "inference", "node", "start").stdout == "worker node start\n"


@pytest.mark.parametrize(
    ("sha256", "sentence"),
    [("", "needs WORKER_CLI_SHA256"), ("0" * 64, "not WORKER_CLI_SHA256; it is not kept")],
    ids=["no checksum", "another checksum"],
)
def test_without_its_checksum_the_build_fails(
    address: str, build: Callable[[str, str], tuple[int, str, str]], sha256: str, sentence: str
) -> None:
    code, said, _ = build(address, sha256)
    assert code != 0
    assert sentence in said
