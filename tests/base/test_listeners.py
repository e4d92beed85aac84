"""What is said where an address cannot be listened on."""

import errno
import os
import socket

import pytest

from appliance.base import listeners
from appliance.base.listeners import describe_listen_error, find_listener, why_not

SETTINGS = ("A_HOST", "A_PORT")


@pytest.fixture
def taken() -> socket.socket:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def test_the_process_that_listens_is_named(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    assert find_listener(port).startswith(f"Process {os.getpid()} (")
    text = describe_listen_error(why_not("127.0.0.1", port), "127.0.0.1", port, settings=SETTINGS)
    assert text.startswith(
        f"cannot listen on 127.0.0.1:{port}: Address already in use. Process {os.getpid()} ("
    )
    assert text.endswith(") listens there: end it, or set A_PORT to another port.")


def test_over_ipv6_too() -> None:
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert find_listener(port).startswith(f"Process {os.getpid()} (")
        assert why_not("::1", port).errno == errno.EADDRINUSE


def test_a_port_that_is_free_has_no_process(taken: socket.socket) -> None:
    port = taken.getsockname()[1]
    taken.close()
    assert find_listener(port) == ""


def test_a_process_that_cannot_be_seen_is_another_one(
    taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "TABLES", ())
    error = OSError(errno.EADDRINUSE, "Address already in use")
    text = describe_listen_error(error, "::1", 80, settings=SETTINGS)
    assert text == (
        "cannot listen on [::1]:80: Address already in use. Another process listens there: end it, or set A_PORT "
        "to another port."
    )


@pytest.mark.parametrize(
    ("number", "port", "text"),
    [
        (errno.EACCES, 80, "Permission denied. Ports below 1024 are for root and for programs with "),
        (errno.EACCES, 8080, "Permission denied."),
        (
            errno.EADDRNOTAVAIL,
            80,
            "Cannot assign requested address. No network interface of this machine has it: set A_HOST",
        ),
    ],
)
def test_other_reasons_have_their_remedies(number: int, port: int, text: str) -> None:
    said = describe_listen_error(OSError(number, os.strerror(number)), "10.1.2.3", port, settings=SETTINGS)
    assert said.startswith(f"cannot listen on 10.1.2.3:{port}: {text}")
    assert said.endswith(".")


def test_an_address_of_another_machine_is_found_out() -> None:
    assert why_not("192.0.2.1", 4321).errno == errno.EADDRNOTAVAIL
