"""Ollama's dialect: NDJSON streams, durations in nanoseconds, errors as `{error: text}`.

Requests are translated in translated_request.py, replies in reply.py; the models that run here are described
in models.py, the others in relayed.py. Replies have the public model name.

Source: Ollama's API at level API_VERSION; `messages` in /api/generate, `upstream` in /api/tags and the lines
of /api/pull for a relayed model: for compatibility, see docs/compatibility.md.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from appliance.base.clock import Clock, format_rfc3339
from appliance.base.errors import Invalid, NoSuchModel, Unsupported
from appliance.engines.router import Router
from appliance.engines.stream import GeneratedStream, Stream, start_stream
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation
from appliance.engines.upstream.token_counts import read_count
from appliance.front.ollama.context import pack_context
from appliance.front.ollama.embed_input import Vectors, embed_fitting
from appliance.front.ollama.models import LocalModels, not_found
from appliance.front.ollama.ndjson import CONTENT_TYPE, HEARTBEAT, json_line
from appliance.front.ollama.pull import PullHandlers
from appliance.front.ollama.relayed import RelayedModels
from appliance.front.ollama.reply import (
    ReplyFormat,
    StreamTranslator,
    from_openai_reply,
    nanoseconds,
    normalize,
    parse_vectors,
)
from appliance.front.ollama.translated_request import (
    TYPES,
    TranslatedRequest,
    to_openai_chat,
    to_openai_generate,
    to_openai_options,
)
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.body import check_types, read_object
from appliance.front.pipeline.durations import parse_keep_alive_s
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.ignored import ignored_headers
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.replies import parse_error_reply, parse_reply
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import read_events
from appliance.models.status.views import ModelManagerApi
from appliance.models.table.library import ModelLibrary

log = structlog.get_logger("ollama")
API_VERSION = "0.14.0"  # the level of Ollama's API that is implemented; clients compare it
MAX_NAMES_LOGGED = 10
MAX_NAME_CHARS_LOGGED = 64
STREAM = Response(
    content_type=CONTENT_TYPE, on_error=partial(error_event, dialect="ollama"), heartbeat=HEARTBEAT
)
PROMPT_FIELDS = ("prompt", "messages", "suffix", "images")  # without any of them /api/generate only loads


@dataclass(slots=True)
class Exchange:
    """One request that an engine answers.

    Attributes:
        request: The client's request.
        payload: Its JSON body.
        card: The model that answers.
        conversation: What /api/generate packs into `context`, with the reply; None = no `context`.
        load_s: How long the request waited while its model was loaded, in seconds.
    """

    request: Request
    payload: dict[str, Any]
    card: ModelCard
    conversation: list[dict[str, Any]] | None = None
    load_s: float = 0.0

    @property
    def is_stream(self) -> bool:
        """Whether the reply is streamed: it is, unless the body says no."""
        return self.payload.get("stream") is not False

    @property
    def keep_alive_s(self) -> float | None:
        """How long the model stays loaded, in seconds; None = as configured."""
        return parse_keep_alive_s(self.payload.get("keep_alive"))

    def add_context(self, last: dict[str, Any], text: str) -> dict[str, Any]:
        """Return the closing object with `context`, so that /api/generate can continue from it."""
        if self.conversation is None:
            return last
        return last | {"context": pack_context(self.conversation, text)}


class OllamaHandlers:
    """The handlers of `/api`.

    Args:
        manager: The models that run here; None = all are relayed.
        library: The details of their files; None = unknown.
        pulls: Downloads models; None = no model can be pulled.
        heartbeat_s: Returns the seconds after which a waiting stream gets headers and heartbeats; 0 = never.
        has_ui: Whether there is a web UI at /ui/.
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
        has_ui: bool = False,
    ) -> None:
        self._router = router
        self._clock = clock
        self._has_ui = has_ui
        self._heartbeat_s = heartbeat_s
        self._local = LocalModels(manager, library, clock=clock) if manager is not None else None
        self._relayed = RelayedModels(router, clock=clock)
        self._pulls = pulls

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/", self.root, dialect="ollama", access=Access.PUBLIC),
            Route(("GET",), "/api/version", self.version, dialect="ollama"),
            Route(("GET",), "/api/tags", self.tags, dialect="ollama"),
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

    # ---- about models

    async def root(self, request: Request) -> Response:
        """Say that the server is running: as text, or as `{message}` where JSON is accepted.

        A browser is led to the web UI, where there is one.
        """
        if self._has_ui and "text/html" in request.headers.get("accept", ""):
            return Response(303, content_type="text/html", headers=[("Location", "ui/"), ("Vary", "Accept")])
        if "application/json" in request.headers.get("accept", ""):
            return json_response({"message": "The inference appliance is running."})
        return Response(body=b"Ollama is running", content_type="text/plain; charset=utf-8")

    async def version(self, request: Request) -> Response:
        """Show the level of Ollama's API that is implemented: `{version}`."""
        return json_response({"version": API_VERSION})

    async def tags(self, request: Request) -> Response:
        """List the models; an alias of the table has a row of its own, as a copy has with Ollama.

        Returns:
            `{models: [{name, model, upstream, aliases, modified_at, size, digest, details, capabilities,
            …}]}`.
        """
        cards = self._router.cards()
        local = await self._local.tags(card.id for card in cards) if self._local else {}
        models = [
            {
                **(local.get(card.id) or self._relayed.tag(card)),
                "upstream": card.upstream,
                "aliases": list(card.aliases),
            }
            for card in cards
        ]
        models += [
            {**row, "name": alias, "model": alias, "aliases": []}
            for row in models
            for alias in (self._local.aliases(row["model"]) if self._local else ())
        ]
        return json_response({"models": models})

    async def ps(self, request: Request) -> Response:
        """List the models that are loaded here, and the relayed ones, which are always ready."""
        loaded = await self._local.loaded() if self._local else []
        relayed = [self._relayed.loaded(card) for card in self._router.cards() if not self._is_local(card)]
        return json_response({"models": loaded + relayed})

    async def show(self, request: Request) -> Response:
        """Show the details of a model, by its id or an alias."""
        payload = _read(request)
        if self._is_to_pull(_name(payload)):
            raise not_found(_name(payload))
        card = self._card(payload, must_name=True)
        if self._local and self._is_local(card):
            return json_response(await self._local.show(card.id, verbose=bool(payload.get("verbose"))))
        return json_response(self._relayed.show(card))

    async def pull(self, request: Request) -> Response:
        """Download a model of Hugging Face.

        1. a name of Hugging Face         → it is downloaded (pull.py)
        2. a model that is here already   → success: at once, or in four lines
        """
        payload = _read(request, may_be_empty=True)
        name, is_stream = _name(payload), payload.get("stream") is not False
        if self._pulls is not None:
            response = await self._pulls.pull(request, name, is_stream=is_stream)
            if response is not None:  # 1
                return response
        card = self._card(payload)
        if not is_stream:  # 2
            return json_response({"status": "success"})
        lines = [f"pulling {name or card.id}", "verifying sha256", "writing manifest", "success"]
        body = b"".join(json_line({"status": status}) for status in lines)
        return Response(body=body, content_type=CONTENT_TYPE)

    async def delete(self, request: Request) -> Response:
        """Delete a model that was pulled; the models of the operator's table stay."""
        if self._pulls is None:
            return await self.unsupported(request)
        return await self._pulls.delete(request, _name(_read(request)))

    async def unsupported(self, request: Request) -> Response:
        """Refuse: models are not created, copied or uploaded here."""
        raise Unsupported(
            f"{request.method} {request.path} is not supported: models cannot be created, copied or "
            "uploaded here."
        )

    # ---- answering

    async def chat(self, request: Request) -> Response:
        """Answer a conversation; without messages only load the model, or unload it (`keep_alive: 0`)."""
        payload = _read(request)
        if not payload.get("messages"):
            return await self._load(request, payload, {"message": {"role": "assistant", "content": ""}})
        return await self._answer(request, payload, to_openai_chat(payload), is_chat=True)

    async def generate(self, request: Request) -> Response:
        """Answer a prompt; without one only load the model, or unload it (`keep_alive: 0`)."""
        payload = _read(request)
        if not any(payload.get(name) for name in PROMPT_FIELDS):
            return await self._load(request, payload, {"response": ""})
        return await self._answer(request, payload, to_openai_generate(payload), is_chat=False)

    async def _answer(
        self, request: Request, payload: dict[str, Any], translated: TranslatedRequest, *, is_chat: bool
    ) -> Response:
        """Ask the engines, and render the reply whole or line by line."""
        _log_ignored(request, translated.ignored)
        has_context = not is_chat and translated.operation is not Operation.COMPLETION
        conversation = translated.body["messages"] if has_context else None
        exchange = Exchange(request, payload, self._card(payload), conversation)
        reply_format = ReplyFormat(
            exchange.card.id, is_chat, shows_thinking=payload.get("think") is not False
        )
        if exchange.is_stream:
            translated.body |= {"stream": True, "stream_options": {"include_usage": True}}
        engine_request = _engine_request(exchange, translated.operation, translated.body)
        engine_request.native = translated.native
        if exchange.is_stream:
            return await respond_or_heartbeat(
                self._start_stream(
                    engine_request, exchange, translated.ignored, StreamTranslator(reply_format)
                ),
                replace(STREAM, headers=ignored_headers(translated.ignored)),
                heartbeat_s=self._heartbeat_s(),
                late_headers=engine_request.status_headers,
            )
        value = parse_reply(await self._ask(engine_request))
        last, text = from_openai_reply(
            value,
            reply_format,
            at_s=self._clock.now_s(),
            elapsed_s=self._elapsed_s(request),
            load_s=engine_request.load_s,
        )
        if not is_chat:
            last["upstream_model"] = exchange.card.upstream
        response = json_response(exchange.add_context(last, text))
        response.headers = _ignored(engine_request, translated.ignored)
        return response

    async def _start_stream(
        self,
        engine_request: EngineRequest,
        exchange: Exchange,
        ignored: list[str],
        translator: StreamTranslator,
    ) -> Response:
        """Ask the engines; a failure before the first line becomes a status, not a line of the stream."""
        reply = await self._ask(engine_request)
        assert reply.events is not None
        exchange.load_s = engine_request.load_s
        lines = GeneratedStream(self._lines(reply.events, exchange, translator), reply.events)
        pieces = await start_stream(lines)
        return replace(STREAM, headers=_ignored(engine_request, ignored), pieces=pieces)

    async def _lines(
        self, events: Stream, exchange: Exchange, translator: StreamTranslator
    ) -> AsyncGenerator[bytes, None]:
        """Yield the lines of a stream, the closing one last."""
        now_s, request = self._clock.now_s, exchange.request
        async with aclosing(read_events(events)) as chunks:
            async for chunk in chunks:
                part = translator.translate(chunk, at_s=now_s(), elapsed_s=self._elapsed_s(request))
                if part is not None:
                    yield json_line(part)
        *calls, last = translator.finish(
            at_s=now_s(), elapsed_s=self._elapsed_s(request), load_s=exchange.load_s
        )
        for part in calls:
            yield json_line(part)
        yield json_line(exchange.add_context(last, translator.text))

    async def _load(self, request: Request, payload: dict[str, Any], empty: dict[str, Any]) -> Response:
        """Answer a request that only loads or unloads a model; a relayed one is always loaded.

        Args:
            empty: The reply's field without content, as the address has it.
        """
        exchange = Exchange(request, payload, self._card(payload))
        loading = self._load_now(exchange, empty)
        if not exchange.is_stream:
            return await loading
        return await respond_or_heartbeat(loading, STREAM, heartbeat_s=self._heartbeat_s())

    async def _load_now(self, exchange: Exchange, empty: dict[str, Any]) -> Response:
        keep_alive_s = exchange.keep_alive_s
        took_s = await self._touch(exchange.card, keep_alive_s)
        body = {
            "model": exchange.card.id,
            "created_at": format_rfc3339(self._clock.now_s()),
            **empty,
            "done": True,
            "done_reason": "unload" if keep_alive_s == 0 else "load",
        }
        if took_s:
            body["total_duration"] = nanoseconds(self._elapsed_s(exchange.request))
            body["load_duration"] = nanoseconds(took_s)
        if not exchange.is_stream:
            return json_response(body)
        return Response(body=json_line(body), content_type=CONTENT_TYPE)

    async def _touch(self, card: ModelCard, keep_alive_s: float | None) -> float:
        """Load or unload a model that runs here; return the seconds that loading took."""
        if self._local is None or not self._is_local(card):
            return 0.0
        return await self._local.touch(card.id, keep_alive_s)

    # ---- embeddings

    async def embed(self, request: Request) -> Response:
        """Compute the embeddings of one text or several, as vectors of length 1.

        Returns:
            `{model, embeddings, total_duration, load_duration, prompt_eval_count}`, the last two where
            they are not 0.
        """
        payload = _read(request)
        value = payload.get("input")
        inputs = [] if value in (None, "") else [value] if isinstance(value, str) else value
        if not isinstance(inputs, list) or not all(isinstance(text, str) for text in inputs):
            raise Invalid("invalid input type", param="input")
        exchange = Exchange(request, payload, self._card(payload))
        headers = _read_ignored(exchange)
        vectors, count = await self._vectors(exchange, inputs)
        body: dict[str, Any] = {
            "model": exchange.card.id,
            "embeddings": [normalize(vector) for vector in vectors],
        }
        numbers = {
            "total_duration": nanoseconds(self._elapsed_s(request)),
            "load_duration": nanoseconds(exchange.load_s),
            "prompt_eval_count": count,
        }
        body |= {name: number for name, number in numbers.items() if number}
        return replace(json_response(body), headers=headers)

    async def embeddings(self, request: Request) -> Response:
        """Compute one text's embedding as the engine returns it: `{embedding}`, the older address."""
        payload = _read(request)
        prompt = payload.get("prompt")
        exchange = Exchange(request, payload, self._card(payload))
        headers = _read_ignored(exchange)
        vectors, _ = await self._vectors(exchange, [prompt] if prompt else [])
        body = {"embedding": vectors[0] if vectors else []}
        return replace(json_response(body), headers=headers)

    async def _vectors(self, exchange: Exchange, inputs: list[str]) -> tuple[list[list[float]], int]:
        """Return one vector per text, and the number of tokens; a text too long is cut, or refused."""
        payload, keep_alive_s = exchange.payload, exchange.keep_alive_s
        if not inputs:
            exchange.load_s = await self._touch(exchange.card, keep_alive_s)
            return [], 0
        dimensions = payload.get("dimensions") or 0
        if dimensions < 0:
            raise Invalid("`dimensions` must be a positive integer.", param="dimensions")
        more = {"dimensions": dimensions} if dimensions else {}

        async def embed(texts: list[str]) -> Vectors:
            body = {"input": texts, **more}
            engine_request = _engine_request(exchange, Operation.EMBEDDING, body, is_stream=False)
            value = parse_reply(await self._ask(engine_request))
            exchange.load_s += engine_request.load_s
            usage = value.get("usage")
            tokens = read_count(usage.get("prompt_tokens")) if isinstance(usage, dict) else 0
            vectors = parse_vectors(value, len(texts))
            if dimensions:  # an engine may know nothing of them
                vectors = [vector[:dimensions] for vector in vectors]
            return vectors, tokens

        return await embed_fitting(inputs, embed, is_truncating=payload.get("truncate") is not False)

    # ---- shared

    async def _ask(self, engine_request: EngineRequest) -> EngineReply:
        """Ask the engines; raise their error where they return one."""
        reply = await self._router.answer(engine_request)
        if reply.status >= 400:
            raise parse_error_reply(reply.status, reply.body or b"")
        return reply

    def _card(self, payload: dict[str, Any], *, must_name: bool = False) -> ModelCard:
        """Return the model asked for; without a name the default one, unless MODEL_STRICT=1."""
        name = _name(payload)
        if not name and (must_name or self._router.settings.model_strict):
            raise Invalid("model is required", param="model")
        try:
            return self._router.resolve(name)
        except NoSuchModel:
            raise not_found(name) from None

    def _is_to_pull(self, name: str) -> bool:
        """Whether a model of Hugging Face is named that can run here and does not: clients then pull it."""
        if self._local is None or self._pulls is None or self._router.find_card(name) is not None:
            return False
        return self._pulls.is_name(name)

    def _is_local(self, card: ModelCard) -> bool:
        return self._local is not None and self._local.has(card.id)

    def _elapsed_s(self, request: Request) -> float:
        return self._clock.monotonic_s() - request.began_s


