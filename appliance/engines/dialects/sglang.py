"""SGLang: health by status alone, an information page of its own. Source: its HTTP server."""

from dataclasses import replace
from typing import Any, ClassVar

from appliance.base import jsons
from appliance.engines.dialects.contract import Ask, EngineFacts, EngineHealth, LoraReply, QueryReply, Tell
from appliance.engines.dialects.queries import (
    LOOK_S,
    adapter_of,
    longest_of,
    owner_of,
    rows_of_models,
    served_of,
    with_parents,
)
from appliance.engines.types import Served
from appliance.engines.upstream.refusal import meaning

INFORMATION = ("/get_model_info", "/model_info")  # the older name, the newer one
LORA_REMEDY = "Start it with --enable-lora, --max-lora-rank and --lora-target-modules."


class Sglang:
    """SGLang's server; its metrics are there only when it was started with them."""

    kind: ClassVar[str] = "sglang"
    running: ClassVar[tuple[str, ...]] = ("sglang:num_running_reqs",)
    waiting: ClassVar[tuple[str, ...]] = ("sglang:num_queue_reqs",)
    notices_leavers: ClassVar[bool] = True

    async def health(self, ask: Ask) -> EngineHealth:
        """200 is ready; 503 is what it says while it starts."""
        heard = await ask("/health", 1.0)
        return EngineHealth(
            heard.status == 200,
            heard.status == 503,
            "" if heard.status == 200 else f"/health answered {heard.status}",
        )

    async def learn(self, ask: Ask) -> EngineFacts:
        models = with_parents(
            {row["id"]: served_of(row, owner="sglang") for row in await rows_of_models(ask)}
        )
        models = {
            name: _adapter(served) if served.card.parent in models else served
            for name, served in models.items()
        }
        return EngineFacts(models, longest_of(models))

    async def recognise(self, ask: Ask) -> bool:
        """Its name in the list of models, or its information page."""
        if await owner_of(ask) == "sglang":
            return True
        for path in INFORMATION:
            heard = await ask(path, LOOK_S)
            if heard.status == 200 and b"model_path" in heard.body:
                return True
        return False

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
        """Its address has no /v1 before it; whether it worked is a flag in the answer."""
        heard = await tell(
            "/load_lora_adapter",
            {"lora_name": name, "lora_path": path, **({"pinned": True} if is_pinned else {})},
        )
        is_done, text = _said(heard)
        if is_done:
            return LoraReply("done", heard.status, text)
        if _is_off(heard, text):
            return LoraReply("off", heard.status, text, remedy=LORA_REMEDY)
        return LoraReply("already" if "already" in text else "refused", heard.status, text)

    async def unload_adapter(self, tell: Tell, ask: Ask, name: str, more: dict[str, Any]) -> LoraReply:
        heard = await tell("/unload_lora_adapter", {**more, "lora_name": name})
        is_done, text = _said(heard)
        if is_done:
            return LoraReply("done", heard.status, text)
        if _is_off(heard, text):
            return LoraReply("off", heard.status, text, remedy=LORA_REMEDY)
        unknown = any(words in text for words in ("does not exist", "not loaded", "not found"))
        return LoraReply("unknown" if unknown else "refused", heard.status, text)

    def as_served(self, base: Served, name: str, path: str) -> Served:
        return _adapter(adapter_of(base, name, path, owner="sglang"))

    async def still_has(self, ask: Ask, served: Served) -> bool:
        """A name `base:adapter` that it has not is refused."""
        return True


def _said(heard: QueryReply) -> tuple[bool, str]:
    """Give (it worked, what it says): success may come as a flag beside any status."""
    text = heard.body.decode("utf-8", "replace")
    try:
        value = jsons.loads(heard.body)
    except jsons.BadJson:
        return False, text
    if not isinstance(value, dict):
        return False, text
    return heard.status == 200 and value.get("success") is not False, str(value.get("error_message") or text)


def _is_off(heard: QueryReply, text: str) -> bool:
    return heard.status in {404, 405} or "not enabled" in text


def _adapter(served: Served) -> Served:
    """It is listed by its own name, but asked for as `base:adapter`: by its own name alone, the base model would answer, silently."""
    full = f"{served.card.parent}:{served.card.id}"
    return replace(served, card=replace(served.card, aliases=(full,), upstream=full), upstream=full)
