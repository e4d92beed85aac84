"""SGLang: health by status alone, an information page of its own. Source: its HTTP server."""

from dataclasses import replace
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth, LoraReply, QueryReply
from appliance.engines.dialects.queries import (
    LOOK_S,
    adapter_of,
    longest_of,
    owner_of,
    rows_of_models,
    served_of,
    with_parents,
)
from appliance.engines.types import ServedModel
from appliance.engines.upstream.refusal import meaning

INFORMATION = ("/get_model_info", "/model_info")  # the older name, the newer one
LORA_REMEDY = "Start it with --enable-lora, --max-lora-rank and --lora-target-modules."


class Sglang:
    """SGLang's server; its metrics are there only when it was started with them."""

    kind: ClassVar[str] = "sglang"
    running_metrics: ClassVar[tuple[str, ...]] = ("sglang:num_running_reqs",)
    waiting_metrics: ClassVar[tuple[str, ...]] = ("sglang:num_queue_reqs",)
    stops_on_disconnect: ClassVar[bool] = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """200 is ready; 503 is what it says while it starts."""
        reply = await client.get("/health", 1.0)
        return EngineHealth(
            reply.status == 200,
            reply.status == 503,
            "" if reply.status == 200 else f"/health answered {reply.status}",
        )

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        models = with_parents(
            {row["id"]: served_of(row, owner="sglang") for row in await rows_of_models(client)}
        )
        models = {
            name: _adapter(served) if served.card.parent in models else served
            for name, served in models.items()
        }
        return EngineFacts(models, longest_of(models))

    async def matches(self, client: EngineClient) -> bool:
        """Its name in the list of models, or its information page."""
        if await owner_of(client) == "sglang":
            return True
        for path in INFORMATION:
            reply = await client.get(path, LOOK_S)
            if reply.status == 200 and b"model_path" in reply.body:
                return True
        return False

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
        """Its address has no /v1 before it; whether it worked is a flag in the answer."""
        reply = await client.post(
            "/load_lora_adapter",
            {"lora_name": name, "lora_path": path, **({"pinned": True} if is_pinned else {})},
        )
        is_done, text = _said(reply)
        if is_done:
            return LoraReply("done", reply.status, text)
        if _is_off(reply, text):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        return LoraReply("already" if "already" in text else "refused", reply.status, text)

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        reply = await client.post("/unload_lora_adapter", {**more, "lora_name": name})
        is_done, text = _said(reply)
        if is_done:
            return LoraReply("done", reply.status, text)
        if _is_off(reply, text):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        unknown = any(words in text for words in ("does not exist", "not loaded", "not found"))
        return LoraReply("unknown" if unknown else "refused", reply.status, text)

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        return _adapter(adapter_of(base, name, path, owner="sglang"))

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """A name `base:adapter` that it has not is refused."""
        return True


def _said(reply: QueryReply) -> tuple[bool, str]:
    """Give (it worked, what it says): success may come as a flag beside any status."""
    text = reply.body.decode("utf-8", "replace")
    try:
        value = jsons.loads(reply.body)
    except jsons.BadJson:
        return False, text
    if not isinstance(value, dict):
        return False, text
    return reply.status == 200 and value.get("success") is not False, str(value.get("error_message") or text)


def _is_off(reply: QueryReply, text: str) -> bool:
    return reply.status in {404, 405} or "not enabled" in text


def _adapter(served: ServedModel) -> ServedModel:
    """It is listed by its own name, but asked for as `base:adapter`: by its own name alone, the base model would answer, silently."""
    full = f"{served.card.parent}:{served.card.id}"
    return replace(served, card=replace(served.card, aliases=(full,), upstream=full), upstream=full)
