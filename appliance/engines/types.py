"""What the interfaces send to the engines, and what they get back: requests, replies, models, states.

Requests and replies have OpenAI's shapes. Nothing below the interfaces knows another dialect; an interface
that speaks one translates to and from these.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from appliance.base import jsons
from appliance.engines.billing import RequestMeter
from appliance.engines.receipts import Receipt
from appliance.engines.stream import Stream


class Operation(Enum):
    """An operation of OpenAI's API; the value is its path below `/v1`.

    Attributes:
        path: The same as bytes.
    """

    path: bytes

    def __init__(self, path: str) -> None:
        self.path = path.encode()

    CHAT = "/chat/completions"
    COMPLETION = "/completions"
    EMBEDDING = "/embeddings"


class Billing(Protocol):
    """Who pays for the requests of one caller."""

    async def begin(self, request: "EngineRequest") -> RequestMeter:
        """Hold money for a request whose model is known.

        Raises:
            PaymentRequired: The credits, or a limit on spending, do not allow it; or the model has no price.
            Exhausted: A rate limit is reached.
            Unavailable: It cannot be looked up at present.
        """
        ...

    async def begin_flat(
        self, model: str, receipt: Receipt, *, is_counted_elsewhere: bool = False
    ) -> RequestMeter:
        """Hold the price of one request at an address whose tokens are not counted.

        Args:
            model: The public name.
            receipt: Of the request.
            is_counted_elsewhere: Another address does the same work, and counts its tokens: a model with
                prices for tokens is refused.

        Raises:
            PaymentRequired, Exhausted, Unavailable: As `begin`; also where the model has no price per
                request.
        """
        ...

    async def begin_item(self, item: str, receipt: Receipt) -> RequestMeter:
        """Hold the price of one request for what is no model; without a price of its own it costs nothing.

        Args:
            item: Its name in the price book, such as `proxy.request`.
            receipt: Of the request.

        Raises:
            PaymentRequired, Exhausted, Unavailable: As `begin`.
        """
        ...


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a request says about where and when it is answered.

    Attributes:
        flow: Identifies the client, for fairness in the queue: a digest of its key, or its address; "" =
            unknown.
        priority: 0 high, 1 normal, 2 low.
        is_local_only: Only servers of the first pool may answer: no overflow, no hosted API.
        pin: Name of the only backend that may answer; "" = any.
        context_tokens: Context that the client needs; a server known to have less is not used; 0 = any.
        keep_alive_s: How long a model that runs here stays loaded after the request; 0 = not at all,
            negative = for ever, None = as configured.
        header_lines: Header fields of the client that the engine gets, as lines that end with CR LF.
        billing: Who pays; None = no account, it is not metered.
        time_limit_s: Within which the whole response has to be there; 0 = no limit of the client's.
    """

    flow: str = ""
    priority: int = 1
    is_local_only: bool = False
    pin: str = ""
    context_tokens: int = 0
    keep_alive_s: float | None = None
    header_lines: bytes = b""
    billing: Billing | None = None
    time_limit_s: float = 0.0


NO_OPTIONS = RequestOptions()


@dataclass(slots=True)
class NativeOptions:
    """Options that each kind of engine spells in its own way (upstream/spelling.py).

    Attributes:
        values: By Ollama's names.
        think: Whether the model reasons before it answers, or how much; None = as the model does.
        ignored: Set with each attempt: names of options that the engine does not have.
        assumed: Fields of the request's body that the client did not send: they are our own default.
    """

    values: dict[str, Any]
    think: bool | str | None = None
    ignored: list[str] = field(default_factory=list)
    assumed: frozenset[str] = frozenset()


@dataclass(slots=True)
class EngineRequest:
    """One request to the engines, in OpenAI's shape.

    Attributes:
        operation: The operation.
        parsed: Every field that the client sent, parsed; unknown fields stay in. None = `raw` holds them, and
            they are right: `body` parses them at its first use.
        raw: The client's own bytes if its dialect is OpenAI's: forwarded, with `model` replaced; else None.
        model: The name that the client sent; "" = the default.
        stream: The client wants a stream.
        receipt: Filled in by every step; the interface shows it.
        options: Where and when it may be answered.
        public_model: Set by the router: the name that the reply carries.
        wanted_model: Set by the router: the name by which backends know it.
        native: Options beside `body`, since each kind of engine spells them differently; None = none.
        wait_headers: Set while the request waits for a model: gives headers that report the model's state.
        load_s: Set by the backend: how long the request waited while its model was loaded, in seconds.
        choices: How many choices were asked for; 0 = `body` says it.
        meter: Set by the dispatcher where an account pays; None = none does.
    """

    operation: Operation
    parsed: dict[str, Any] | None
    raw: bytes | None
    model: str
    stream: bool
    receipt: Receipt
    options: RequestOptions = NO_OPTIONS
    public_model: str = ""
    wanted_model: str = ""
    wait_headers: Callable[[], list[tuple[str, str]]] | None = None
    native: NativeOptions | None = None
    load_s: float = 0.0
    choices: int = 0
    meter: RequestMeter | None = None

    @property
    def body(self) -> dict[str, Any]:
        """Every field that the client sent, parsed."""
        if self.parsed is None:
            self.parsed = jsons.loads_utf8(self.raw or b"")
        return self.parsed

    def status_headers(self) -> list[tuple[str, str]]:
        """Return the headers that report the model's state; none unless the request waits for a model."""
        return self.wait_headers() if self.wait_headers is not None else []


