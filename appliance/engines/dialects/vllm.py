"""vLLM: health by status alone, models with their context and adapters in /v1/models.

Source: its API server.
"""

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
    first_owner,
    list_models,
    read_count,
    served_model,
    smallest_context,
    unlisted_adapter,
    with_parent_context,
)
from appliance.engines.types import ServedModel

LORA_REMEDY = (
    "Start it with --enable-lora, and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
)

# Of a chat's body: what becomes a part of the prompt.
PROMPT_FIELDS = ("model", "messages", "tools", "chat_template_kwargs")


class Vllm:
    """vLLM of any generation with an OpenAI server."""

    kind: ClassVar[str] = "vllm"
    running_metrics: ClassVar[tuple[str, ...]] = ("vllm:num_requests_running",)
    waiting_metrics: ClassVar[tuple[str, ...]] = ("vllm:num_requests_waiting",)
    stops_on_disconnect: ClassVar[bool] = True
    has_slots: ClassVar[bool] = False
    names_adapters: ClassVar[bool] = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """Query /health: 200 is ready; 500 and 503 mean that its engine is dead, never that it is loading."""
        status = (await client.get("/health", HEALTH_TIMEOUT_S)).status
        return EngineHealth(status == 200, False, "" if status == 200 else f"/health answered {status}")

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        """Read models and adapters of /v1/models."""
        rows = await list_models(client)
        models = with_parent_context({row["id"]: served_model(row, owner="vllm") for row in rows})
        return EngineFacts(models, smallest_context(models))

    async def matches(self, client: EngineClient) -> bool:
        """Look for its name in the list of models, or on its metrics page."""
        if await first_owner(client) == "vllm":
            return True
        reply = await client.get("/metrics", QUERY_TIMEOUT_S)
        return reply.status == 200 and (b"\nvllm:" in reply.body or b"\nvllm_" in reply.body)

    async def count_tokens(self, client: EngineClient, body: dict[str, Any]) -> int:
        """Let /tokenize render and count a chat's prompt."""
        chat = {name: body[name] for name in PROMPT_FIELDS if name in body}
        return read_count(await client.post("/tokenize", chat), "/tokenize", "count")

    async def load_adapter(
        self, client: EngineClient, name: str, path: str, *, is_pinned: bool = False
    ) -> LoraReply:
        """Load an adapter: success is plain text; 400 also means that it has one of that name."""
        reply = await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        text = _text(reply)
        if reply.status == 200:
            return LoraReply("done", 200, text)
        if _has_no_such_route(reply):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        is_known = reply.status == 400 and "already" in text
        return LoraReply("already" if is_known else "refused", reply.status, text)

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """Unload an adapter: 404 means that it has none of that name, or no such route."""
        reply = await client.post("/v1/unload_lora_adapter", {**more, "lora_name": name})
        text = _text(reply)
        if reply.status == 200:
            return LoraReply("done", 200, text)
        if _has_no_such_route(reply):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        is_unknown = reply.status == 404 or "cannot be found" in text
        return LoraReply("unknown" if is_unknown else "refused", reply.status, text)

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        """Return the adapter under its own name."""
        return unlisted_adapter(base, name, path, owner="vllm")

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """Return True without a query: an unknown name gets 404."""
        return True


def _text(reply: QueryReply) -> str:
    return reply.body.decode("utf-8", "replace")


def _has_no_such_route(reply: QueryReply) -> bool:
    """Whether a 404 is from the web framework; vLLM's own has a message."""
    if reply.status not in {404, 405}:
        return False
    try:
        value = jsons.loads(reply.body)
    except jsons.InvalidJson:
        return True
    return not isinstance(value, dict) or not ("error" in value or "message" in value)
