"""OpenAI's dialect: models, chat, completions, embeddings.

The client's bytes are sent on; only `model` is replaced in them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from appliance.base.errors import Invalid, NoSuchModel
from appliance.base.jsons import BYTE_ORDER_MARK
from appliance.base.sse import SSE_CONTENT_TYPE
from appliance.engines.router import Router
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation
from appliance.front.openai.anthropic_models import ANTHROPIC_VERSION, anthropic_list, anthropic_model
from appliance.front.openai.plain_chat import read_plain_chat
from appliance.front.pipeline.body import OPENAI_TYPES, check_messages, check_types, read_object
from appliance.front.pipeline.errors import error_event
from appliance.front.pipeline.late import respond_or_heartbeat
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.front.pipeline.sse import HEARTBEAT, SSE_HEADERS
from appliance.models.status.views import ModelManagerApi
from appliance.models.table.details import ModelDetails
from appliance.models.table.library import ModelLibrary

STREAM = Response(
    content_type=SSE_CONTENT_TYPE,
    headers=SSE_HEADERS,
    on_error=partial(error_event, dialect="openai"),
    heartbeat=HEARTBEAT,
)


class OpenAIHandlers:
    """The handlers of `/v1`.

    Args:
        heartbeat_s: Returns the seconds after which a waiting stream gets headers and heartbeats; 0 = never.
        manager: The models that this appliance runs itself; None = none.
        library: The details of their files; None = unknown.
    """

    def __init__(
        self,
        router: Router,
        *,
        heartbeat_s: Callable[[], float],
        manager: ModelManagerApi | None = None,
        library: ModelLibrary | None = None,
    ) -> None:
        self._router = router
        self._manager = manager
        self._library = library
        self._heartbeat_s = heartbeat_s

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        return [
            Route(("GET",), "/v1/models", self.models),
            Route(("GET",), "/v1/models/{model:.+}", self.model),
            Route(("POST",), "/v1/chat/completions", self.chat, is_hot=True),
            Route(("POST",), "/v1/completions", self.completions, is_hot=True),
            Route(("POST",), "/v1/embeddings", self.embeddings, is_hot=True),
        ]

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, whole or as a stream of events."""
        plain = read_plain_chat(request.body)
        if plain is not None:
            is_stream, choices = bool(plain.stream), max(1, plain.n or 1)
            engine_request = EngineRequest(
                Operation.CHAT,
                None,
                request.body,
                plain.model or "",
                is_stream,
                request.receipt,
                request.options,
                choices=choices,
            )
            return await self._send(engine_request)
        body = read_object(request.body)
        check_types(body, OPENAI_TYPES)
        check_messages(body.get("messages"))
        return await self._answer(Operation.CHAT, body, request)

    async def completions(self, request: Request) -> Response:
        """Continue a prompt, whole or as a stream of events."""
        body = read_object(request.body)
        check_types(body, OPENAI_TYPES)
        _check_prompt("prompt", body)
        return await self._answer(Operation.COMPLETION, body, request)

    async def embeddings(self, request: Request) -> Response:
        """Compute the embeddings of one text or several."""
        body = read_object(request.body)
        check_types(body, OPENAI_TYPES)
        _check_prompt("input", body)
        if body.get("encoding_format") not in (None, "float", "base64"):
            raise Invalid(
                '`encoding_format` must be "float" or "base64".',
                param="encoding_format",
                code="invalid_value",
            )
        return await self._answer(Operation.EMBEDDING, body, request)

    async def models(self, request: Request) -> Response:
        """List the models.

        Returns:
            `{"object": "list", "data": [{"id", "object": "model", "created", "owned_by", …}]}`; Anthropic's
            list for its clients, who say so by the header `anthropic-version`.
        """
        rows = list((await self._model_rows()).values())
        if ANTHROPIC_VERSION in request.headers:
            return json_response(anthropic_list(rows))
        return json_response({"object": "list", "data": rows})

    async def model(self, request: Request) -> Response:
        """Show one model, by its id or an alias; an id may have slashes.

        Raises:
            NoSuchModel: No model has this name; MODEL_STRICT does not matter here.
        """
        row = await self._row_of(request.params["model"])
        return json_response(anthropic_model(row) if ANTHROPIC_VERSION in request.headers else row)

    async def _row_of(self, wanted: str) -> dict[str, Any]:
        if (card := self._router.find_card(wanted)) is not None:
            rows = await self._model_rows()
            return rows.get(wanted) or rows[card.id]
        if self._manager is not None and wanted in self._manager.catalogue.models:
            return (await self._model_rows())[wanted]
        raise NoSuchModel(f"The model {wanted!r} does not exist here.", param="model")

    async def _model_rows(self) -> dict[str, dict[str, Any]]:
        """Return every model by its id.

        Those that run here, loaded or not, with `n_ctx` and what their files say, and owned by `user`; each
        alias of the table has a row of its own.
        """
        rows = {card.id: _model_row(card) for card in self._router.cards()}
        if (manager := self._manager) is None:
            return rows
        views = manager.models()
        aliases = {view.alias: manager.catalogue.models[view.alias].aliases for view in views}
        details = await self._library.every(aliases, needs_digests=False) if self._library else {}
        for view in views:
            fresh = {"id": view.alias, "object": "model", "created": int(manager.server_started_at_s)}
            rows[view.alias] = {
                **rows.get(view.alias, fresh),
                "owned_by": "user",
                "n_ctx": view.context_tokens,
                **(_file_facts(details[view.alias]) if view.alias in details else {}),
            }
            for alias in aliases[view.alias]:
                own = {"id": alias, "alias_of": view.alias}
                row = {key: value for key, value in rows[view.alias].items() if key != "aliases"}
                rows.setdefault(alias, row | own)
        return rows

    async def _answer(self, operation: Operation, body: dict[str, Any], request: Request) -> Response:
        is_stream = bool(body.get("stream")) and operation is not Operation.EMBEDDING
        engine_request = EngineRequest(
            operation,
            body,
            request.body.removeprefix(BYTE_ORDER_MARK),
            body.get("model") or "",
            is_stream,
            request.receipt,
            request.options,
        )
        return await self._send(engine_request)

    async def _send(self, engine_request: EngineRequest) -> Response:
        if not engine_request.stream:
            reply = await self._router.answer(engine_request)
            return Response(reply.status, reply.body or b"", reply.content_type)
        return await respond_or_heartbeat(
            self._start_stream(engine_request),
            STREAM,
            heartbeat_s=self._heartbeat_s(),
            late_headers=engine_request.status_headers,
        )

    async def _start_stream(self, engine_request: EngineRequest) -> Response:
        return stream_response(await self._router.answer(engine_request))


