"""Ollama's dialect: NDJSON streams, durations in nanoseconds, errors as `{error: text}`. Names of a relay, not of a model store."""

import base64
import hashlib
import struct
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock, rfc3339
from appliance.base.errors import Invalid, NoSuchModel, Unsupported, UpstreamFailed
from appliance.base.logs import get_logger
from appliance.engines.router import Router
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation
from appliance.front.body import check_types, read_object, type_word
from appliance.front.call import Answer, Call, Derived
from appliance.front.errors import error_event
from appliance.front.ollama_translate import (
    CallGatherer,
    calls_down,
    chat_body,
    done_reason,
    generate_body,
    keep_alive_s,
    metrics_of,
    normalised,
    options_into,
    thinking_of,
)
from appliance.front.sse_read import events_of

log = get_logger("ollama")
API_VERSION = "0.13.0"      # the level of Ollama's API that is spoken here; clients compare it
NDJSON = "application/x-ndjson"
TYPES = {"model": str, "stream": bool, "raw": bool, "messages": list, "images": list, "context": list, "tools": list}
ROUTES = [
    (("GET", "HEAD"), "/", "root"), (("GET", "HEAD"), "/api/version", "version"), (("GET", "HEAD"), "/api/tags", "tags"),
    (("POST",), "/api/show", "show"), (("GET",), "/api/ps", "ps"), (("POST",), "/api/chat", "chat"),
    (("POST",), "/api/generate", "generate"),
    (("POST",), "/api/embed", "embed"), (("POST",), "/api/embeddings", "embeddings"), (("POST",), "/api/pull", "pull"),
    (("POST",), "/api/push", "unsupported"), (("POST",), "/api/create", "unsupported"), (("POST",), "/api/copy", "unsupported"),
    (("DELETE",), "/api/delete", "unsupported"), (("HEAD", "POST"), "/api/blobs/{digest}", "unsupported"),
]


