"""vLLM: health by status alone, models with their context and adapters in /v1/models. Source: its API server."""

from typing import ClassVar

from appliance.engines.backends.asking import longest_of, owner_of, rows_of_models, served_of, with_parents
from appliance.engines.backends.contract import Ask, Health, Learned
from appliance.engines.refusal import meaning


class Vllm:
    """vLLM of any generation with an OpenAI server."""

    kind: ClassVar[str] = "vllm"
    running: ClassVar[tuple[str, ...]] = ("vllm:num_requests_running",)
    waiting: ClassVar[tuple[str, ...]] = ("vllm:num_requests_waiting",)
    notices_leavers: ClassVar[bool] = True

    async def health(self, ask: Ask) -> Health:
        """200 is ready; 500 and 503 mean that its engine is dead."""
        heard = await ask("/health", 1.0)
        return Health(heard.status == 200, False, "" if heard.status == 200 else f"/health answered {heard.status}")

    async def learn(self, ask: Ask) -> Learned:
        models = with_parents({row["id"]: served_of(row, owner="vllm") for row in await rows_of_models(ask)})
        return Learned(models, longest_of(models))

    async def recognise(self, ask: Ask) -> bool:
        """Its name in the list of models, or its metrics."""
        if await owner_of(ask) == "vllm":
            return True
        heard = await ask("/metrics", 5.0)
        return heard.status == 200 and (b"\nvllm:" in heard.body or b"\nvllm_" in heard.body)

    def refuse(self, status: int, headers: dict[str, str], text: str, label: str) -> Exception:
        return meaning(status, headers, text, label)
