"""vLLM: health by status alone, models with their context and adapters in /v1/models. Source: its API server."""

from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import Ask, EngineFacts, EngineHealth, LoraReply, QueryReply, Tell
from appliance.engines.dialects.queries import (
    adapter_of,
    longest_of,
    owner_of,
    rows_of_models,
    served_of,
    with_parents,
)
from appliance.engines.types import Served
from appliance.engines.upstream.refusal import meaning

LORA_REMEDY = (
    "Start it with --enable-lora, and with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment."
)


class Vllm:
    """vLLM of any generation with an OpenAI server."""

    kind: ClassVar[str] = "vllm"
    running: ClassVar[tuple[str, ...]] = ("vllm:num_requests_running",)
    waiting: ClassVar[tuple[str, ...]] = ("vllm:num_requests_waiting",)
    notices_leavers: ClassVar[bool] = True

    async def health(self, ask: Ask) -> EngineHealth:
        """200 is ready; 500 and 503 mean that its engine is dead."""
        heard = await ask("/health", 1.0)
        return EngineHealth(
            heard.status == 200, False, "" if heard.status == 200 else f"/health answered {heard.status}"
        )

    async def learn(self, ask: Ask) -> EngineFacts:
        models = with_parents({row["id"]: served_of(row, owner="vllm") for row in await rows_of_models(ask)})
        return EngineFacts(models, longest_of(models))

    async def recognise(self, ask: Ask) -> bool:
        """Its name in the list of models, or its metrics."""
        if await owner_of(ask) == "vllm":
            return True
        heard = await ask("/metrics", 5.0)
        return heard.status == 200 and (b"\nvllm:" in heard.body or b"\nvllm_" in heard.body)

    def refuse(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        return meaning(status, headers, text, label)

    async def load_adapter(
        self,
        tell: Tell,
        ask: Ask,
        name: str,
        path: str,
        *,
        is_pinned: bool = False,
    ) -> LoraReply:
        """Success is a sentence in plain text; 400 is also what it says to a name that it has."""
        heard = await tell("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path})
        text = _text(heard)
        if heard.status == 200:
            return LoraReply("done", 200, text)
        if _has_no_such_address(heard):
            return LoraReply("off", heard.status, text, remedy=LORA_REMEDY)
        return LoraReply(
            "already" if heard.status == 400 and "already" in text else "refused", heard.status, text
        )

    async def unload_adapter(self, tell: Tell, ask: Ask, name: str, more: dict[str, Any]) -> LoraReply:
        """404 has two meanings: it has no adapter of that name, or no such address."""
        heard = await tell("/v1/unload_lora_adapter", {**more, "lora_name": name})
        text = _text(heard)
        if heard.status == 200:
            return LoraReply("done", 200, text)
        if _has_no_such_address(heard):
            return LoraReply("off", heard.status, text, remedy=LORA_REMEDY)
        return LoraReply(
            "unknown" if heard.status == 404 or "cannot be found" in text else "refused", heard.status, text
        )

    def as_served(self, base: Served, name: str, path: str) -> Served:
        return adapter_of(base, name, path, owner="vllm")

    async def still_has(self, ask: Ask, served: Served) -> bool:
        """A name that it has not gets 404."""
        return True


def _text(heard: QueryReply) -> str:
    return heard.body.decode("utf-8", "replace")


def _has_no_such_address(heard: QueryReply) -> bool:
    """Tell its web framework's 404 from its own, which has a message."""
    if heard.status not in {404, 405}:
        return False
    try:
        value = jsons.loads(heard.body)
    except jsons.BadJson:
        return True
    return not isinstance(value, dict) or not ("error" in value or "message" in value)
