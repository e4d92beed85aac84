"""llama.cpp's llama-server: health in words, slots and context in /props, adapters in /lora-adapters. Source: its README."""

from pathlib import PurePosixPath
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.backends.asking import LOOK_S, OddAnswer, owner_of, read_json, rows_of_models, served_of
from appliance.engines.backends.contract import Ask, Health, Learned
from appliance.engines.refusal import meaning
from appliance.engines.types import ModelCard, Served


class LlamaCpp:
    """llama-server, alone or in router mode."""

    kind: ClassVar[str] = "llamacpp"
    running: ClassVar[tuple[str, ...]] = ("llamacpp:requests_processing",)
    waiting: ClassVar[tuple[str, ...]] = ("llamacpp:requests_deferred",)
    notices_leavers: ClassVar[bool] = False      # seen with 0.7.0: it generates to the end; in a stream it stops at once

    async def health(self, ask: Ask) -> Health:
        """200 and `status: ok` is ready; 503 is loading."""
        heard = await ask("/health", 1.0)
        if heard.status == 503:
            return Health(False, True, "it loads its model")
        if heard.status != 200:
            return Health(False, False, f"/health answered {heard.status}")
        try:
            status = jsons.loads(heard.body).get("status")
        except (jsons.BadJson, AttributeError):
            return Health(False, False, "/health is no JSON object")
        return Health(status == "ok", False, "" if status == "ok" else f"/health says {str(status)[:40]!r}")

    async def learn(self, ask: Ask) -> Learned:
        """Models from /v1/models, context and slots from /props, adapters from /lora-adapters."""
        context, slots = 0, 0
        props = await ask("/props", LOOK_S)
        if props.status == 200:
            value = read_json(props, "/props")
            made = value.get("default_generation_settings")
            context = _count(made.get("n_ctx")) if isinstance(made, dict) else 0
            slots = _count(value.get("total_slots"))
        rows = [row for row in await rows_of_models(ask) if not _is_unloaded(row)]
        models = {row["id"]: served_of(row, owner="llamacpp", context_tokens=context) for row in rows}
        if len(rows) == 1:
            models |= await self._adapters(ask, models[rows[0]["id"]])
        return Learned(models, context, slots)

    async def _adapters(self, ask: Ask, base: Served) -> dict[str, Served]:
        """Adapters that were named at its start: each is a model by its file's name, asked for with `lora` in the body."""
        heard = await ask("/lora-adapters", LOOK_S)
        if heard.status != 200:
            return {}
        try:
            rows = jsons.loads(heard.body)
        except jsons.BadJson as exc:
            raise OddAnswer(f"/lora-adapters is no JSON: {exc}") from None
        served = {}
        for row in rows if isinstance(rows, list) else []:
            if not isinstance(row, dict) or not isinstance(row.get("id"), int) or not isinstance(row.get("path"), str):
                continue
            name = PurePosixPath(row["path"]).stem
            card = ModelCard(name, base.card.created_s, "llamacpp", name, context_tokens=base.card.context_tokens, parent=base.card.id)
            served[name] = Served(card, base.upstream, (("lora", [{"id": row["id"], "scale": 1.0}]),))
        return served

    async def recognise(self, ask: Ask) -> bool:
        """/props with llama-server's fields, or its name in the list of models."""
        heard = await ask("/props", LOOK_S)
        if heard.status == 200 and b"default_generation_settings" in heard.body:
            return True
        return await owner_of(ask) == "llamacpp"

    def refuse(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        return meaning(status, headers, text, label)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _is_unloaded(row: dict[str, Any]) -> bool:
    """Whether a router-mode row is a model that failed to load; unloaded ones are loaded when asked for."""
    status = row.get("status")
    return isinstance(status, dict) and bool(status.get("failed"))
