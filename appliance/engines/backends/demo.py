"""The demo engine: answers every model with a deterministic echo, and says in each reply that it is the demo engine.

No model stands behind it. It is there so that the appliance can be tried, and clients tested, without a key and without a
GPU; what prompts provoke which behaviour: docs/demo-engine.md.
"""

import asyncio
import base64
import hashlib
import struct
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

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
from appliance.engines.backends.demo_script import (
    DIMENSIONS,
    ScriptedReply,
    count_tokens,
    decide_reply,
    embed,
    last_user_text,
)
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt
from appliance.engines.slots import AnySlot, BackendStats, SlotStream
from appliance.engines.types import (
    BackendState,
    BackendStatus,
    EngineReply,
    EngineRequest,
    ModelCard,
    Operation,
    ServedModel,
)
from appliance.engines.upstream.pacing import chunks_of

FINGERPRINT = "demo-engine"
PIECE_CHARACTERS = 12
GATHER_BYTES = 16_384  # events that need no pause travel together


class DemoBackend(BackendStats):
    """Answers from a script."""

    kind: ClassVar[str] = "demo"
    is_remote: ClassVar[bool] = False
    context_tokens: ClassVar[int] = 0

    def __init__(
        self, public_model: str, aliases: tuple[str, ...], *, clock: Clock, metrics: Metrics
    ) -> None:
        super().__init__("demo", pool="demo", clock=clock, metrics=metrics)
        self._cards = [ModelCard(public_model, int(clock.now_s()), "demo", "demo", aliases)]
        self._served = ServedModel(self._cards[0], "demo")

    def cards(self) -> list[ModelCard]:
        return self._cards

    def find_model(self, model: str) -> ServedModel | None:
        return self._served

    def status(self, now_s: float) -> BackendStatus:
        return BackendStatus.READY

    def state(self) -> BackendState:
        return BackendState(
            self.name,
            self.kind,
            True,
            "built in, no model behind it",
            (),
            (self._cards[0].id,),
            self.in_flight,
            pool=self.pool,
            chosen_total=self.member.total,
            mean_s=self.member.mean_s,
        )

    def measure(self) -> None:
        """Bring its gauges up to date."""
        self._metrics.update_backend(self.state())

    async def close(self) -> None:
        """Nothing is open."""

    async def send(self, request: EngineRequest, slot: AnySlot, *, budget_s: float) -> EngineReply:
        """Answer by the script.

        Gives   EngineReply as Backend.send; Raises Invalid for shapes it cannot read, and what a prompt provokes
        """
        reply, outcome = None, Outcome.CANCELLED
        try:
            reply = await self._play(request, slot)
            outcome = Outcome.OK
            return reply
        except ApplianceError:
            outcome = Outcome.REFUSED
            raise
        finally:
            if reply is None or reply.events is None:
                slot.release(outcome)

    async def _play(self, request: EngineRequest, slot: AnySlot) -> EngineReply:
        receipt = request.receipt
        receipt.backend, receipt.endpoint, receipt.served_model = self.name, "demo", "demo"
        attempt = Attempt("demo", Outcome.OK)
        receipt.attempts.append(attempt)
        if request.operation is Operation.EMBEDDING:
            return self._embeddings(request)
        is_chat = request.operation is Operation.CHAT
        texts = (
            [last_user_text(request.body["messages"])] if is_chat else _prompts(request.body.get("prompt"))
        )
        parts = [decide_reply(request.body, text, is_chat=is_chat) for text in texts]
        if delay_s := max(part.delay_s for part in parts):
            await asyncio.sleep(delay_s)
        if status := parts[0].error_status:
            attempt.outcome, attempt.status = Outcome.STATUS, status
            raise _provoked(status)
        reply = self._reply(request, texts, parts, is_chat=is_chat)
        receipt.prompt_tokens, receipt.completion_tokens = (
            reply["usage"]["prompt_tokens"],
            reply["usage"]["completion_tokens"],
        )
        if not request.stream:
            return EngineReply(body=jsons.dumps(reply))
        return EngineReply(
            events=SlotStream(self._events(request, reply, parts[0]), slot), content_type=SSE_CONTENT_TYPE
        )

    def _reply(
        self, request: EngineRequest, texts: list[str], parts: list[ScriptedReply], *, is_chat: bool
    ) -> dict[str, Any]:
        body = request.body
        asked = body.get("n")
        n: int = asked if isinstance(asked, int) and asked > 0 else 1
        if n > 128:
            raise Invalid("`n` must be at most 128.", param="n", code="invalid_value")
        make = self._chat_choice if is_chat else self._text_choice
        choices = [
            make(index, part, body) for index, part in enumerate(part for part in parts for _ in range(n))
        ]
        prompt = (
            sum(map(count_tokens, texts))
            if not is_chat
            else sum(
                count_tokens(jsons.dumps_text(m.get("content"))) + 3
                for m in body["messages"]
                if isinstance(m, dict)
            )
        )
        completion = n * sum(
            count_tokens(p.text) + count_tokens(p.reasoning) + sum(count_tokens(a) for _, a in p.tool_calls)
            for p in parts
        )
        reply_id = hashlib.blake2b(f"{request.receipt.id}".encode(), digest_size=12).hexdigest()
        return {
            "id": ("chatcmpl-" if is_chat else "cmpl-") + reply_id,
            "object": "chat.completion" if is_chat else "text_completion",
            "created": int(self._clock.now_s()),
            "model": request.receipt.public_model or self._cards[0].id,
            "choices": choices,
            "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": prompt + completion,
                "completion_tokens_details": {
                    "reasoning_tokens": n * sum(count_tokens(p.reasoning) for p in parts)
                },
            },
            "system_fingerprint": FINGERPRINT,
        }

    def _chat_choice(self, index: int, part: ScriptedReply, body: dict[str, Any]) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": part.text if not part.tool_calls else None,
            "refusal": None,
        }
        if part.reasoning:
            message["reasoning_content"] = part.reasoning
        if part.tool_calls:
            message["tool_calls"] = [
                {
                    "id": f"call_demo_{index}_{number}",
                    "type": "function",
                    "function": {"name": name, "arguments": arguments},
                }
                for number, (name, arguments) in enumerate(part.tool_calls)
            ]
        logprobs = None
        if body.get("logprobs") and part.text:
            top = body.get("top_logprobs") or 0
            words = [w for w in part.text.replace(" ", "\0 ").split("\0") if w]
            logprobs = {"content": [_logprob(word, top) for word in words], "refusal": None}
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def _text_choice(self, index: int, part: ScriptedReply, body: dict[str, Any]) -> dict[str, Any]:
        return {"index": index, "text": part.text, "logprobs": None, "finish_reason": part.finish_reason}

    async def _events(
        self, request: EngineRequest, reply: dict[str, Any], part: ScriptedReply
    ) -> AsyncGenerator[bytes, None]:
        options = request.body.get("stream_options")
        include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        gathered: list[bytes] = []
        for number, chunk in enumerate(chunks_of(reply, size=PIECE_CHARACTERS, include_usage=include_usage)):
            if number == 2 and (part.is_stalled or part.is_cut):
                yield b"".join(gathered)
                if part.is_cut:
                    raise UpstreamFailed(
                        "The demo engine broke off its answer, as it was asked to.", code="upstream_cut_off"
                    )
                await asyncio.sleep(3600)
            gathered.append(b"data: " + jsons.dumps(chunk) + b"\n\n")
            if sum(map(len, gathered)) > GATHER_BYTES:
                yield b"".join(gathered)
                gathered = []
        yield b"".join([*gathered, b"data: [DONE]\n\n"])

    def _embeddings(self, request: EngineRequest) -> EngineReply:
        body = request.body
        value = body.get("input")
        inputs = (
            [value]
            if isinstance(value, str) or (isinstance(value, list) and value and isinstance(value[0], int))
            else value
        )
        if not isinstance(inputs, list) or not all(isinstance(i, (str, list)) for i in inputs):
            raise Invalid(
                "`input` must be a string, an array of strings, or arrays of token numbers.", param="input"
            )
        dimensions = body.get("dimensions") or DIMENSIONS
        if not isinstance(dimensions, int) or not 1 <= dimensions <= 4096:
            raise Invalid("`dimensions` must be an integer from 1 to 4096.", param="dimensions")
        data = []
        for index, item in enumerate(inputs):
            vector: Any = embed(item if isinstance(item, str) else " ".join(map(str, item)), dimensions)
            if body.get("encoding_format") == "base64":
                vector = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode()
            data.append({"object": "embedding", "index": index, "embedding": vector})
        count = sum(count_tokens(i) if isinstance(i, str) else len(i) for i in inputs)
        request.receipt.prompt_tokens = count
        return EngineReply(
            body=jsons.dumps(
                {
                    "object": "list",
                    "data": data,
                    "model": request.receipt.public_model or self._cards[0].id,
                    "usage": {"prompt_tokens": count, "total_tokens": count},
                }
            )
        )


