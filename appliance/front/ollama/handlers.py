"""Ollama's dialect: NDJSON streams, durations in nanoseconds, errors as `{error: text}`. Models are answered for, and can be pulled.

Requests are translated in ollama_translate.py, replies in ollama_reply.py; models that run here are told of in ollama_models.py,
relayed ones in this file. Replies carry the public model name. Source: Ollama's
API (level API_VERSION); system A, `/api/tags`, `/api/pull`, `/api/generate` (where the two differ, the union).
"""

import hashlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import Invalid, NoSuchModel, Unsupported
from appliance.engines.router import Router
from appliance.engines.stream import GeneratedStream, start_stream
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation
from appliance.front.ollama.context import pack
from appliance.front.ollama.models import LocalModels, not_found
from appliance.front.ollama.ndjson import CONTENT_TYPE, HEARTBEAT, line
from appliance.front.ollama.pull import PullHandlers
from appliance.front.ollama.reply import ReplyFormat, StreamTranslator, normalised, ns, vectors_of, whole
from appliance.front.ollama.translate import (
    TYPES,
    TranslatedRequest,
    chat_up,
    generate_up,
    keep_alive_s,
    options_up,
)
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.replies import parse_error_reply, parse_reply
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import read_events
from appliance.models.status.views import ModelManagerApi
from appliance.models.table.library import ModelLibrary

log = structlog.get_logger("ollama")
API_VERSION = "0.13.0"  # the level of Ollama's API that is spoken here; clients compare it
FAR_S = 365 * 86_400  # a relayed model does not expire
CAPABILITIES = ["completion", "tools"]
DEMO_CAPABILITIES = ["completion", "tools", "insert", "embedding", "thinking"]
MOST_NAMES_LOGGED = 10
STREAM = Response(
    content_type=CONTENT_TYPE, on_error=partial(error_event, dialect="ollama"), heartbeat=HEARTBEAT
)


