"""A stream that is paid for while it flows, and ended cleanly where it cannot be paid for any longer."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError
from appliance.base.inline import in_task
from appliance.engines.billing import RequestMeter, TokenCounts
from appliance.engines.left_streams import LeftStreams
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Receipt
from appliance.engines.stream import Stream
from appliance.engines.types import EngineRequest, Operation
from appliance.engines.upstream.exchange import count_choices

ENGINES_OWN = ("usage", "timings")  # of Receipt.tokens_from: the engine has counted
MAX_KEPT_BYTES = 4096  # of the first event, whose id the last one repeats
DONE = b"data: [DONE]\n\n"


class MeteredStream(Stream):
    """The stream of one attempt, metered piece by piece. Closing it charges the attempt.

    Args:
        source: The engine's events, in OpenAI's dialect.
        meter: Of the request; an attempt runs.
        request: What is answered.
        left: Reads it to its end where the client leaves; None = it is closed then.
    """

    __slots__ = (
        "_counter",
        "_first",
        "_is_closed",
        "_is_left",
        "_left",
        "_meter",
        "_reading",
        "_refused",
        "_request",
        "_seen",
        "_source",
        "_took",
        "_write",
    )

    def __init__(
        self, source: Stream, meter: RequestMeter, request: EngineRequest, left: LeftStreams | None = None
    ) -> None:
        self._source = source
        self._meter = meter
        self._request = request
        self._left = left
        self._reading: asyncio.Task[Any] | None = (
            None  # of the source, which a client that leaves does not end
        )
        self._counter = source.event_counter()
        self._took = meter.took
        self._write: Callable[[bytes], bool] | None = None
        self._seen = 0
        self._first = b""
        self._is_closed = self._is_left = False
        self._refused: tuple[int, bytes] | None = None  # its events, and a piece that is not paid for yet

    @property
    def events(self) -> int:
        """Events that were passed on."""
        return self._source.events

    @property
    def outcome(self) -> Outcome | None:
        """How the attempt ended; None = it runs."""
        return self._source.outcome

    def _take(self, piece: bytes) -> bool:
        """Meter a piece, and pass it to `_write`; False = it is not paid for, or no more is wanted."""
        if not self._first:
            self._first = piece[:MAX_KEPT_BYTES]
        total = self._counter.events
        new = total - self._seen if total else piece.count(b"data: ")
        self._seen = total
        if self._took(new, len(piece)):
            return self._write is None or self._write(piece)
        self._refused = (new, piece)
        return False

    async def _pay_later(self) -> bytes:
        """Return the refused piece, paid for after a wait; else what of it is paid for, and the end."""
        assert self._refused is not None
        (events, piece), self._refused = self._refused, None
        await in_task()
        if await self._meter.took_later(events, len(piece)):
            return piece
        paid = await self._pass_paid(piece)
        return paid if len(paid) == len(piece) else paid + await self._stop()

    async def _pass_paid(self, piece: bytes) -> bytes:
        """Return the events of a refused piece, up to the first one that is not paid for.

        All of it, where other requests have given money back meanwhile: the response goes on.
        """
        end, meter = 0, self._meter
        while (found := piece.find(b"\n\n", end)) >= 0:
            event = piece[end : found + 2]
            counts = (int(event.startswith(b"data: ")), len(event))
            if event != DONE and not (meter.took(*counts) or await meter.took_later(*counts)):
                return piece[:end]
            end = found + 2
        return piece[:end]

    async def __anext__(self) -> bytes:
        if self._is_closed:
            raise StopAsyncIteration
        try:
            source = self._source
            piece = await (
                source.__anext__() if self._left is None else self._read_apart(self._left, source.__anext__())
            )
        except StopAsyncIteration:
            self._end(Outcome.OK)
            raise
        except Exception:
            self._end(Outcome.CUT_OFF)
            raise
        return piece if self._take(piece) else await self._pay_later()

    async def pass_pieces(self, write: Callable[[bytes], bool]) -> bool:
        """Give each piece to `write` as soon as it is there (see Stream)."""
        if self._is_closed:
            return True
        while True:
            self._write = write
            try:
                passing = self._source.pass_pieces(self._take)
                has_ended = await (passing if self._left is None else self._read_apart(self._left, passing))
            except Exception:
                self._end(Outcome.CUT_OFF)
                raise
            finally:
                self._write = None
            if self._refused is None:
                break
            is_wanted = write(await self._pay_later())
            if self._is_closed or not is_wanted:
                return self._is_closed and is_wanted
        if has_ended:
            self._end(Outcome.OK)
        return has_ended

    async def aclose(self) -> None:
        """Close the source, and charge what was received; or let it be read to its end, and charged then."""
        left, self._left = self._left, None
        has_more = not self._is_closed and bool(self._first) and self._source.outcome is None
        if left is not None and has_more:
            self._is_left = left.take(self)
        if not self._is_left:
            await self.close_now()

    async def read_to_end(self) -> None:
        """Read, meter and charge what the client has not waited for, as far as it is paid for.

        Raises:
            Exception: The source breaks off.
        """
        reading = self._reading
        if reading is not None:
            found, self._reading = await reading, None
            if found is True or isinstance(found, Exception):
                self._end(Outcome.CUT_OFF if isinstance(found, ApplianceError) else Outcome.OK)
            elif isinstance(found, bytes):
                self._take(found)
            if self._refused is not None:
                await self._pay_later()
        while not await self.pass_pieces(_drop):
            pass

    async def _read_apart(self, left: LeftStreams, reading: Awaitable[Any]) -> Any:
        """Wait for a reading of the source in a task of its own: cancelling the wait does not end it."""
        await in_task()
        self._reading = task = left.start(_result_of(reading))
        found = await asyncio.shield(task)
        self._reading = None
        if isinstance(found, Exception):
            raise found
        return found

    async def close_now(self) -> None:
        """Close the source, and charge what was received."""
        reading, self._reading = self._reading, None
        try:
            if reading is not None and not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
            await self._source.aclose()
        finally:
            self._end(Outcome.CLIENT_LEFT)

    async def _stop(self) -> bytes:
        """End the response, since no more of it is paid for; return its last piece."""
        counted = self._meter.counted
        try:
            await self._source.aclose()
        finally:
            self._request.receipt.stop_reason = self._meter.stop_reason
            self._charge(Outcome.CLOSED, None)
        return render_stop(self._request, self._first, counted, self._meter.stop_reason)

    def _end(self, outcome: Outcome) -> None:
        """Charge the attempt, if it was not; `outcome`: where the source does not say how it ended."""
        if not self._is_closed:
            usage = read_usage(self._request.receipt, self._meter)
            self._charge(self._source.outcome or outcome, usage)

    def _charge(self, outcome: Outcome, usage: TokenCounts | None) -> None:
        self._is_closed = True
        try:
            self._meter.end_attempt(outcome, usage)
        finally:
            self._meter.close()


def _drop(_: bytes) -> bool:
    return True


async def _result_of(reading: Awaitable[Any]) -> Any:
    """Return what it returns or raises: its reader may have gone."""
    try:
        return await reading
    except Exception as error:
        return error


def read_usage(receipt: Receipt, meter: RequestMeter) -> TokenCounts | None:
    """Return the engine's own token counts; None = it gave none. One that it left out is ours."""
    if receipt.tokens_from not in ENGINES_OWN:
        return None
    prompt, completion = receipt.prompt_tokens, receipt.completion_tokens
    if prompt is None or completion is None:
        counted = meter.counted
        prompt = counted.prompt if prompt is None else prompt
        completion = counted.completion if completion is None else completion
    return TokenCounts(prompt, receipt.cached_tokens, completion)


