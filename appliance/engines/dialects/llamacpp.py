"""llama.cpp's llama-server: health as text, slots and context in /props, adapters in /lora-adapters.

Source: its README.
"""

import asyncio
import hashlib
from pathlib import PurePosixPath
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth, LoraReply
from appliance.engines.dialects.queries import (
    HEALTH_TIMEOUT_S,
    QUERY_TIMEOUT_S,
    UnexpectedReply,
    as_embeddings,
    first_owner,
    list_models,
    read_count,
    read_json,
    served_model,
)
from appliance.engines.types import ModelCard, ServedModel

# Of a chat's body: what becomes a part of the prompt.
PROMPT_FIELDS = ("model", "messages", "tools", "tool_choice", "chat_template_kwargs")


class LlamaCpp:
    """llama-server, alone or in router mode."""

    kind: ClassVar[str] = "llamacpp"
    running_metrics: ClassVar[tuple[str, ...]] = ("llamacpp:requests_processing",)
    waiting_metrics: ClassVar[tuple[str, ...]] = ("llamacpp:requests_deferred",)
    # Seen with 0.7.0: it generates to the end; in a stream it stops at once.
    stops_on_disconnect: ClassVar[bool] = False
    has_slots: ClassVar[bool] = True
    names_adapters: ClassVar[bool] = False

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """Query /health.

        1. 503                      → loading
        2. another status than 200  → not ready
        3. not a JSON object        → not ready
        4. `status: ok`             → ready; any other word → not ready
        """
        reply = await client.get("/health", HEALTH_TIMEOUT_S)
        if reply.status == 503:  # 1
            return EngineHealth(False, True, "loading its model")
        if reply.status != 200:  # 2
            return EngineHealth(False, False, f"/health answered {reply.status}")
        try:
            status = jsons.loads(reply.body).get("status")
        except (jsons.InvalidJson, AttributeError):  # 3
            return EngineHealth(False, False, "/health is not a JSON object")
        is_ready = status == "ok"  # 4
        return EngineHealth(is_ready, False, "" if is_ready else f"/health says {str(status)[:40]!r}")

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Read models of /v1/models and their use, limits of /props, adapters of /lora-adapters."""
        return await self._read_facts(client, None)

    async def reread_facts(self, client: EngineClient, former: EngineFacts) -> EngineFacts:
        """Read /props and /v1/models, and the rest only if these say something else than before.

        Seen with build 11669: /health, /props, /v1/models and /metrics leave a server asleep
        (`--sleep-idle-seconds`); /slots, /lora-adapters and every POST wake it, and keep it awake.
        """
        return await self._read_facts(client, former)

    async def _read_facts(self, client: EngineClient, former: EngineFacts | None) -> EngineFacts:
        """Read the facts.

        1. the same as before                    → the former ones
        2. it sleeps, and has the same models    → the former ones
        3. it sleeps, and nothing is known       → models and limits; the rest when it is awake
        4. otherwise                             → all
        """
        props = await _read_props(client)
        context_tokens, slots = _limits_of(props)
        rows = [row for row in await list_models(client) if not _has_failed(row)]
        mark = _mark_of(props, rows)
        if former is not None and former.mark == mark:  # 1
            return former
        is_asleep = props.get("is_sleeping") is True
        if (
            is_asleep
            and former is not None
            and former.mark
            and all(row["id"] in former.models for row in rows)
        ):
            return former  # 2
        models = {
            row["id"]: served_model(row, owner="llamacpp", context_tokens=context_tokens) for row in rows
        }
        if is_asleep:  # 3
            return EngineFacts(models, context_tokens, slots)
        if len(rows) == 1:  # 4
            models |= await _read_adapters(client, models[rows[0]["id"]])
            models = models if await _generates_text(client) else as_embeddings(models)
        return EngineFacts(models, context_tokens, slots, mark)

    async def matches(self, client: EngineClient) -> bool:
        """Look for llama-server's fields in /props, or for its name in the list of models."""
        reply = await client.get("/props", QUERY_TIMEOUT_S)
        if reply.status == 200 and b"default_generation_settings" in reply.body:
            return True
        return await first_owner(client) == "llamacpp"

    async def count_tokens(self, client: EngineClient, body: dict[str, Any]) -> int:
        """Render the prompt by the model's template, and count its tokens."""
        chat = {name: body[name] for name in PROMPT_FIELDS if name in body}
        rendered = read_json(await client.post("/apply-template", chat), "/apply-template")
        prompt = rendered.get("prompt")
        if not isinstance(prompt, str):
            raise UnexpectedReply("/apply-template has no `prompt`")
        wanted = {"content": prompt, "add_special": True, "parse_special": True}
        return read_count(await client.post("/tokenize", wanted), "/tokenize", "tokens")

    async def load_adapter(
        self, client: EngineClient, name: str, path: str, *, is_pinned: bool = False
    ) -> LoraReply:
        """Find an adapter that it was started with, by file or file name: it loads none while it runs."""
        rows = await _adapter_rows(client)
        same = [row for row in rows if row[1] == path] or [row for row in rows if _is_same_file(row[1], path)]
        for _, own in same:
            return LoraReply(
                "already",
                200,
                f"The adapter {name!r} is {own}, which llama-server was started with.",
                engine_name=PurePosixPath(own).stem,
            )
        has = ", ".join(own for _, own in rows) or "none"
        return LoraReply(
            "off",
            409,
            f"llama-server has only the adapters that it was started with: {has}.",
            remedy=(
                f"Start it with --lora-scaled {path}:0, or let the appliance run the model itself "
                "(CONFIG_PATH, MODEL_DIR)."
            ),
        )

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """Refuse: it keeps the adapters that it was started with."""
        if any(PurePosixPath(own).stem == name for _, own in await _adapter_rows(client)):
            return LoraReply(
                "off",
                409,
                f"llama-server was started with the adapter {name!r} and keeps it.",
                remedy="Start it without the adapter.",
            )
        return LoraReply("unknown", 404, f"llama-server has no adapter {name!r}.")

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        """Raise UnexpectedReply: llama-server lists every adapter that it has."""
        raise UnexpectedReply(f"llama-server does not list the adapter {name!r}")

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """Query /lora-adapters. Seen with b11669: an unknown id is ignored, and the base model answers."""
        wanted = next((value[0]["id"] for key, value in served.extra if key == "lora"), None)
        return (wanted, served.card.path) in await _adapter_rows(client)


