"""How a connection is opened: name to addresses, addresses to a socket, socket to TLS.

Used by `ConnectionPool` alone.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from appliance.base.tasks import Tasks
from appliance.base.wire.types import PoolKey, Unreachable

DNS_TTL_S = 30.0
STAGGER_S = 0.25  # the next address is tried beside one that has been silent so long (RFC 8305, section 5)
MAX_NAMES = 1024
LOOK_UP_S = 2.0  # that a caller waits for a look-up beside the requests

Resolve = Callable[[str, int], Awaitable[list[str]]]
P = TypeVar("P", bound=asyncio.Protocol)


class Dialer:
    """Opens connections, and remembers resolved names for a short time.

    Args:
        ssl_context: For keys that bring none of their own; None = the default one, see `load_tls`.
        resolve: `(host, port)` → IP addresses; None = the system's resolver.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext | None, resolve: Resolve | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._ssl = ssl_context
        self._loading: asyncio.Future[ssl.SSLContext] | None = None
        self._resolve = resolve
        self._names: dict[tuple[str, int], tuple[float, list[str]]] = {}
        self._lookups: dict[tuple[str, int], asyncio.Future[list[str]]] = {}

    @property
    def has_tls(self) -> bool:
        """Whether the TLS context is there; if not, `load_tls` must be called before `dial`."""
        return self._ssl is not None

    async def load_tls(self) -> None:
        """Load the default TLS context: the system's CAs, or those of SSL_CERT_FILE.

        Reading the CA bundle takes tens of milliseconds and more on a busy machine. So it happens once, in a
        thread, and outside of every connect time-out; requests that need it at the same time wait for the
        same load.

        Raises:
            Unreachable: The CA certificates cannot be read (phase tls).
        """
        if self._loading is None:
            self._loading = self._loop.run_in_executor(None, _default_context)
        try:
            self._ssl = await asyncio.shield(self._loading)
        except OSError as exc:  # SSLError is one
            self._loading = None
            raise Unreachable(f"the CA certificates cannot be read: {reason_of(exc)}", phase="tls") from exc

    async def look_up(self, host: str, port: int) -> tuple[list[str], list[str]] | None:
        """Look a name up again, whatever is remembered of it.

        A look-up that fails or takes longer than LOOK_UP_S changes nothing.

        Returns:
            (the addresses that were remembered, those of now); None = nothing is known, or it is no name.
        """
        if self._resolve is not None or is_address(host):
            return None
        former, lookup = self._names.get((host, port)), self._lookups.get((host, port))
        if lookup is None:  # never two at a time: each holds a thread for as long as the resolver takes
            lookup = self._loop.run_in_executor(None, _resolve, host, port)
            lookup.add_done_callback(lambda done: self._remember(host, port, done))
            self._lookups[(host, port)] = lookup
        done, _ = await asyncio.wait({lookup}, timeout=LOOK_UP_S)
        if not done or lookup.exception() is not None:
            return None
        return (former[1] if former is not None else []), lookup.result()

    def _remember(self, host: str, port: int, done: "asyncio.Future[list[str]]") -> None:
        self._lookups.pop((host, port), None)
        if not done.cancelled() and done.exception() is None:
            self._keep(host, port, done.result())

    def _keep(self, host: str, port: int, addresses: list[str]) -> None:
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names[(host, port)] = (self._loop.time() + DNS_TTL_S, addresses)

    async def dial(self, key: PoolKey, factory: Callable[[], P]) -> P:
        """Open a connection for `key` and return its protocol, made by `factory`.

        Raises:
            Unreachable: With the reason; phase dns, connect or tls.
        """
        host, port, is_tls, context = key
        try:
            addresses = await self._addresses(host, port)
        except (OSError, UnicodeError) as exc:
            raise Unreachable(f"the name {host} cannot be resolved: {reason_of(exc)}", phase="dns") from exc
        if is_tls and context is None:
            context = self._ssl
            assert context is not None, "load_tls comes before dial"
        try:
            sock = await self._race(addresses, port)
        except OSError as exc:
            self._names.pop((host, port), None)  # the addresses may have changed
            raise Unreachable(f"{host}:{port} cannot be reached: {reason_of(exc)}", phase="connect") from exc
        try:  # from here on the socket belongs to the loop's transport, which closes it on failure too
            _, protocol = await self._loop.create_connection(
                factory, sock=sock, ssl=context, server_hostname=host.rstrip(".") if is_tls else None
            )
        except ssl.SSLCertVerificationError as exc:
            raise Unreachable(
                f"the TLS certificate of {host}:{port} is not valid: {exc.verify_message or exc.reason}",
                phase="tls",
            ) from exc
        except OSError as exc:  # SSLError is one
            raise Unreachable(
                f"the TLS handshake with {host}:{port} failed: {reason_of(exc)}", phase="tls"
            ) from exc
        return protocol

    async def _addresses(self, host: str, port: int) -> list[str]:
        if self._resolve is not None:
            return interleave(await self._resolve(host, port))
        known = self._names.get((host, port))
        if known is not None and known[0] > self._loop.time():
            return known[1]
        if is_address(host):
            return [host]
        found = await self._loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = _addresses_of(found)
        self._keep(host, port, addresses)
        return addresses

    async def _race(self, addresses: list[str], port: int) -> socket.socket:
        """Connect to the first address that accepts; the next one is tried when one failed or is slow."""
        left = list(reversed(addresses))
        running: set[asyncio.Task[OSError | None]] = set()
        opened: list[socket.socket] = []
        last = OSError("it has no address")
        try:
            async with Tasks() as tasks:
                while not opened and (left or running):
                    if left:
                        running.add(tasks.start(self._try(left.pop(), port, opened), name="connect"))
                    done, running = await asyncio.wait(
                        running, timeout=STAGGER_S if left else None, return_when=asyncio.FIRST_COMPLETED
                    )
                    last = next((end for task in done if (end := task.result()) is not None), last)
            if not opened:
                raise last
            return opened.pop(0)
        finally:
            for sock in opened:  # a second one may have connected in the same moment, or we were cancelled
                sock.close()

    async def _try(self, address: str, port: int, opened: list[socket.socket]) -> OSError | None:
        try:
            family, kind, protocol, _, where = socket.getaddrinfo(
                address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )[0]
            sock = socket.socket(family, kind, protocol)
        except OSError as exc:
            return exc
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A long silence must not hide a dead peer for ever.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await self._loop.sock_connect(sock, where)
        except OSError as exc:
            sock.close()
            return exc
        except BaseException:
            sock.close()
            raise
        opened.append(sock)
        return None


def _default_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _resolve(host: str, port: int) -> list[str]:
    """Look a name up (blocks); may raise OSError, UnicodeError."""
    return _addresses_of(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _addresses_of(rows: Iterable[tuple[Any, ...]]) -> list[str]:
    return interleave(list(dict.fromkeys(str(row[4][0]) for row in rows)))


def is_address(host: str) -> bool:
    """Say whether `host` is a literal IP address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def interleave(addresses: list[str]) -> list[str]:
    """Order addresses so that IPv4 and IPv6 alternate, the resolver's first choice first.

    Source:
        RFC 8305, section 4.
    """
    first = [a for a in addresses if (":" in a) == (":" in addresses[0])]
    other = [a for a in addresses if (":" in a) != (":" in addresses[0])]
    mixed = [a for pair in zip(first, other, strict=False) for a in pair]
    return mixed + first[len(other) :] + other[len(first) :]


def reason_of(exc: BaseException) -> str:
    """Say briefly why a connection failed, without our own addresses."""
    reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
    return str(reason).replace("_", " ").lower() if isinstance(exc, ssl.SSLError) else str(reason)
