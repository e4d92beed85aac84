"""A real redis-server on a free port of this machine, which a test can kill and start again. It keeps nothing on disk."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from redis import Redis
from redis.exceptions import AuthenticationError, ConnectionError

from tests.journeys.running import free_port


class RedisServer:
    """One server.

    Takes   password: "" = none is asked for; authority: whose certificate it shows, by TLS on `tls_port`; None = there is none
    """

    def __init__(self, folder: Path, *, password: str = "", authority: trustme.CA | None = None) -> None:
        self.port, self.password, self._folder = free_port(), password, folder
        self.tls_port = free_port() if authority is not None else 0
        if authority is not None:
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
                folder / "redis.pem"
            )
            authority.cert_pem.write_to_path(folder / "authority.pem")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        command = [
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            str(self._folder),
        ]
        if self.password:
            command += ["--requirepass", self.password]
        if self.tls_port:
            pem = str(self._folder / "redis.pem")
            command += [
                "--tls-port",
                str(self.tls_port),
                "--tls-cert-file",
                pem,
                "--tls-key-file",
                pem,
                "--tls-auth-clients",
                "no",
                "--tls-ca-cert-file",
                str(self._folder / "authority.pem"),
            ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + 20
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except (ConnectionError, AuthenticationError):
                    if self._process.poll() is not None or time.monotonic() > end:
                        pytest.fail(
                            f"redis-server did not come up on port {self.port} (status {self._process.poll()})",
                            pytrace=False,
                        )
                    time.sleep(0.02)

    def stop(self) -> None:
        """Kill it: what it held is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> Redis:
        """Give a client that answers in text."""
        return Redis(
            host="127.0.0.1",
            port=self.port,
            password=self.password or None,
            decode_responses=True,
            socket_timeout=5,
        )

    def keys(self) -> set[str]:
        """Give the names of all keys."""
        with self.client() as client:
            return set(client.scan_iter("*", count=10_000))

    def everything(self) -> dict[str, object]:
        """Give all keys: hashes as dicts, the rest as text."""
        with self.client() as client:
            keys = list(client.scan_iter("*", count=10_000))
            pipe = client.pipeline(transaction=False)
            for key in keys:
                pipe.type(key)
            kinds = pipe.execute()
            for key, kind in zip(keys, kinds, strict=True):
                (pipe.hgetall if kind == "hash" else pipe.get)(key)
            return dict(zip(keys, pipe.execute(), strict=True))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running one, empty."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


def closed_port() -> int:
    """Give a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
