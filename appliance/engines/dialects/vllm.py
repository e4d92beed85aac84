"""vLLM: health by status alone, models with their context and adapters in /v1/models. Source: its API server."""

from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import EngineClient, EngineFacts, EngineHealth, LoraReply, QueryReply
from appliance.engines.dialects.queries import (
    adapter_of,
    longest_of,
    owner_of,
    rows_of_models,
    served_of,
    with_parents,
)
from appliance.engines.types import ServedModel
from appliance.engines.upstream.refusal import meaning

LORA_REMEDY = (
    "Start it with --enable-lora, and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
)


class Vllm:
    """vLLM of any generation with an OpenAI server."""

    kind: ClassVar[str] = "vllm"
    running_metrics: ClassVar[tuple[str, ...]] = ("vllm:num_requests_running",)
    waiting_metrics: ClassVar[tuple[str, ...]] = ("vllm:num_requests_waiting",)
    stops_on_disconnect: ClassVar[bool] = True

    async def probe_health(self, client: EngineClient) -> EngineHealth:
        """200 is ready; 500 and 503 mean that its engine is dead."""
        reply = await client.get("/health", 1.0)
        return EngineHealth(
            reply.status == 200, False, "" if reply.status == 200 else f"/health answered {reply.status}"
        )

    async def read_facts(self, client: EngineClient) -> EngineFacts:
        models = with_parents(
            {row["id"]: served_of(row, owner="vllm") for row in await rows_of_models(client)}
        )
        return EngineFacts(models, longest_of(models))

    async def matches(self, client: EngineClient) -> bool:
        """Its name in the list of models, or its metrics."""
        if await owner_of(client) == "vllm":
            return True
        reply = await client.get("/metrics", 5.0)
        return reply.status == 200 and (b"\nvllm:" in reply.body or b"\nvllm_" in reply.body)

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
        """Success is a sentence in plain text; 400 is also what it says to a name that it has."""
        reply = await client.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        text = _text(reply)
        if reply.status == 200:
            return LoraReply("done", 200, text)
        if _has_no_such_address(reply):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        return LoraReply(
            "already" if reply.status == 400 and "already" in text else "refused", reply.status, text
        )

    async def unload_adapter(self, client: EngineClient, name: str, more: dict[str, Any]) -> LoraReply:
        """404 has two meanings: it has no adapter of that name, or no such address."""
        reply = await client.post("/v1/unload_lora_adapter", {**more, "lora_name": name})
        text = _text(reply)
        if reply.status == 200:
            return LoraReply("done", 200, text)
        if _has_no_such_address(reply):
            return LoraReply("off", reply.status, text, remedy=LORA_REMEDY)
        return LoraReply(
            "unknown" if reply.status == 404 or "cannot be found" in text else "refused", reply.status, text
        )

    def describe_adapter(self, base: ServedModel, name: str, path: str) -> ServedModel:
        return adapter_of(base, name, path, owner="vllm")

    async def has_adapter(self, client: EngineClient, served: ServedModel) -> bool:
        """A name that it has not gets 404."""
        return True


def _text(reply: QueryReply) -> str:
    return reply.body.decode("utf-8", "replace")


def _has_no_such_address(reply: QueryReply) -> bool:
    """Tell its web framework's 404 from its own, which has a message."""
    if reply.status not in {404, 405}:
        return False
    try:
        value = jsons.loads(reply.body)
    except jsons.BadJson:
        return True
    return not isinstance(value, dict) or not ("error" in value or "message" in value)