def stream_response(reply: EngineReply) -> Response:
    """Return an engine's reply unchanged: a stream, or its error."""
    if reply.events is None:
        return Response(reply.status, reply.body or b"", reply.content_type)
    return replace(STREAM, headers=list(SSE_HEADERS), pieces=reply.events)


def _check_prompt(name: str, body: dict[str, Any]) -> None:
    value = body.get(name)
    if value is None:
        raise Invalid(f"`{name}` is required.", param=name, code="missing_required_parameter")
    if not isinstance(value, (str, list)) or value == []:
        raise Invalid(
            f"`{name}` must be a string or an array with at least one element.",
            param=name,
            code="invalid_type",
        )


def _model_row(card: ModelCard) -> dict[str, Any]:
    """Return OpenAI's fields, and where known those that engines add.

    They are `aliases`, `max_model_len`, `parent`, `capabilities`, `meta`.
    """
    row: dict[str, Any] = {
        "id": card.id,
        "object": "model",
        "created": card.created_s,
        "owned_by": card.owned_by,
    }
    if aliases := [name for name in card.aliases if name != card.id]:
        row["aliases"] = aliases
    if card.context_tokens:
        row["max_model_len"] = card.context_tokens
    if card.parent:
        row["parent"] = card.parent
    if card.capabilities:
        row["capabilities"] = list(card.capabilities)
    if card.meta:
        row["meta"] = dict(card.meta)
    return row


def _file_facts(details: ModelDetails) -> dict[str, Any]:
    """Return `capabilities` and `meta` of a model that runs here, by llama-server's names, sizes in bytes."""
    meta = {
        "n_ctx_train": details.context_tokens,
        "n_embd": details.embedding_length,
        "n_params": details.parameters,
        "size": details.size_bytes,
        "ftype": details.quantization,
    }
    known = {name: value for name, value in meta.items() if value}
    return {"capabilities": list(details.capabilities), "meta": known}
