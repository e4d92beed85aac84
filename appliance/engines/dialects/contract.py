"""The contract of a dialect: how one kind of engine is queried, and commanded to load adapters."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from appliance.engines.types import ServedModel


@dataclass(frozen=True, slots=True)
class QueryReply:
    """An engine's reply to one of the appliance's own queries."""

    status: int
    body: bytes
    content_type: str = ""


class EngineClient(Protocol):
    """A client of one engine, for the appliance's own queries and commands; each may be sent twice."""

    async def get(self, path: str, timeout_s: float) -> QueryReply:
        """Query the engine. Raises WireError."""
        ...

    async def post(self, path: str, body: dict[str, Any]) -> QueryReply:
        """Send a command with a JSON body. Raises WireError."""
        ...


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine reports of itself.

    Attributes:
        models: By the name that clients use.
        context_tokens: Of one request; 0 = unknown.
        slots: Requests that it works on at a time; 0 = unknown.
        mark: Of what they were read from, see `SleepingDialect.reread_facts`; "" = not all could be read.
    """

    models: dict[str, ServedModel]
    context_tokens: int = 0
    slots: int = 0
    mark: str = ""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """Whether an engine is ready, or loading its model, or neither; `detail` says why."""

    is_ready: bool
    is_loading: bool = False
    detail: str = ""


class Dialect(Protocol):
    """How one kind of engine is queried.

    Attributes:
        kind: Its name in settings and states.
        running_metrics: Names of the running requests on its metrics page; () = it has no page.
        waiting_metrics: Names of the waiting requests.
        stops_on_disconnect: Whether it stops generating when a client disconnects that wanted the response
            whole.
        has_slots: Whether it works on a fixed number of requests at a time, and shows them on /slots.
        names_adapters: Whether an adapter has the name that it was loaded under, or its file's.
    """

    kind: ClassVar[str]
    running_metrics: ClassVar[tuple[str, ...]]
    waiting_metrics: ClassVar[tuple[str, ...]]
    stops_on_disconnect: ClassVar[bool]
    has_slots: ClassVar[bool]
    names_adapters: ClassVar[bool]

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """Query its health. Raises WireError when it cannot be reached."""
        ...

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Query its models and limits.

        Raises:
            WireError: It cannot be reached.
            ValueError: A reply is invalid.
        """
        ...

    async def matches(self, client: EngineClient) -> bool:
        """Return whether the server of `client` is of this kind. Raises WireError, ValueError."""
        ...


@runtime_checkable
class SleepingDialect(Protocol):
    """A kind of engine that may sleep while it is idle: some queries wake it, or keep it awake."""

    async def reread_facts(self, client: EngineClient, former: EngineFacts) -> EngineFacts:
        """Query its models and limits again, without a query that would wake it or keep it awake.

        Args:
            client: The way to the engine.
            former: What it reported before; it has not been down since.

        Raises:
            WireError: It cannot be reached.
            ValueError: A reply is invalid.
        """
        ...


@runtime_checkable
class TokenCountingDialect(Protocol):
    """How one kind of engine counts a prompt's tokens. A dialect without this method cannot."""

    async def count_tokens(self, client: EngineClient, body: dict[str, Any]) -> int:
        """Return how many tokens the prompt of a chat has.

        Args:
            client: The way to the engine.
            body: Of a chat request, `model` by the engine's own name.

        Raises:
            WireError: The engine cannot be reached.
            ValueError: It cannot count them, or its reply is invalid.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoraReply:
    """The result of a command to load or unload an adapter.

    Attributes:
        outcome: The result:

            - `done`
            - `already`: It has one of that name.
            - `unknown`: It has none of that name.
            - `off`: It was started without loading adapters at run time.
            - `refused`: Any other refusal.
        status: The engine's HTTP status.
        text: The text of its reply.
        engine_name: The name under which it lists the adapter; "" = its own.
        remedy: What the operator can do about it.
    """

    outcome: Literal["done", "already", "unknown", "off", "refused"]
    status: int
    text: str
    engine_name: str = ""
    remedy: str = ""

    @property
    def is_loaded(self) -> bool:
        """Whether the engine has the adapter now, after a load."""
        return self.outcome in {"done", "already"}

    @property
    def is_unloaded(self) -> bool:
        """Whether the engine no longer has the adapter, after an unload."""
        return self.outcome in {"done", "unknown"}


@runtime_checkable
class LoraDialect(Protocol):
    """How one kind of engine loads LoRA adapters. A dialect without these methods cannot load any."""

    async def load_adapter(
        self, client: EngineClient, name: str, path: str, *, is_pinned: bool = False
    ) -> LoraReply:
        """Load the adapter in the folder or file `path` under `name`.

        Raises:
            WireError: The engine cannot be reached.
            ValueError: Its reply is invalid.
        """
        ...

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """Unload it; `more` are the caller's further fields for the engine. Raises as `load_adapter` does."""
        ...

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        """Return how an adapter is requested that was loaded, but that the engine does not list.

        Raises:
            ValueError: This kind of engine lists every adapter, so that it does not have this one.
        """
        ...

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """Return whether the adapter itself would answer a request for it.

        Only engines whose base model would answer in its place are queried. Raises WireError.
        """
        ...
