"""llama.cpp's llama-server: health in words, slots and context in /props, adapters in /lora-adapters. Source: its README."""

from pathlib import PurePosixPath
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth, LoraReply
from appliance.engines.dialects.queries import (
    LOOK_S,
    UnexpectedReply,
    owner_of,
    read_json,
    rows_of_models,
    served_of,
)
from appliance.engines.types import ModelCard, ServedModel
from appliance.engines.upstream.refusal import meaning


class LlamaCpp:
    """llama-server, alone or in router mode."""

    kind: ClassVar[str] = "llamacpp"
    running_metrics: ClassVar[tuple[str, ...]] = ("llamacpp:requests_processing",)
    waiting_metrics: ClassVar[tuple[str, ...]] = ("llamacpp:requests_deferred",)
    stops_on_disconnect: ClassVar[bool] = (
        False  # seen with 0.7.0: it generates to the end; in a stream it stops at once
    )

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """200 and `status: ok` is ready; 503 is loading."""
        reply = await client.get("/health", 1.0)
        if reply.status == 503:
            return EngineHealth(False, True, "it loads its model")
        if reply.status != 200:
            return EngineHealth(False, False, f"/health answered {reply.status}")
        try:
            status = jsons.loads(reply.body).get("status")
        except (jsons.BadJson, AttributeError):
            return EngineHealth(False, False, "/health is no JSON object")
        return EngineHealth(
            status == "ok", False, "" if status == "ok" else f"/health says {str(status)[:40]!r}"
        )

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Models from /v1/models, context and slots from /props, adapters from /lora-adapters."""
        context, slots = 0, 0
        props = await client.get("/props", LOOK_S)
        if props.status == 200:
            value = read_json(props, "/props")
            made = value.get("default_generation_settings")
            context = _count(made.get("n_ctx")) if isinstance(made, dict) else 0
            slots = _count(value.get("total_slots"))
        rows = [row for row in await rows_of_models(client) if not _is_unloaded(row)]
        models = {row["id"]: served_of(row, owner="llamacpp", context_tokens=context) for row in rows}
        if len(rows) == 1:
            models |= await self._adapters(client, models[rows[0]["id"]])
        return EngineFacts(models, context, slots)

    async def _adapters(self, client: EngineClient, base: ServedModel) -> dict[str, ServedModel]:
        """Adapters that were named at its start: each is a model by its file's name, asked for with `lora` in the body."""
        served = {}
        for number, path in await _rows(client):
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

    async def matches(self, client: EngineClient) -> bool:
        """/props with llama-server's fields, or its name in the list of models."""
        reply = await client.get("/props", LOOK_S)
        if reply.status == 200 and b"default_generation_settings" in reply.body:
            return True
        return await owner_of(client) == "llamacpp"

    def map_error(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        return meaning(status, headers, text, label)

    async def load_adapter(
        self,
        client: EngineClient,
        name: str,
        path: str,
        *,
        is_pinned: bool = False,
    ) -> LoraReply:
        """It reads no adapter while it runs: there is only what it was started with, found by its file, or by its file's name."""
        rows = await _rows(client)
        for _, own in [row for row in rows if row[1] == path] or [
            row for row in rows if _is_same_file(row[1], path)
        ]:
            return LoraReply(
                "already",
                200,
                f"The adapter {name!r} is {own}, which it was started with.",
                engine_name=PurePosixPath(own).stem,
            )
        has = ", ".join(own for _, own in rows) or "none"
        return LoraReply(
            "off",
            409,
            f"llama-server has only the adapters that it was started with: {has}.",
            remedy=f"Start it with --lora-scaled {path}:0, or let the appliance run the model itself (CONFIG_PATH, MODEL_DIR).",
        )

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """It keeps what it was started with."""
        if any(PurePosixPath(own).stem == name for _, own in await _rows(client)):
            return LoraReply(
                "off",
                409,
                f"llama-server was started with the adapter {name!r}, and keeps it.",
                remedy="Start it without.",
            )
        return LoraReply("unknown", 404, f"llama-server has no adapter {name!r}.")

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        raise UnexpectedReply("llama-server lists its adapters; this one is not among them")

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """Seen with b11669: an id that it has not is passed over, and the base model answers."""
        wanted = next((value[0]["id"] for key, value in served.extra if key == "lora"), None)
        return (wanted, served.card.path) in await _rows(client)


def _is_same_file(own: str, path: str) -> bool:
    """Whether it may be the file that is meant: in a container it may lie in another folder, and the path may be the folder."""
    return own.startswith(path + "/") or PurePosixPath(own).name == PurePosixPath(path).name


async def _rows(client: EngineClient) -> list[tuple[int, str]]:
    """Give (id, path) of each adapter. Raises OddAnswer, WireError."""
    reply = await client.get("/lora-adapters", LOOK_S)
    if reply.status != 200:
        return []
    try:
        rows = jsons.loads(reply.body)
    except jsons.BadJson as exc:
        raise UnexpectedReply(f"/lora-adapters is no JSON: {exc}") from None
    return [
        (row["id"], row["path"])
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("id"), int) and isinstance(row.get("path"), str)
    ]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _is_unloaded(row: dict[str, Any]) -> bool:
    """Whether a router-mode row is a model that failed to load; unloaded ones are loaded when asked for."""
    status = row.get("status")
    return isinstance(status, dict) and bool(status.get("failed"))