def _read(request: Request, *, may_be_empty: bool = False) -> dict[str, Any]:
    """Return the body, the types of its known fields checked."""
    if not request.body.strip():
        if may_be_empty:
            return {}
        raise Invalid("missing request body", code="missing_body")
    payload = read_object(request.body)
    check_types(payload, TYPES)
    return payload


def _name(payload: dict[str, Any]) -> str:
    """Return the model's name, from its field or the older one; "" = none."""
    return str(payload.get("model") or payload.get("name") or "")


def _engine_request(
    exchange: Exchange, operation: Operation, body: dict[str, Any], *, is_stream: bool | None = None
) -> EngineRequest:
    """Return the engines' request: for the named model, with the options of Ollama's own fields.

    Args:
        is_stream: None = as the client asked.
    """
    name = _name(exchange.payload)
    body["model"] = name or exchange.card.id
    options = exchange.request.options
    if (keep_alive_s := exchange.keep_alive_s) is not None:
        options = replace(options, keep_alive_s=keep_alive_s)
    given = exchange.payload.get("options")
    context = given.get("num_ctx") if isinstance(given, dict) else None
    if isinstance(context, int) and context > 0:
        # The client relies on this size: a smaller context would cut what it sends.
        options = replace(options, context_tokens=context)
    is_stream = exchange.is_stream if is_stream is None else is_stream
    return EngineRequest(operation, body, None, name, is_stream, exchange.request.receipt, options)


def _read_ignored(exchange: Exchange) -> list[tuple[str, str]]:
    """Check, log and name the options of a request for embeddings: none but `num_ctx` is about them."""
    sampling = to_openai_options(exchange.payload.get("options"))
    names = [*sampling.ignored, *sampling.native]
    _log_ignored(exchange.request, names)
    return ignored_headers(names)


def _ignored(engine_request: EngineRequest, names: list[str]) -> list[tuple[str, str]]:
    """Return the header that names what cannot be used: here, and by the engine that answered."""
    native = engine_request.native
    return ignored_headers([*names, *(native.ignored if native is not None else ())])


def _log_ignored(request: Request, names: list[str]) -> None:
    """Log the options that were ignored, as Ollama does; the names come from the client and are shortened."""
    if names:
        shown = [name[:MAX_NAME_CHARS_LOGGED] for name in names[:MAX_NAMES_LOGGED]]
        log.warning("ignored", id=request.id, names=shown, count=len(names))
