"""The ZeroMQ subscription to an engine's publisher of KV events.

ZeroMQ is imported only when a subscription is opened.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from appliance.engines.kv.times import KvTimes

if TYPE_CHECKING:
    from zmq.asyncio import Socket

MAX_QUEUED_MESSAGES = 1000  # received and not yet read
MAX_MESSAGE_BYTES = 16 * 1024 * 1024  # a publisher that sends a larger one is disconnected


@dataclass(frozen=True, slots=True)
class KvSource:
    """Where the engine publishes.

    Attributes:
        endpoint: ZeroMQ address, such as `tcp://127.0.0.1:5557`.
        topic: A prefix of the messages' topics; "" = all.
    """

    endpoint: str
    topic: str = ""


@contextmanager
def subscribing(source: KvSource, times: KvTimes) -> Iterator[tuple["Socket", "Socket"]]:
    """Open a subscription, and the socket that reports its connections; both are closed with the context."""
    import zmq
    import zmq.asyncio

    context = zmq.asyncio.Context()
    try:
        socket: Any = context.socket(zmq.SUB)
        options = {
            zmq.LINGER: 0,
            zmq.RCVHWM: MAX_QUEUED_MESSAGES,
            zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,
            zmq.RECONNECT_IVL: times.reconnect_ms,
            zmq.RECONNECT_IVL_MAX: times.max_reconnect_ms,
            zmq.IPV6: int("[" in source.endpoint),
            zmq.TCP_KEEPALIVE: 1,
        }
        for option, value in options.items():
            socket.setsockopt(option, value)
        socket.subscribe(source.topic.encode())
        monitor = socket.get_monitor_socket(zmq.Event.HANDSHAKE_SUCCEEDED | zmq.Event.DISCONNECTED)
        socket.connect(source.endpoint)
        yield socket, monitor
    finally:
        context.destroy(linger=0)


async def watch_connection(monitor: "Socket", on_change: Callable[[bool], None]) -> None:
    """Report whether the publisher is connected, for ever; the same state can be reported twice."""
    from zmq import Event
    from zmq.utils.monitor import parse_monitor_message

    while True:
        event = parse_monitor_message(await monitor.recv_multipart())["event"]
        on_change(event == Event.HANDSHAKE_SUCCEEDED)
