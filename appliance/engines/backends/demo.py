"""The demo engine: answers every model with a deterministic echo, and says so in each reply.

It has no model. With it the appliance can be tried, and clients tested, without a key and without a GPU; for
the prompts that cause errors, delays and more, see docs/demo-engine.md.
"""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, ClassVar, Self

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import (
    ApplianceError,
    Exhausted,
    Forbidden,
    Invalid,
    NotFound,
    TimedOut,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
)
from appliance.base.metrics.registry import Metrics
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.backends.contract import NO_CALLBACKS, BackendCallbacks
from appliance.engines.backends.demo_reply import (
    ReplyHead,
    count_chat_tokens,
    read_prompts,
    render_completion,
    render_embeddings,
)
from appliance.engines.backends.demo_script import ScriptedReply, decide_reply, last_user_text
from appliance.engines.backends.stats import BackendStats
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt, Receipt
from appliance.engines.slots import AnySlot, Slot, SlotStream
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    Operation,
    RequestOptions,
    ServedModel,
)
from appliance.engines.upstream.pacing import make_chunks

OWN_NAME = "demo"  # an alias of its model, whatever that is called
PIECE_CHARACTERS = 12
GATHER_BYTES = 16_384  # events without a pause between them are sent together
FAULT_AT_CHUNK = 2  # the chunk before which a stream stalls or is cut
STALL_S = 3600.0
ERRORS: dict[int, type[ApplianceError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    429: Exhausted,
    503: Unavailable,
    504: TimedOut,
}
RETRYABLE_STATUSES = {429, 503}


class DemoBackend:
    """Answers from a script."""

    name: ClassVar[str] = "demo"
    kind: ClassVar[str] = "demo"
    pool: ClassVar[str] = "demo"
    is_remote: ClassVar[bool] = False
    is_direct: ClassVar[bool] = False
    is_managed: ClassVar[bool] = False
    is_demo: ClassVar[bool] = True
    is_unknown: ClassVar[bool] = False
    context_tokens: ClassVar[int] = 0

    def __init__(
        self,
        public_model: str,
        aliases: tuple[str, ...],
        *,
        clock: Clock,
        metrics: Metrics,
        callbacks: BackendCallbacks = NO_CALLBACKS,
    ) -> None:
        self.stats = BackendStats(self.name, clock=clock, metrics=metrics)
        self.member = self.stats.member
        self._clock = clock
        self._metrics = metrics
        self._callbacks = callbacks
        self._names = (public_model, aliases)
        every = (*aliases, OWN_NAME) if OWN_NAME not in (public_model, *aliases) else aliases
        self._card = ModelCard(public_model, int(clock.now_s()), "demo", "demo", every)
        self._served = ServedModel(self._card, "demo")

    # ---- what it is

    @property
    def in_flight(self) -> int:
        """Requests that it works on at this moment."""
        return self.member.active

    def cards(self) -> list[ModelCard]:
        """List its one model."""
        return [self._card]

    def find_model(self, model: str) -> ServedModel | None:
        """Return its model for every name."""
        return self._served

    def has_names(self, public_model: str, aliases: tuple[str, ...]) -> bool:
        """Whether these are its names."""
        return self._names == (public_model, aliases)

    def status(self, now_s: float) -> BackendStatus:
        """Return READY."""
        return BackendStatus.READY

    def describe(self) -> BackendState:
        """Return its current state."""
        return BackendState(
            self.name,
            self.kind,
            True,
            "built in, no model behind it",
            (),
            (self._card.id,),
            self.in_flight,
            pool=self.pool,
            chosen_total=self.member.total,
            mean_s=self.member.mean_s,
        )

    def measure(self) -> None:
        """Bring its gauges up to date; called when metrics are read."""
        self._metrics.update_backend(self.describe())

    async def close(self) -> None:
        """Do nothing: nothing is open."""

    # ---- slots

    def take(self, reason: str) -> Slot[Self]:
        """Take a slot; there is no limit."""
        return self.stats.open_slot(self, reason)

    def uncounted_slot(self) -> Slot[Self]:
        """Return a slot that takes no capacity."""
        return self.stats.open_uncounted_slot(self)

    async def prepare_passthrough(self, slot: AnySlot, model: str | None, options: RequestOptions) -> None:
        """Do nothing: it is never chosen for passthrough."""

    def record(self, slot: AnySlot, outcome: Outcome, retry_after_s: float | None) -> None:
        """Count the end of a request."""
        self.stats.close_slot(slot, outcome)
        self._callbacks.on_capacity()

    # ---- answering

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer by the script (see Backend.send).

        Raises:
            Invalid: A field of the request is invalid.
            ApplianceError: The error that the prompt asks for.
        """
        outcome, reply = Outcome.CANCELLED, None
        try:
            reply = await self._answer(request, slot)
            outcome = Outcome.OK
            return reply
        except ApplianceError:
            outcome = Outcome.REFUSED
            raise
        finally:
            if reply is None or reply.events is None:
                slot.release(outcome)

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        """Count the tokens of a chat's prompt as its replies do."""
        return count_chat_tokens(body["messages"])

    async def _answer(self, request: EngineRequest, slot: AnySlot) -> EngineReply:
        receipt, body = request.receipt, request.body
        receipt.backend, receipt.endpoint, receipt.served_model = self.name, "demo", "demo"
        attempt = Attempt("demo", Outcome.OK)
        receipt.attempts.append(attempt)
        model = receipt.public_model or self._card.id
        if request.operation is Operation.EMBEDDING:
            embeddings = render_embeddings(body, model)
            receipt.note_usage(embeddings["usage"])
            return EngineReply(body=jsons.dumps(embeddings))
        is_chat = request.operation is Operation.CHAT
        texts = [last_user_text(body["messages"])] if is_chat else read_prompts(request)
        parts = [decide_reply(body, text, is_chat=is_chat) for text in texts]
        if delay_s := max(part.delay_s for part in parts):
            await asyncio.sleep(delay_s)
        if status := parts[0].error_status:
            attempt.outcome, attempt.status = Outcome.STATUS, status
            raise _scripted_error(status)
        head = ReplyHead(receipt.id, int(self._clock.now_s()), model)
        reply = render_completion(body, texts, parts, head, is_chat=is_chat)
        if not request.stream:
            receipt.note_usage(reply["usage"])
            return EngineReply(body=jsons.dumps(reply))
        events = SlotStream(_events(body, reply, parts[0], receipt), slot)
        return EngineReply(events=events, content_type=SSE_CONTENT_TYPE)


async def _events(
    body: dict[str, Any], reply: dict[str, Any], part: ScriptedReply, receipt: Receipt
) -> AsyncGenerator[bytes, None]:
    """Cut a whole reply into events; the stream may stall or be cut off if the prompt asks for it."""
    options = body.get("stream_options")
    include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    gathered: list[bytes] = []
    for number, chunk in enumerate(make_chunks(reply, size=PIECE_CHARACTERS, include_usage=include_usage)):
        if number == FAULT_AT_CHUNK and (part.is_stalled or part.is_cut):
            yield b"".join(gathered)
            if part.is_cut:
                raise UpstreamFailed(
                    "The demo engine broke off its response, as the prompt asked.", code="upstream_cut_off"
                )
            await asyncio.sleep(STALL_S)
        gathered.append(b"data: " + jsons.dumps(chunk) + b"\n\n")
        if sum(map(len, gathered)) > GATHER_BYTES:
            yield b"".join(gathered)
            gathered = []
    receipt.note_usage(reply["usage"])  # with the last events, as engines send it
    yield b"".join([*gathered, b"data: [DONE]\n\n"])


def _scripted_error(status: int) -> ApplianceError:
    """Return the error that a prompt asks for, with exactly that status."""
    kind = ERRORS.get(status, Invalid if status < 500 else UpstreamFailed)
    error = kind(
        f"The demo engine answers with status {status}, as the prompt asked.",
        code="demo_error",
        retry_after_s=1.0 if status in RETRYABLE_STATUSES else None,
    )
    error.details["status"] = status
    return error
