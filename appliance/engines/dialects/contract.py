"""The contract of a dialect: how one kind of engine is asked about itself and told to load adapters."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

from appliance.engines.types import ServedModel


@dataclass(frozen=True, slots=True)
class QueryReply:
    """An engine's answer to one of our own questions."""

    status: int
    body: bytes
    content_type: str = ""


class EngineClient(Protocol):
    """The way to one engine for the appliance's own queries and commands; both may be sent twice."""

    async def get(self, path: str, timeout_s: float) -> QueryReply:
        """Query the engine. Raises WireError."""
        ...

    async def post(self, path: str, body: dict[str, Any]) -> QueryReply:
        """Send a command with a JSON body. Raises WireError."""
        ...


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What an engine says of itself when asked.

    models           by the name that clients use
    context_tokens   of one request; 0 = not told
    slots            requests that it works on at a time; 0 = not told
    """

    models: dict[str, ServedModel]
    context_tokens: int = 0
    slots: int = 0


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What a look at an engine's health came to: it is `ready`, or `loading` its model, or neither; and why."""

    is_ready: bool
    is_loading: bool = False
    detail: str = ""


class Dialect(Protocol):
    """How one kind of engine is asked about itself. Answers to requests are OpenAI's with all of them."""

    kind: ClassVar[str]
    running_metrics: ClassVar[
        tuple[str, ...]
    ]  # metric names, without prefix separator's spelling: see normalise.py
    waiting_metrics: ClassVar[tuple[str, ...]]
    stops_on_disconnect: ClassVar[
        bool
    ]  # whether it ends its work when a caller leaves who wanted the answer in one piece

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """Look at its health. Raises WireError when it cannot be reached."""
        ...

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Ask for its models and limits. Raises WireError, ValueError (its answer makes no sense)."""
        ...

    async def matches(self, client: EngineClient) -> bool:
        """Say whether this kind of engine is what answers there. Raises WireError."""
        ...

    def map_error(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        """Give what an error answer means: AttemptFailed (another may try) or ApplianceError (the caller's fault)."""
        ...


@dataclass(frozen=True, slots=True)
class LoraReply:
    """What came of telling one engine to load or to unload an adapter.

    outcome       done · already: it has one of that name · unknown: it has none of that name · off: it loads none as it was started ·
                  refused: anything else that it did not do
    status, text  the engine's own answer
    engine_name      the name under which it lists the adapter ("" = its own)
    remedy        what the operator can do about it
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
        """Whether the engine has it no longer, after an unload."""
        return self.outcome in {"done", "unknown"}


@runtime_checkable
class LoraDialect(Protocol):
    """How one kind of engine is told of LoRA adapters. A dialect that has none of this cannot be."""

    async def load_adapter(
        self,
        client: EngineClient,
        name: str,
        path: str,
        *,
        is_pinned: bool = False,
    ) -> LoraReply:
        """Load the adapter in the folder or file `path` under `name`. Raises WireError, ValueError (its answer makes no sense)."""
        ...

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """Unload it; `more`: further fields that the caller had for the engine. Raises as `load_adapter` does."""
        ...

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        """Give how an adapter is asked for that was loaded, but that the engine does not list."""
        ...

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """Whether a request for the adapter would be answered by it. Only engines that would let the base model answer in its place
        are really asked; the others refuse. Raises WireError."""
        ...
