"""The words that cross rooms: what a door asks (EngineRequest) and what it gets (EngineReply). OpenAI's shapes throughout.

No lower room knows that Ollama exists; a door whose dialect is not OpenAI's translates to and from these.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from appliance.engines.receipts import Receipt
from appliance.engines.stream import Stream


class Operation(Enum):
    """The OpenAI operation asked for; the value is its path below `/v1`."""

    CHAT = "/chat/completions"
    COMPLETION = "/completions"
    EMBEDDING = "/embeddings"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request says about where and when it is answered.

    flow             whose request it is, for turns in the line: a digest of the key, or the address ("" = nobody in particular)
    priority         0 high, 1 normal, 2 low
    is_local_only    it must be answered by this pool's own servers, not by an overflow and not by a hosted API
    pin              the name of the one backend that is to answer ("" = any)
    context_tokens   the context that the client counts on; a server known to have less is not asked (0 = any)
    keep_alive_s     how long a model that runs here stays loaded after this request: 0 = not at all, negative = for ever,
                     None = as configured
    """

    flow: str = ""
    priority: int = 1
    is_local_only: bool = False
    pin: str = ""
    context_tokens: int = 0
    keep_alive_s: float | None = None


NO_OPTIONS = RequestOptions()


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
    options: RequestOptions = NO_OPTIONS
    public_model: str = ""  # set by the router: the name that the reply carries
    wanted_model: str = ""  # set by the router: the name by which backends know it
    # Set while the request waits for a model: gives headers that report the model's state.
    wait_headers: Callable[[], list[tuple[str, str]]] | None = None

    def status_headers(self) -> list[tuple[str, str]]:
        """Return the headers that report the model's state; none unless the request waits for a model."""
        return self.wait_headers() if self.wait_headers is not None else []


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
    events: Stream | None = None
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as `/v1/models` lists it."""

    id: str
    created_s: int
    owned_by: str
    upstream: str
    aliases: tuple[str, ...] = ()
    context_tokens: int = 0  # 0 = not known
    parent: str = ""  # of an adapter: the model that it belongs to
    path: str = ""  # of an adapter: where the engine has it from, where it tells


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as one server has it: the name to send to it, and fields to add to the body (an adapter of llama.cpp)."""

    card: ModelCard
    upstream: str
    extra: tuple[tuple[str, Any], ...] = ()


class BackendStatus(Enum):
    """Whether a backend can take a request at this moment."""

    READY = "ready"
    FULL = "full"  # later, perhaps soon
    STARTING = "starting"  # not seen yet, or its model is being loaded
    CIRCUIT_OPEN = "circuit_open"  # its circuit breaker is open after failures
    DOWN = "down"
    DRAINING = "draining"  # the operator drains it: no new requests


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as ListBackends, /healthz and /health tell it. What a kind does not know stays at its default."""

    name: str
    kind: str
    is_up: bool
    detail: str
    endpoints: tuple[dict[str, Any], ...] = ()
    models: tuple[str, ...] = ()
    in_flight: int = 0
    url: str = ""
    pool: str = ""
    standing: str = "ready"  # a value of BackendStatus
    running: float | None = None  # as the engine's own metrics said last
    waiting: float | None = None
    data_age_s: float | None = None  # of those metrics
    metrics: str = ""  # ok | off | what is wrong with the engine's metrics page
    checked_at_s: float | None = None  # the last look at its health, seconds since 1970
    limit: int | None = None  # most requests at a time; None = the engine decides
    context_tokens: int = 0
    weight: float = 1.0
    cost: float = 0.0
    chosen_total: int = 0
    mean_s: float | None = None  # response time: first sample, then (old + new) / 2
    last_s: float | None = None
    last_used_at_s: float | None = None
    breaker: str = "closed"  # closed | open | half_open
    errors: tuple[tuple[str, int], ...] = ()
    origin: str = "configured"  # configured | runtime (gone at a restart) | persisted
