"""SGLang: health by status alone, an information page of its own. Source: its HTTP server."""

from dataclasses import replace
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import (
    EngineClient,
    EngineFacts,
    EngineHealth,
    LoraReply,
    QueryReply,
)
from appliance.engines.dialects.queries import (
    HEALTH_TIMEOUT_S,
    QUERY_TIMEOUT_S,
    as_embeddings,
    first_owner,
    health_by_status,
    list_models,
    served_model,
    smallest_context,
    unlisted_adapter,
    with_parent_context,
)
from appliance.engines.types import ServedModel

INFORMATION_PATHS = ("/get_model_info", "/model_info")  # the older name, the newer one
LORA_REMEDY = "Start it with --enable-lora, --max-lora-rank and --lora-target-modules."
UNKNOWN_ADAPTER = ("does not exist", "not loaded", "not found")


class Sglang:
    """SGLang's server; it has a metrics page only when it was started with one."""

    kind: ClassVar[str] = "sglang"
    running_metrics: ClassVar[tuple[str, ...]] = ("sglang:num_running_reqs",)
    waiting_metrics: ClassVar[tuple[str, ...]] = ("sglang:num_queue_reqs",)
    stops_on_disconnect: ClassVar[bool] = True
    has_slots: ClassVar[bool] = False
    names_adapters: ClassVar[bool] = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """Query /health: 200 is ready; it answers 503 while it starts."""
        return health_by_status(await client.get("/health", HEALTH_TIMEOUT_S))

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Read models and adapters of /v1/models, and on its information page what it is for."""
        rows = await list_models(client)
        models = with_parent_context({row["id"]: served_model(row, owner="sglang") for row in rows})
        adapters = {name: one for name, one in models.items() if one.card.parent in models}
        models |= {name: _by_full_name(one) for name, one in adapters.items()}
        models = models if await _generates_text(client) else as_embeddings(models)
        return EngineFacts(models, smallest_context(models))

    async def matches(self, client: EngineClient) -> bool:
        """Look for its name in the list of models, or for its information page."""
        if await first_owner(client) == "sglang":
            return True
        for path in INFORMATION_PATHS:
            reply = await client.get(path, QUERY_TIMEOUT_S)
            if reply.status == 200 and b"model_path" in reply.body:
                return True
        return False

    async def load_adapter(
        self, client: EngineClient, name: str, path: str, *, is_pinned: bool = False
    ) -> LoraReply:
        """Load an adapter: the route has no /v1 before it, and the reply has a flag for success."""
        pinned = {"pinned": True} if is_pinned else {}
        reply = await client.post("/load_lora_adapter", {"lora_name": name, "lora_path": path, **pinned})
        is_done, text = _read_reply(reply)
        if is_done:
            return LoraReply("done", reply.status, text)
        if _is_off(reply, text):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        return LoraReply("already" if "already" in text else "refused", reply.status, text)

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """Unload an adapter."""
        reply = await client.post("/unload_lora_adapter", {**more, "lora_name": name})
        is_done, text = _read_reply(reply)
        if is_done:
            return LoraReply("done", reply.status, text)
        if _is_off(reply, text):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        is_unknown = any(words in text for words in UNKNOWN_ADAPTER)
        return LoraReply("unknown" if is_unknown else "refused", reply.status, text)

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        """Return the adapter under its full name `base:adapter`."""
        return _by_full_name(unlisted_adapter(base, name, path, owner="sglang"))

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """Return True without a query: an unknown name `base:adapter` is refused."""
        return True


async def _generates_text(client: EngineClient) -> bool:
    """Whether it generates text; its information page has `is_generation: false` for embeddings."""
    for path in INFORMATION_PATHS:
        reply = await client.get(path, QUERY_TIMEOUT_S)
        if reply.status == 200:
            try:
                page = jsons.loads(reply.body)
            except jsons.InvalidJson:
                return True
            return not (isinstance(page, dict) and page.get("is_generation") is False)
    return True


def _read_reply(reply: QueryReply) -> tuple[bool, str]:
    """Return (is done, text): success is a flag in the body, which can be false with status 200."""
    text = reply.body.decode("utf-8", "replace")
    try:
        value = jsons.loads(reply.body)
    except jsons.InvalidJson:
        return False, text
    if not isinstance(value, dict):
        return False, text
    return reply.status == 200 and value.get("success") is not False, str(value.get("error_message") or text)


def _is_off(reply: QueryReply, text: str) -> bool:
    return reply.status in {404, 405} or "not enabled" in text


def _by_full_name(served: ServedModel) -> ServedModel:
    """Request an adapter as `base:adapter`: for its bare name the base model would answer, silently."""
    full = f"{served.card.parent}:{served.card.id}"
    return replace(served, card=replace(served.card, aliases=(full,), upstream=full), upstream=full)
