"""The sidecar as a container of its own: the same hardening, its health, its memory."""

from collections.abc import Callable, Iterator

import pytest

from tests.image.box import HARDENED, Box, docker

SIDECAR = ("sidecar", "-E", "vllm", "-B", "http://127.0.0.1:8000", "-P", "9000")
SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")


@pytest.fixture(scope="module")
def sidecar(image: str) -> Iterator[Box]:
    box = Box(image, *HARDENED, command=SIDECAR)
    try:
        yield box.wait_health()  # the image's health check knows a sidecar, too
    finally:
        box.close()


def test_it_answers_on_its_port_and_is_not_ready_without_an_engine(sidecar: Box) -> None:
    reply = sidecar.ask("GET", "/health", port=9000)
    assert (reply.status, reply.json) == (200, {"status": "healthy", "service": "runtime"})
    assert sidecar.ask("GET", "/ready", port=9000).status == 503


def test_its_processes_have_stepped_down(sidecar: Box) -> None:
    rows = sidecar.processes()
    assert any("sidecar" in row["command"] for row in rows)
    for row in rows:
        assert row["Uid"].split() == ["10001"] * 4, row["command"]
        assert {row[name] for name in SETS} == {"0" * 16}, row["command"]
        assert row["NoNewPrivs"] == "1", row["command"]


def test_it_idles_in_little_memory(sidecar: Box) -> None:
    rss_kib = sum(
        int(row["VmRSS"].split()[0])
        for row in sidecar.processes()
        if "sidecar" in row["command"] and "-m" in row["command"]
    )
    print(f"the sidecar's resident memory: {rss_kib / 1024:.0f} MiB")
    assert 10_000 < rss_kib < 200_000


def test_sigterm_ends_it_with_0(start: Callable[..., Box]) -> None:
    box = start("--user", "12345:0", command=SIDECAR)  # as any user, too
    box.wait_log('"event":"sidecar"')
    docker("stop", "-t", "20", box.name)
    assert box.exit_code == 0


def test_options_without_the_verb_are_the_sidecars(start: Callable[..., Box]) -> None:
    """The line of Kthena runtime, word for word."""
    command = ("--engine", "vllm", "--engine-base-url", "http://127.0.0.1:8000")
    box = start(command=(*command, "--engine-metrics-path", "/metrics")).wait_health()
    assert box.ask("GET", "/health", port=9000).json == {"status": "healthy", "service": "runtime"}