async def _read_props(client: EngineClient) -> dict[str, Any]:
    """Return /props; {} = it has none."""
    props = await client.get("/props", QUERY_TIMEOUT_S)
    return read_json(props, "/props") if props.status == 200 else {}


def _limits_of(props: dict[str, Any]) -> tuple[int, int]:
    """Return (context in tokens, slots) of /props; 0 = unknown."""
    generation = props.get("default_generation_settings")
    context_tokens = _count(generation.get("n_ctx")) if isinstance(generation, dict) else 0
    return context_tokens, _count(props.get("total_slots"))


def _mark_of(props: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return a mark of what does not change while the server runs."""
    fixed = {key: value for key, value in props.items() if key != "is_sleeping"}
    models = [{key: value for key, value in row.items() if key != "created"} for row in rows]
    return hashlib.sha256(jsons.dumps([fixed, models])).hexdigest()


async def _read_adapters(client: EngineClient, base: ServedModel) -> dict[str, ServedModel]:
    """Return the adapters that it was started with, named by file and requested with `lora` in the body."""
    served = {}
    for number, path in await _adapter_rows(client):
        name = PurePosixPath(path).stem
        card = ModelCard(
            name,
            base.card.created_s,
            "llamacpp",
            name,
            context_tokens=base.card.context_tokens,
            parent=base.card.id,
            path=path,
        )
        served[name] = ServedModel(card, base.upstream, (("lora", [{"id": number, "scale": 1.0}]),))
    return served


async def _generates_text(client: EngineClient) -> bool:
    """Whether it generates text, as far as it says so; its list of models does not.

    Started for embeddings or scores, it says what a request without input lacks (400). Otherwise it says that
    it gives no embeddings (501), before it looks at the request. Seen with build 11669.
    """
    try:
        async with asyncio.timeout(QUERY_TIMEOUT_S):
            reply = await client.post("/v1/embeddings", {})
    except TimeoutError:
        return True
    return not (reply.status == 400 and b"input" in reply.body)


def _is_same_file(own: str, path: str) -> bool:
    """Whether `path` may mean the file `own`: its folder, or the file at another place in a container."""
    return own.startswith(path + "/") or PurePosixPath(own).name == PurePosixPath(path).name


async def _adapter_rows(client: EngineClient) -> list[tuple[int, str]]:
    """Return (id, path) of each adapter. Raises UnexpectedReply, WireError."""
    reply = await client.get("/lora-adapters", QUERY_TIMEOUT_S)
    if reply.status != 200:
        return []
    try:
        rows = jsons.loads(reply.body)
    except jsons.InvalidJson as exc:
        raise UnexpectedReply(f"/lora-adapters is not JSON: {exc}") from None
    return [
        (row["id"], row["path"])
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("id"), int) and isinstance(row.get("path"), str)
    ]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _has_failed(row: dict[str, Any]) -> bool:
    """Whether a row of router mode is a model that failed to load; an unloaded one is loaded on request."""
    status = row.get("status")
    return isinstance(status, dict) and bool(status.get("failed"))
