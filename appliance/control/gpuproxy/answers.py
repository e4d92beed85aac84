"""What the HTTP addresses answer, for calls that are made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Exhausted,
    Forbidden,
    Internal,
    Invalid,
    NotFound,
    PaymentRequired,
    TimedOut,
    TooLarge,
    Unauthenticated,
    Unavailable,
    Unsupported,
    UpstreamFailed,
)

KINDS: Final[dict[int, type[ApplianceError]]] = {
    400: Invalid,
    401: Unauthenticated,
    402: PaymentRequired,
    403: Forbidden,
    404: NotFound,
    405: Unsupported,
    409: Conflict,
    413: TooLarge,
    422: Invalid,
    429: Exhausted,
    500: Internal,
    501: Unsupported,
    502: UpstreamFailed,
    503: Unavailable,
    504: TimedOut,
}


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer of one address.

    Attributes:
        value: Its JSON; None = it had none.
        retry_after_s: Its Retry-After; None = none.
    """

    status: int
    value: Any
    retry_after_s: float | None = None


class AskHttp(Protocol):
    """Asks one of the appliance's own HTTP addresses, as a client would, without a socket."""

    async def __call__(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str],
        peer: str,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> HttpAnswer:
        """Return what it answers.

        Args:
            headers: By lower-case name; the caller's credentials.
            peer: The caller's address.
            query: The query's values.
            body: Sent as JSON; None = nothing.

        Raises:
            NotFound: There is no such address here.
        """
        ...


def error_of(answer: HttpAnswer) -> ApplianceError:
    """Return the failure that an answer tells."""
    value = answer.value if isinstance(answer.value, dict) else {}
    given = value.get("error")
    text = given.get("message") if isinstance(given, dict) else given
    code = given.get("code") if isinstance(given, dict) else value.get("code")
    kind = KINDS.get(answer.status, Internal if answer.status >= 500 else Invalid)
    return kind(
        str(text or f"It failed with status {answer.status}."),
        code=code if isinstance(code, str) else None,
        retry_after_s=answer.retry_after_s,
    )


def objects_of(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the objects of a list in an answer; [] = there is none."""
    rows = value.get(name) if isinstance(value, dict) else None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def text_of_field(value: Any, name: str) -> str:
    """Return a field of an object as text; "" = there is none."""
    found = value.get(name) if isinstance(value, dict) else None
    return "" if found is None else str(found)


def number_of_field(value: Any, name: str) -> float:
    """Return a field of an object as a number; 0 = there is none."""
    found = value.get(name) if isinstance(value, dict) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else 0.0
