"""One request to a target and its answer, and what every protocol fulfils."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from appliance.base.ssrf import CallTarget, TargetPolicy
from appliance.market.proxy.fields import Fields
from appliance.market.proxy.order import ProxyOrder


@dataclass(frozen=True, slots=True)
class Outbound:
    """One request that goes out.

    Attributes:
        target: Checked.
        headers: As they are sent, without Host.
        redirects: How many of them are followed.
    """

    method: str
    target: CallTarget
    headers: Fields = field(repr=False)
    body: bytes | None = field(repr=False)
    redirects: int = 0


class OpenAnswer(Protocol):
    """An answer whose body is still to be read. Close it in any case."""

    status: int
    headers: Fields

    def pieces(self) -> AsyncIterator[bytes]:
        """Iterate over the body; more than 32 MiB are a failure."""
        ...

    async def read(self) -> bytes:
        """Return the whole body, at most 32 MiB.

        Raises:
            UpstreamFailed: It is larger, or was cut off.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Sender(Protocol):
    """Sends requests to targets."""

    async def open(self, outbound: Outbound, policy: TargetPolicy) -> OpenAnswer:
        """Send a request.

        Raises:
            Forbidden: The name resolves to an address that is not allowed, or a redirect leads to one.
            UpstreamFailed: The target cannot be reached, or sends no answer.
        """
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


@dataclass(frozen=True, slots=True)
class ProxyCall:
    """What a protocol is to do.

    Attributes:
        target: Of the order, checked.
        headers: The caller's, without those that do not go up.
        policy: What may be called on the way.
    """

    order: ProxyOrder
    target: CallTarget
    headers: Fields = field(repr=False)
    policy: TargetPolicy
    sender: Sender


@dataclass(slots=True)
class ProxyAnswer:
    """What a target answered.

    Attributes:
        status: Of the target.
        headers: Those that come down.
        fields: Further fields of the answer: `body`, `body_encoding`, `outputs`, …
        size_bytes: Of the target's body.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    size_bytes: int = 0


# A protocol: makes a call.
Speak = Callable[[ProxyCall], Awaitable[ProxyAnswer]]