class OllamaDoor:
    """The handlers of `/api`."""

    def __init__(self, router: Router, *, clock: Clock) -> None:
        self._router = router
        self._clock = clock

    # ---- about models

    async def root(self, call: Call) -> Answer:
        """GET /."""
        return Answer(body=b"Ollama is running", content_type="text/plain; charset=utf-8")

    async def version(self, call: Call) -> Answer:
        """GET /api/version: `{version}`."""
        return Answer(body=jsons.dumps({"version": API_VERSION}))

    async def tags(self, call: Call) -> Answer:
        """GET /api/tags: the union of system A's fields and Ollama's."""
        models = [{**self._entry(card), "upstream": card.upstream, "aliases": list(card.aliases),
                   "modified_at": rfc3339(card.created_s), "capabilities": ["completion", "tools"]} for card in self._router.cards()]
        return Answer(body=jsons.dumps({"models": models}))

    async def ps(self, call: Call) -> Answer:
        """GET /api/ps: a relayed model takes no memory here and does not expire."""
        far = rfc3339(self._clock.now_s() + 365 * 86400)
        models = [{**self._entry(card), "expires_at": far, "size_vram": 0, "context_length": 0} for card in self._router.cards()]
        return Answer(body=jsons.dumps({"models": models}))

    async def show(self, call: Call) -> Answer:
        """POST /api/show: what is known of a relayed model."""
        ask = self._read(call)
        card = self._card(ask, must_name=True)
        return Answer(body=jsons.dumps({
            "modelfile": f"# {card.id} is relayed to {card.upstream}; there is no model file here\nFROM {card.id}\n", "parameters": "",
            "template": "", "details": _details(card), "capabilities": ["completion", "tools"], "modified_at": rfc3339(card.created_s),
            "model_info": {"general.architecture": _family(card), "general.name": card.id, "appliance.upstream": card.upstream}}))

    async def pull(self, call: Call) -> Answer:
        """POST /api/pull: a relayed model is always there; the lines are those of system A, in Ollama's order."""
        ask = self._read(call)
        card = self._card(ask)
        name = ask.get("model") or ask.get("name") or card.id
        if ask.get("stream") is False:
            return Answer(body=b'{"status":"success"}')
        lines = [f"pulling {name}", "verifying sha256", "writing manifest", "success"]
        return Answer(body=b"".join(jsons.dumps({"status": line}) + b"\n" for line in lines), content_type=NDJSON)

    async def unsupported(self, call: Call) -> Answer:
        """Writes to a model store: there is none here."""
        raise Unsupported(f"{call.method} {call.path} is not supported: this server relays models and stores none.")

    # ---- answering

    async def chat(self, call: Call) -> Answer:
        """POST /api/chat."""
        ask = self._read(call)
        if ("messages" in ask and not ask["messages"]) or "messages" not in ask:
            return self._loaded(ask, {"message": {"role": "assistant", "content": ""}})
        body, unknown = chat_body(ask)
        return await self._answer(call, ask, body, unknown, is_chat=True)

    async def generate(self, call: Call) -> Answer:
        """POST /api/generate; an empty prompt only loads, as in Ollama."""
        ask = self._read(call)
        if not ask.get("prompt") and not ask.get("messages") and not ask.get("images"):
            return self._loaded(ask, {"response": ""})
        body, unknown = generate_body(ask)
        return await self._answer(call, ask, body, unknown, is_chat=False)

    async def _answer(self, call: Call, ask: dict[str, Any], body: dict[str, Any], unknown: list[str], *, is_chat: bool) -> Answer:
        if unknown:
            log.warning("unknown_options", id=call.id, options=unknown)
        card = self._card(ask)
        is_stream = ask.get("stream") is not False
        body["model"] = ask.get("model") or card.id
        if is_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        reply = await self._router.answer(EngineRequest(Operation.CHAT, body, None, ask.get("model") or "", is_stream, call.receipt))
        shows_thinking = ask.get("think") is not False
        name = ask.get("model") or card.id
        if reply.events is not None:
            lines = self._lines(reply, call, name, is_chat=is_chat, shows_thinking=shows_thinking)
            return Answer(content_type=NDJSON, pieces=Derived(lines, reply.events), on_error=partial(error_event, dialect="ollama"))
        value = jsons.loads(reply.body or b"{}")
        took_s = self._clock.monotonic_s() - call.began_s
        choice = (value.get("choices") or [{}])[0]
        message = choice.get("message") or {}
        calls = calls_down(message.get("tool_calls") or [])
        thinking = thinking_of(message) if shows_thinking else ""
        out = self._part(name, message.get("content") or "", thinking, calls, is_chat=is_chat)
        out |= {"done": True, "done_reason": done_reason(choice.get("finish_reason"))}
        if choice.get("logprobs"):
            out["logprobs"] = choice["logprobs"].get("content")
        if not is_chat:
            out["upstream_model"] = card.upstream       # system A's field
        return Answer(body=jsons.dumps(out | metrics_of(value.get("usage"), total_s=took_s, first_s=0.0)))

    async def _lines(self, reply: EngineReply, call: Call, name: str, *, is_chat: bool, shows_thinking: bool) -> AsyncGenerator[bytes, None]:
        """Give the NDJSON lines of a stream; tool calls are gathered and sent whole, before the closing line."""
        assert reply.events is not None
        gatherer, usage, finish, first_s = CallGatherer(), None, None, 0.0
        async with aclosing(events_of(reply.events)) as events:  # type: ignore[type-var]
            async for event in events:
                usage = event.get("usage") or usage
                for choice in (event.get("choices") or [])[:1]:
                    delta = choice.get("delta") or {}
                    gatherer.add(delta.get("tool_calls"))
                    text, thinking = delta.get("content") or "", thinking_of(delta) if shows_thinking else ""
                    finish = choice.get("finish_reason") or finish
                    if text or thinking:
                        first_s = first_s or self._clock.monotonic_s() - call.began_s
                        part = self._part(name, text, thinking, [], is_chat=is_chat) | {"done": False}
                        if choice.get("logprobs"):
                            part["logprobs"] = choice["logprobs"].get("content")
                        yield jsons.dumps(part) + b"\n"
        if calls := gatherer.calls():
            yield jsons.dumps(self._part(name, "", "", calls, is_chat=is_chat) | {"done": False}) + b"\n"
        last = self._part(name, "", "", [], is_chat=is_chat) | {"done": True, "done_reason": done_reason(finish)}
        took_s = self._clock.monotonic_s() - call.began_s
        yield jsons.dumps(last | metrics_of(usage, total_s=took_s, first_s=first_s)) + b"\n"

    def _part(self, name: str, text: str, thinking: str, calls: list[dict[str, Any]], *, is_chat: bool) -> dict[str, Any]:
        out: dict[str, Any] = {"model": name, "created_at": rfc3339(self._clock.now_s())}
        extra = ({"thinking": thinking} if thinking else {}) | ({"tool_calls": calls} if calls else {})
        if is_chat:
            return out | {"message": {"role": "assistant", "content": text, **extra}}
        return out | {"response": text, **extra}

    def _loaded(self, ask: dict[str, Any], empty: dict[str, Any]) -> Answer:
        card = self._card(ask)
        reason = "unload" if keep_alive_s(ask.get("keep_alive")) == 0 else "load"
        out = {"model": ask.get("model") or card.id, "created_at": rfc3339(self._clock.now_s()), **empty, "done": True,
               "done_reason": reason}
        is_stream = ask.get("stream") is not False
        return Answer(body=jsons.dumps(out) + (b"\n" if is_stream else b""), content_type=NDJSON if is_stream else "application/json")

    # ---- embeddings

    async def embed(self, call: Call) -> Answer:
        """POST /api/embed: `{model, embeddings, total_duration, prompt_eval_count}`, vectors of length 1."""
        ask = self._read(call)
        value = ask.get("input")
        inputs = [] if value in (None, "") else [value] if isinstance(value, str) else value
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise Invalid("invalid input type", param="input")
        vectors, usage = await self._vectors(call, ask, inputs)
        took_s = self._clock.monotonic_s() - call.began_s
        out: dict[str, Any] = {"model": ask.get("model") or self._card(ask).id, "embeddings": [normalised(v) for v in vectors],
                               "total_duration": int(took_s * 1e9), "load_duration": 0}
        return Answer(body=jsons.dumps(out | {"prompt_eval_count": usage.get("prompt_tokens") or 0}))

    async def embeddings(self, call: Call) -> Answer:
        """POST /api/embeddings, the older shape: `{embedding}`."""
        ask = self._read(call)
        prompt = ask.get("prompt", "")
        if not isinstance(prompt, str):
            raise Invalid(f"`prompt` must be a string, not {type_word(prompt)}.", param="prompt")
        vectors, _ = await self._vectors(call, ask, [prompt] if prompt else [])
        return Answer(body=jsons.dumps({"embedding": vectors[0] if vectors else []}))

    async def _vectors(self, call: Call, ask: dict[str, Any], inputs: list[str]) -> tuple[list[list[float]], dict[str, Any]]:
        keep_alive_s(ask.get("keep_alive"))
        if (unknown := options_into({}, ask.get("options"))):
            log.warning("unknown_options", id=call.id, options=unknown)
        card = self._card(ask)
        if not inputs:
            return [], {}
        body: dict[str, Any] = {"model": ask.get("model") or card.id, "input": inputs}
        if ask.get("dimensions"):
            if not isinstance(ask["dimensions"], int):
                raise Invalid(f"`dimensions` must be an integer, not {type_word(ask['dimensions'])}.", param="dimensions")
            body["dimensions"] = ask["dimensions"]
        reply = await self._router.answer(EngineRequest(Operation.EMBEDDING, body, None, ask.get("model") or "", False, call.receipt))
        value = jsons.loads(reply.body or b"{}")
        rows = sorted(value.get("data") or [], key=lambda row: row.get("index", 0))
        if len(rows) != len(inputs):
            raise UpstreamFailed(f"The upstream gave {len(rows)} vectors for {len(inputs)} texts.")
        return [_floats(row["embedding"]) for row in rows], value.get("usage") or {}

    # ---- shared

    def _read(self, call: Call) -> dict[str, Any]:
        if not call.body.strip():
            raise Invalid("missing request body", code="missing_body")
        ask = read_object(call.body)
        check_types(ask, TYPES)
        return ask

    def _card(self, ask: dict[str, Any], *, must_name: bool = False) -> ModelCard:
        """Give the model asked for; without a name the default one, as system A does, unless MODEL_STRICT=1."""
        name = ask.get("model") or ask.get("name") or ""
        if not isinstance(name, str):
            raise Invalid(f"`model` must be a string, not {type_word(name)}.", param="model")
        if not name and (must_name or self._router.settings.model_strict):
            raise Invalid("model is required", param="model")
        try:
            return self._router.resolve(name)
        except NoSuchModel:
            raise NoSuchModel(f"model '{name}' not found", param="model") from None

    def _entry(self, card: ModelCard) -> dict[str, Any]:
        return {"name": card.id, "model": card.id, "size": 0, "digest": hashlib.sha256(card.upstream.encode()).hexdigest(),
                "details": _details(card)}


def _family(card: ModelCard) -> str:
    return "llama" if "llama" in card.upstream.lower() else card.upstream.split("/")[-1].split("-")[0].lower()


def _details(card: ModelCard) -> dict[str, Any]:
    return {"parent_model": "", "format": "remote", "family": _family(card), "families": [_family(card)], "parameter_size": "",
            "quantization_level": ""}


def _floats(vector: Any) -> list[float]:
    """Read a vector that came as numbers or as base64 of little-endian 32-bit floats."""
    if isinstance(vector, str):
        raw = base64.b64decode(vector)
        return list(struct.unpack(f"<{len(raw) // 4}f", raw))
    return [float(x) for x in vector]