def render_stop(request: EngineRequest, first: bytes, counted: TokenCounts, reason: str) -> bytes:
    """Return the last events of a stream that we ended: every choice ends for its length.

    Args:
        request: What was answered.
        first: The beginning of the stream; the id is taken from it.
        counted: What was received; shown where the client asked for usage.
        reason: Why: the field `appliance.stop_reason`.
    """
    is_chat = request.operation is Operation.CHAT
    like = _first_event(first)
    row: dict[str, Any] = {
        "id": like.get("id") or f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}",
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": like.get("created") or int(request.receipt.at_s),
        "model": request.public_model,
    }
    empty: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
    count = request.choices or count_choices(request.body)
    choices = [{"index": number, **empty, "finish_reason": "length"} for number in range(count)]
    last = {**row, "choices": choices, "appliance": {"stop_reason": reason}}
    events = [b"data: " + jsons.dumps(last) + b"\n\n"]
    options = request.body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        usage = {
            "prompt_tokens": counted.prompt,
            "completion_tokens": counted.completion,
            "total_tokens": counted.prompt + counted.completion,
        }
        events.append(b"data: " + jsons.dumps({**row, "choices": [], "usage": usage}) + b"\n\n")
    return b"".join(events) + DONE


def _first_event(data: bytes) -> dict[str, Any]:
    """Return the first event of a stream as an object; {} where it cannot be read."""
    line = next((line for line in data.splitlines() if line.startswith(b"data: {")), b"")
    try:
        value = jsons.loads(line.removeprefix(b"data: "))
    except jsons.InvalidJson:
        return {}
    return value if isinstance(value, dict) else {}
