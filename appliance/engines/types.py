"""The words that cross rooms: what a door asks (EngineRequest) and what it gets (EngineReply). OpenAI's shapes throughout.

No lower room knows that Ollama exists; a door whose dialect is not OpenAI's translates to and from these.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from appliance.engines.receipts import Receipt


class Operation(Enum):
    """The OpenAI operation asked for; the value is its path below `/v1`."""

    CHAT = "/chat/completions"
    COMPLETION = "/completions"
    EMBEDDING = "/embeddings"


@dataclass(slots=True)
class EngineRequest:
    """One question to the engines, OpenAI-shaped.

    body     every field the client sent, parsed; unknown fields stay in
    raw      the client's own bytes when its dialect is OpenAI's (they travel on, with `model` spliced), else None
    model    the name the client asked for ("" = the default)
    stream   the client wants a stream
    receipt  filled in on the way; the door shows it
    """

    operation: Operation
    body: dict[str, Any]
    raw: bytes | None
    model: str
    stream: bool
    receipt: Receipt
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class EngineReply:
    """The answer to an EngineRequest. Exactly one of `body` and `events` is there.

    body     the whole answer: one JSON object as bytes, `model` already the public name
    events   the stream: each piece is one or more whole SSE events, `data: {json}\\n\\n`, the last `data: [DONE]\\n\\n`;
             `model` already public; `: comment\\n\\n` pieces are heartbeats. Closing it (aclose) cancels the upstream call.
             A failure after the first piece raises ApplianceError from the iterator.
    status   an error status of the upstream that is the client's to see (400, 403, 422 …) comes with `body`; else 200
    """

    status: int = 200
    body: bytes | None = None
    events: AsyncIterator[bytes] | None = None
    content_type: str = "application/json"
    on_close: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as `/v1/models` lists it."""

    id: str
    created_s: int
    owned_by: str
    upstream: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as ListBackends and /healthz tell it."""

    name: str
    kind: str
    is_up: bool
    detail: str
    endpoints: tuple[dict[str, Any], ...] = ()
    models: tuple[str, ...] = ()
    in_flight: int = 0
