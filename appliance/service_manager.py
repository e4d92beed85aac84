"""What a service manager is told: systemd's notification protocol, by hand.

Source: sd_notify(3), systemd.service(5). Without NOTIFY_SOCKET nothing is sent.
"""

import os
import socket
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

from appliance.base.logs import get_logger
from appliance.base.tasks import Tasks

log = get_logger("service")
VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """The service manager that started this process; without one every message is dropped.

    Attributes:
        watchdog_s: It expects a sign of life within so many seconds; None = it expects none.
    """

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """Remember where messages go.

        Args:
            address: A path, or `@` and the name of an abstract socket; "" = there is no service manager.
            watchdog_s: See the class.
        """
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.watchdog_s = watchdog_s
        self._text = ""

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], *, pid: int) -> "ServiceManager":
        """Read the variables of the protocol, and take them away, so that no child believes they are its own.

        1. no NOTIFY_SOCKET, or one that is neither a path nor an abstract socket   → no service manager
        2. WATCHDOG_PID is another process's, or WATCHDOG_USEC no positive number   → no watchdog

        Args:
            environ: Usually os.environ; it is changed.
            pid: Of this process.
        """
        address, time_us, watched = (environ.pop(name, "") for name in VARIABLES)
        if not address.startswith(("/", "@")) or len(address) < 2:  # 1
            return cls()
        is_watched = watched in ("", str(pid)) and time_us.isdecimal() and len(time_us) <= 18
        return cls(address, int(time_us) / 1e6 if is_watched and int(time_us) else None)  # 2

    def ready(self, text: str) -> None:
        """Say that the service is up; `text` is shown by `systemctl status`."""
        self._text = text
        self._send("READY=1", f"STATUS={text}")

    def stopping(self) -> None:
        """Say that the service stops."""
        self._send("STOPPING=1", "STATUS=Stopping: running requests are finished.")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Say that a reload runs, and at its end that the service is up again."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            self.ready(self._text)

    def start_pings(self, tasks: Tasks) -> None:
        """Give signs of life, twice in the time within which one is expected."""
        if self.watchdog_s is not None:
            tasks.every(self.watchdog_s / 2, self._ping, name="watchdog")

    async def _ping(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as exc:  # the service goes on all the same; a lost sign of life is followed by another
            log.warning("service_manager_not_told", lines=list(lines), reason=str(exc))


def from_environ() -> ServiceManager:
    """Return the service manager that started this process."""
    return ServiceManager.from_environ(os.environ, pid=os.getpid())