class OllamaHandlers:
    """The handlers of `/api`.

    Takes   board, library: of the models that run here, None = all are relayed; pulls: None = none can be pulled; heartbeat_s: after how
            long without an answer a streaming client gets its headers and heartbeats
    """

    def __init__(
        self,
        router: Router,
        *,
        clock: Clock,
        manager: ModelManagerApi | None = None,
        library: ModelLibrary | None = None,
        pulls: PullHandlers | None = None,
        heartbeat_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._router = router
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._local = LocalModels(manager, library, clock=clock) if manager is not None else None
        self._pulls = pulls

    # ---- about models

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET", "HEAD"), "/", self.root, dialect="ollama", access=Access.PUBLIC),
            Route(("GET", "HEAD"), "/api/version", self.version, dialect="ollama"),
            Route(("GET", "HEAD"), "/api/tags", self.tags, dialect="ollama"),
            Route(("POST",), "/api/show", self.show, dialect="ollama"),
            Route(("GET",), "/api/ps", self.ps, dialect="ollama"),
            Route(("POST",), "/api/chat", self.chat, dialect="ollama", is_hot=True),
            Route(("POST",), "/api/generate", self.generate, dialect="ollama", is_hot=True),
            Route(("POST",), "/api/embed", self.embed, dialect="ollama"),
            Route(("POST",), "/api/embeddings", self.embeddings, dialect="ollama"),
            Route(("POST",), "/api/pull", self.pull, dialect="ollama"),
            Route(("POST",), "/api/push", self.unsupported, dialect="ollama"),
            Route(("POST",), "/api/create", self.unsupported, dialect="ollama"),
            Route(("POST",), "/api/copy", self.unsupported, dialect="ollama"),
            Route(("DELETE",), "/api/delete", self.delete, dialect="ollama"),
            Route(("HEAD", "POST"), "/api/blobs/{digest}", self.unsupported, dialect="ollama"),
        ]

    async def root(self, request: Request) -> Response:
        """GET /: what Ollama's clients look for; for who wants JSON `{message}`, as system C."""
        if "application/json" in request.headers.get("accept", ""):
            return json_response({"message": "The inference appliance is running."})
        return Response(body=b"Ollama is running", content_type="text/plain; charset=utf-8")

    async def version(self, request: Request) -> Response:
        """GET /api/version: `{version}`."""
        return json_response({"version": API_VERSION})

    async def tags(self, request: Request) -> Response:
        """GET /api/tags: `{models: [{name, upstream, aliases, model, modified_at, size, digest, details, capabilities, …}]}`."""
        cards = self._router.cards()
        local = await self._local.tags(card.id for card in cards) if self._local else {}
        models = [
            {
                **(local.get(card.id) or self._relayed(card)),
                "upstream": card.upstream,
                "aliases": list(card.aliases),
            }
            for card in cards
        ]
        return json_response({"models": models})

    async def ps(self, request: Request) -> Response:
        """GET /api/ps: the models that are loaded here; relayed ones are always ready, take no memory here and do not expire."""
        far = format_rfc3339(self._clock.now_s() + FAR_S)
        loaded = await self._local.loaded() if self._local else []
        relayed = [
            {**self._entry(card), "expires_at": far, "size_vram": 0}
            for card in self._router.cards()
            if not self._is_local(card)
        ]
        return json_response({"models": loaded + relayed})

    async def show(self, request: Request) -> Response:
        """POST /api/show: what is known of a model, by any name that is answered."""
        ask = self._read(request)
        card = self._card(ask, must_name=True)
        if self._local and self._is_local(card):
            return json_response(await self._local.show(card.id, verbose=bool(ask.get("verbose"))))
        return json_response(
            {
                "modelfile": f"# {card.id} is relayed to {card.upstream}; there is no model file here\nFROM {card.id}\n",
                "parameters": "",
                "template": "",
                "details": _details(card),
                "capabilities": self._capabilities(),
                "modified_at": format_rfc3339(card.created_s),
                **self._remote(card),
                "model_info": {
                    "general.architecture": _family(card),
                    "general.name": card.id,
                    "appliance.upstream": card.upstream,
                },
            }
        )

    async def pull(self, request: Request) -> Response:
        """POST /api/pull: a name of Hugging Face's is fetched (ollama_pull.py); a relayed model is always there: the four lines are system A's,
        `success` ends them as in Ollama."""
        ask = self._read(request, may_be_empty=True)
        if (
            self._pulls
            and (
                response := await self._pulls.pull(
                    request, _name(ask), is_stream=ask.get("stream") is not False
                )
            )
            is not None
        ):
            return response
        card = self._card(ask)
        if ask.get("stream") is False:
            return json_response({"status": "success"})
        lines = [f"pulling {_name(ask) or card.id}", "verifying sha256", "writing manifest", "success"]
        return Response(
            body=b"".join(line({"status": status}) for status in lines), content_type=CONTENT_TYPE
        )

    async def delete(self, request: Request) -> Response:
        """DELETE /api/delete: removes a model that was pulled; others are the operator's own."""
        if self._pulls is None:
            return await self.unsupported(request)
        return await self._pulls.delete(request, _name(self._read(request)))

    async def unsupported(self, request: Request) -> Response:
        """Writes to a model store that there is not here."""
        raise Unsupported(
            f"{request.method} {request.path} is not supported: this server makes, copies and takes in no models."
        )

    # ---- answering

    async def chat(self, request: Request) -> Response:
        """POST /api/chat; without messages it only loads, as in Ollama."""
        ask = self._read(request)
        if not ask.get("messages"):
            return await self._loaded(request, ask, {"message": {"role": "assistant", "content": ""}})
        return await self._answer(request, ask, chat_up(ask), is_chat=True)

    async def generate(self, request: Request) -> Response:
        """POST /api/generate; without a prompt (or system A's `messages`) it only loads, as in Ollama."""
        ask = self._read(request)
        if not any(ask.get(name) for name in ("prompt", "messages", "suffix", "images")):
            return await self._loaded(request, ask, {"response": ""})
        return await self._answer(request, ask, generate_up(ask), is_chat=False)

    async def _answer(
        self, request: Request, ask: dict[str, Any], asked: TranslatedRequest, *, is_chat: bool
    ) -> Response:
        """Ask the engines, and tell what they say in one piece or line by line."""
        self._note_ignored(request, asked.ignored)
        card = self._card(ask)
        is_stream = ask.get("stream") is not False
        voice = ReplyFormat(card.id, is_chat, shows_thinking=ask.get("think") is not False)
        memory = None if is_chat or asked.operation is Operation.COMPLETION else asked.body["messages"]
        if is_stream:
            asked.body |= {"stream": True, "stream_options": {"include_usage": True}}
        engine_request = self._request(request, ask, card, asked.operation, asked.body, is_stream=is_stream)
        if is_stream:
            return await respond_or_heartbeat(
                self._stream(engine_request, request, StreamTranslator(voice), memory),
                STREAM,
                heartbeat_s=self._heartbeat_s(),
                late_headers=engine_request.status_headers,
            )
        reply = await self._ask(engine_request)
        out, text = whole(
            parse_reply(reply), voice, at_s=self._clock.now_s(), elapsed_s=self._elapsed_s(request)
        )
        if not is_chat:
            out["upstream_model"] = card.upstream  # system A's field
        return json_response(_with_context(out, memory, text))

    async def _stream(
        self,
        engine_request: EngineRequest,
        request: Request,
        teller: StreamTranslator,
        memory: list[dict[str, Any]] | None,
    ) -> Response:
        reply = await self._ask(engine_request)
        assert reply.events is not None
        return replace(
            STREAM,
            pieces=await start_stream(
                GeneratedStream(self._lines(reply, request, teller, memory), reply.events)
            ),
        )

    async def _lines(
        self,
        reply: EngineReply,
        request: Request,
        teller: StreamTranslator,
        memory: list[dict[str, Any]] | None,
    ) -> AsyncGenerator[bytes, None]:
        """Give the lines of a stream, the closing one last."""
        assert reply.events is not None
        now_s = self._clock.now_s
        async with aclosing(read_events(reply.events)) as events:
            async for event in events:
                part = teller.take(event, at_s=now_s(), elapsed_s=self._elapsed_s(request))
                if part is not None:
                    yield line(part)
        *calls, last = teller.end(at_s=now_s(), elapsed_s=self._elapsed_s(request))
        for part in calls:
            yield line(part)
        yield line(_with_context(last, memory, teller.text))

    async def _loaded(self, request: Request, ask: dict[str, Any], empty: dict[str, Any]) -> Response:
        """Answer a request that only loads a model, or unloads it (`keep_alive: 0`); for a relayed one both are done already."""
        card = self._card(ask)
        if ask.get("stream") is False:
            return await self._touched(request, ask, card, empty)
        return await respond_or_heartbeat(
            self._touched(request, ask, card, empty), STREAM, heartbeat_s=self._heartbeat_s()
        )

    async def _touched(
        self, request: Request, ask: dict[str, Any], card: ModelCard, empty: dict[str, Any]
    ) -> Response:
        stay_s = keep_alive_s(ask.get("keep_alive"))
        took_s = await self._touch(card, stay_s)
        out = {
            "model": card.id,
            "created_at": format_rfc3339(self._clock.now_s()),
            **empty,
            "done": True,
            "done_reason": "unload" if stay_s == 0 else "load",
        }
        if took_s:
            out |= {"total_duration": ns(self._elapsed_s(request)), "load_duration": ns(took_s)}
        if ask.get("stream") is False:
            return json_response(out)
        return Response(body=line(out), content_type=CONTENT_TYPE)

    async def _touch(self, card: ModelCard, stay_s: float | None) -> float:
        """Load or unload a model that runs here; give the seconds that loading took."""
        return await self._local.touch(card.id, stay_s) if self._local and self._is_local(card) else 0.0

    # ---- embeddings

    async def embed(self, request: Request) -> Response:
        """POST /api/embed: `{model, embeddings, total_duration, prompt_eval_count}`, vectors of length 1."""
        ask = self._read(request)
        value = ask.get("input")
        inputs = [] if value in (None, "") else [value] if isinstance(value, str) else value
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise Invalid("invalid input type", param="input")
        card = self._card(ask)
        vectors, count = await self._vectors(request, ask, card, inputs)
        out: dict[str, Any] = {"model": card.id, "embeddings": [normalised(v) for v in vectors]}
        numbers = {"total_duration": ns(self._elapsed_s(request)), "prompt_eval_count": count}
        return json_response(out | {name: number for name, number in numbers.items() if number})

    async def embeddings(self, request: Request) -> Response:
        """POST /api/embeddings, the older shape: `{embedding}`, as the engine gave it."""
        ask = self._read(request)
        prompt = ask.get("prompt")
        vectors, _ = await self._vectors(request, ask, self._card(ask), [prompt] if prompt else [])
        return json_response({"embedding": vectors[0] if vectors else []})

    async def _vectors(
        self, request: Request, ask: dict[str, Any], card: ModelCard, inputs: list[str]
    ) -> tuple[list[list[float]], int]:
        """Give one vector a text, and the tokens that were read."""
        stay_s = keep_alive_s(ask.get("keep_alive"))
        self._note_ignored(request, options_up(ask.get("options"))[1])
        if not inputs:
            await self._touch(card, stay_s)
            return [], 0
        body: dict[str, Any] = {"input": inputs}
        if ask.get("dimensions"):
            body["dimensions"] = ask["dimensions"]
        value = parse_reply(
            await self._ask(self._request(request, ask, card, Operation.EMBEDDING, body, is_stream=False))
        )
        usage = value.get("usage")
        return vectors_of(value, len(inputs)), (usage.get("prompt_tokens") or 0) if isinstance(
            usage, dict
        ) else 0

    # ---- shared

    async def _ask(self, engine_request: EngineRequest) -> EngineReply:
        """Ask the engines; an error status of theirs is raised."""
        reply = await self._router.answer(engine_request)
        if reply.status >= 400:
            raise parse_error_reply(reply.status, reply.body or b"")
        return reply

    def _request(
        self,
        request: Request,
        ask: dict[str, Any],
        card: ModelCard,
        operation: Operation,
        body: dict[str, Any],
        *,
        is_stream: bool,
    ) -> EngineRequest:
        """Give what the engines are asked: for the model that was named, with the wishes of Ollama's own fields."""
        name = _name(ask)
        body["model"] = name or card.id
        options = request.options
        if (stay_s := keep_alive_s(ask.get("keep_alive"))) is not None:
            options = replace(options, keep_alive_s=stay_s)
        given = ask.get("options")
        context = given.get("num_ctx") if isinstance(given, dict) else None
        if (
            isinstance(context, int) and context > 0
        ):  # the client counts on so much: a smaller one would cut what it sends
            options = replace(options, context_tokens=context)
        return EngineRequest(operation, body, None, name, is_stream, request.receipt, options)

    def _read(self, request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
        """Read the body and check the types of what is known in it."""
        if not request.body.strip():
            if may_be_empty:
                return {}
            raise Invalid("missing request body", code="missing_body")
        ask = read_object(request.body)
        check_types(ask, TYPES)
        return ask

    def _card(self, ask: dict[str, Any], *, must_name: bool = False) -> ModelCard:
        """Give the model asked for; without a name the default one, as system A does, unless MODEL_STRICT=1."""
        name = _name(ask)
        if not name and (must_name or self._router.settings.model_strict):
            raise Invalid("model is required", param="model")
        try:
            return self._router.resolve(name)
        except NoSuchModel:
            raise not_found(name) from None

    def _note_ignored(self, request: Request, names: list[str]) -> None:
        """Warn of what was not used, as Ollama does; the names are the client's, so they are cut."""
        if names:
            log.warning(
                "ignored",
                id=request.id,
                names=[name[:64] for name in names[:MOST_NAMES_LOGGED]],
                count=len(names),
            )

    def _elapsed_s(self, request: Request) -> float:
        return self._clock.monotonic_s() - request.began_s

    def _capabilities(self) -> list[str]:
        return DEMO_CAPABILITIES if self._router.is_demo else CAPABILITIES

    def _is_local(self, card: ModelCard) -> bool:
        return self._local is not None and self._local.has(card.id)

    def _relayed(self, card: ModelCard) -> dict[str, Any]:
        """Give what /api/tags says of a model that is elsewhere."""
        return {
            **self._entry(card),
            "modified_at": format_rfc3339(card.created_s),
            "capabilities": self._capabilities(),
        }

    def _entry(self, card: ModelCard) -> dict[str, Any]:
        """Give what /api/tags and /api/ps share; nothing of the model lies on this machine, so its size is 0."""
        return {
            "name": card.id,
            "model": card.id,
            **self._remote(card),
            "size": 0,
            "digest": hashlib.sha256(card.upstream.encode()).hexdigest(),
            "details": _details(card),
        }

    def _remote(self, card: ModelCard) -> dict[str, str]:
        """Give the fields by which Ollama says that a model is elsewhere; the demo engine is not."""
        if card.owned_by != "novita":
            return {}
        return {
            "remote_model": card.upstream,
            "remote_host": self._router.settings.novita_openai_endpoints[0],
        }


def _name(ask: dict[str, Any]) -> str:
    """Give the name asked for, under its present or its older field; "" = none."""
    return str(ask.get("model") or ask.get("name") or "")


def _family(card: ModelCard) -> str:
    """Guess a model's family from its name: what stands before the first number or dash."""
    name = card.upstream.rsplit("/", 1)[-1].lower()
    return "llama" if "llama" in name else name.split("-")[0].rstrip("0123456789.")


def _details(card: ModelCard) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "remote",
        "family": _family(card),
        "families": [_family(card)],
        "parameter_size": "",
        "quantization_level": "",
    }


def _with_context(last: dict[str, Any], memory: list[dict[str, Any]] | None, text: str) -> dict[str, Any]:
    """Give a closing object with `context`, so that /api/generate can go on from it; a chat or a completion has none."""
    return last if memory is None else last | {"context": pack(memory, text)}