def _prompts(prompt: Any) -> list[str]:
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(p, str) for p in prompt):
        return list(prompt)
    if isinstance(prompt, list) and prompt and all(isinstance(p, (int, list)) for p in prompt):
        return [" ".join(map(str, p)) for p in ([prompt] if isinstance(prompt[0], int) else prompt)]
    raise Invalid(
        "`prompt` must be a string, an array of strings, or arrays of token numbers.",
        param="prompt",
        code="invalid_type",
    )


def _logprob(word: str, top: int) -> dict[str, Any]:
    entry = {"token": word, "logprob": 0.0, "bytes": list(word.encode())}
    return {**entry, "top_logprobs": [dict(entry)] if top else []}


def _provoked(status: int) -> Exception:
    """Give the error a prompt asked for, with exactly that status."""
    kinds: dict[int, Any] = {
        401: Unauthenticated,
        403: Forbidden,
        404: NotFound,
        429: Exhausted,
        503: Unavailable,
        504: TimedOut,
    }
    error = kinds.get(status, Invalid if status < 500 else UpstreamFailed)
    raised = error(
        f"The demo engine answers with status {status}, as it was asked to.",
        code="demo_error",
        retry_after_s=1.0 if status in {429, 503} else None,
    )
    raised.details["status"] = status
    return raised  # type: ignore[no-any-return]
