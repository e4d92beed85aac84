"""What systemd is told, and how its variables are read."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base.tasks import Tasks
from appliance.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An address as in NOTIFY_SOCKET."""
    return str(tmp_path / "notify") if request.param == "path" else f"@appliance-test-{tmp_path.name}"


@pytest.fixture
def messages(address: str) -> Iterator[socket.socket]:
    """A socket of our own in the service manager's place."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        receiver.settimeout(5)
        yield receiver


def test_each_step_is_told(address: str, messages: socket.socket) -> None:
    service = ServiceManager(address)
    service.ready("Serving on 127.0.0.1:1.")
    assert messages.recv(999) == b"READY=1\nSTATUS=Serving on 127.0.0.1:1."
    with service.reloading():
        first, second = messages.recv(999).split(b"\n")
        assert first == b"RELOADING=1"
        assert second.startswith(b"MONOTONIC_USEC=")
        assert int(second.partition(b"=")[2]) > 0
    assert messages.recv(999) == b"READY=1\nSTATUS=Serving on 127.0.0.1:1."
    service.stopping()
    assert messages.recv(999).startswith(b"STOPPING=1\nSTATUS=")


def test_a_reload_that_fails_ends_with_ready_too(address: str, messages: socket.socket) -> None:
    service = ServiceManager(address)
    with pytest.raises(ValueError, match="no"), service.reloading():
        raise ValueError("no")
    assert messages.recv(999).startswith(b"RELOADING=1")
    assert messages.recv(999).startswith(b"READY=1")


async def test_signs_of_life_go_on(address: str, messages: socket.socket) -> None:
    async with Tasks() as tasks:
        ServiceManager(address, 0.02).start_pings(tasks)
        messages.setblocking(False)
        seen = [await tasks_receive(messages) for _ in range(3)]
    assert seen == [b"WATCHDOG=1"] * 3


async def tasks_receive(messages: socket.socket) -> bytes:
    import asyncio

    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(messages, 999), 5)


def test_where_nobody_listens_nothing_happens(tmp_path: Path) -> None:
    ServiceManager(str(tmp_path / "nothing")).ready("x")
    ServiceManager(str(tmp_path / ("long" * 50))).ready("x")
    ServiceManager().stopping()


@pytest.mark.parametrize(
    ("environ", "address", "watchdog_s"),
    [
        ({}, "", None),
        ({"NOTIFY_SOCKET": "/run/n"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "@abstract"}, "\0abstract", None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "5000000"}, "", None),
        ({"NOTIFY_SOCKET": "@"}, "", None),
        ({"WATCHDOG_USEC": "5000000"}, "", None),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "5000000"}, "/run/n", 5.0),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "7"}, "/run/n", 0.5),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "500000", "WATCHDOG_PID": "8"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "0"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "soon"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "-5"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "/run/n", "WATCHDOG_USEC": "9" * 500}, "/run/n", None),
    ],
)
def test_variables_are_read_and_taken_away(
    environ: dict[str, str], address: str, watchdog_s: float | None
) -> None:
    given = {**environ, "PATH": "/bin"}
    service = ServiceManager.from_environ(given, pid=7)
    assert (service._address, service.watchdog_s) == (address, watchdog_s)
    assert given == {"PATH": "/bin"}