@dataclass(slots=True)
class EngineReply:
    r"""The reply to an EngineRequest: either `body` or `events` is there, never both.

    Attributes:
        status: 200, or an error status of the upstream that is meant for the client (400, 403, 422 …), with
            `body`.
        body: The whole response: one JSON object as bytes, `model` already the public name.
        events: The stream. Each piece is one or more whole events, `data: {json}\n\n`, the last `data:
            [DONE]\n\n`; `: comment\n\n` pieces are heartbeats; `model` is already the public name. Closing it
            cancels the upstream request. A failure after the first piece raises ApplianceError from it.
        content_type: Of the response.
    """

    status: int = 200
    body: bytes | None = None
    events: Stream | None = None
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model as `/v1/models` lists it.

    Attributes:
        id: Its public name.
        created_s: Seconds since 1970.
        owned_by: The kind of engine, or who offers it.
        upstream: Its name at the server.
        aliases: Further names of it.
        context_tokens: Context of one request; 0 = unknown.
        parent: Of an adapter: the model that it belongs to; "" = it is not an adapter.
        path: Of an adapter: the file that the engine loaded; "" = unknown.
        is_text: False = it is known to give only embeddings or scores.
        capabilities: What its engine says that it can do, such as `multimodal`; () = it does not say.
        meta: Facts about it by its engine's own names, such as `n_ctx_train`; () = none.
    """

    id: str
    created_s: int
    owned_by: str
    upstream: str
    aliases: tuple[str, ...] = ()
    context_tokens: int = 0
    parent: str = ""
    path: str = ""
    is_text: bool = True
    capabilities: tuple[str, ...] = ()
    meta: tuple[tuple[str, int | float | str], ...] = ()


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as one server has it.

    Attributes:
        card: As clients see it.
        upstream: The name to send to the server.
        extra: Fields to add to the body; llama.cpp selects an adapter by them.
    """

    card: ModelCard
    upstream: str
    extra: tuple[tuple[str, Any], ...] = ()


class BackendStatus(Enum):
    """Whether a backend can take a request at this moment."""

    READY = "ready"
    FULL = "full"  # later, perhaps soon
    STARTING = "starting"  # not reached yet, or loading its model
    CIRCUIT_OPEN = "circuit_open"  # its circuit breaker is open after failures
    DOWN = "down"
    DRAINING = "draining"  # the operator drains it: no new requests


@dataclass(frozen=True, slots=True)
class BackendState:
    """A backend as ListBackends, /healthz and /health show it; unknown values stay at their defaults.

    Attributes:
        name: Unique.
        kind: The kind of engine, or hosted, demo, managed.
        is_up: It can answer now, or soon.
        detail: A sentence about its state; "" = nothing to say.
        endpoints: One row per address: `{"url", "rested_s", "failed_in_a_row", "last_error"}`.
        models: Public names of the models that it serves.
        in_flight: The appliance's own requests there.
        url: Its address; "" = it has none.
        pool: The pool that it belongs to.
        standing: A value of BackendStatus.
        running: Requests that the engine works on, by its latest metrics; None = unknown.
        waiting: Requests that wait inside the engine, by its latest metrics; None = unknown.
        data_age_s: Age of those metrics; None = there are none.
        metrics: ok, off, or what is wrong with the engine's metrics page.
        checked_at_s: The last health probe, seconds since 1970; None = there was none.
        limit: Maximum of requests at a time; None = the engine decides.
        context_tokens: Context of one request; 0 = unknown.
        weight: Its share where the strategy is weighted.
        cost: Of equally busy backends the cheaper one is chosen.
        chosen_total: Requests that were given to it.
        mean_s: Response time: the first sample, then (old + new) / 2; None = no sample.
        last_s: The latest sample.
        last_used_at_s: Seconds since 1970.
        breaker: closed, open or half_open.
        errors: Failures by their label.
        origin: configured, runtime (lost at a restart), persisted or managed.
    """

    name: str
    kind: str
    is_up: bool
    detail: str
    endpoints: tuple[dict[str, Any], ...] = ()
    models: tuple[str, ...] = ()
    in_flight: int = 0
    url: str = ""
    pool: str = ""
    standing: str = BackendStatus.READY.value
    running: float | None = None
    waiting: float | None = None
    data_age_s: float | None = None
    metrics: str = ""
    checked_at_s: float | None = None
    limit: int | None = None
    context_tokens: int = 0
    weight: float = 1.0
    cost: float = 0.0
    chosen_total: int = 0
    mean_s: float | None = None
    last_s: float | None = None
    last_used_at_s: float | None = None
    breaker: str = "closed"
    errors: tuple[tuple[str, int], ...] = ()
    origin: str = "configured"
