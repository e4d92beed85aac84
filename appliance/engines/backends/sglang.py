"""SGLang: health by status alone, an information page of its own. Source: its HTTP server."""

from dataclasses import replace
from typing import ClassVar

from appliance.engines.backends.asking import LOOK_S, longest_of, owner_of, rows_of_models, served_of, with_parents
from appliance.engines.backends.contract import Ask, Health, Learned
from appliance.engines.refusal import meaning
from appliance.engines.types import Served

INFORMATION = ("/get_model_info", "/model_info")        # the older name, the newer one


class Sglang:
    """SGLang's server; its metrics are there only when it was started with them."""

    kind: ClassVar[str] = "sglang"
    running: ClassVar[tuple[str, ...]] = ("sglang:num_running_reqs",)
    waiting: ClassVar[tuple[str, ...]] = ("sglang:num_queue_reqs",)
    notices_leavers: ClassVar[bool] = True

    async def health(self, ask: Ask) -> Health:
        """200 is ready; 503 is what it says while it starts."""
        heard = await ask("/health", 1.0)
        return Health(heard.status == 200, heard.status == 503, "" if heard.status == 200 else f"/health answered {heard.status}")

    async def learn(self, ask: Ask) -> Learned:
        models = with_parents({row["id"]: served_of(row, owner="sglang") for row in await rows_of_models(ask)})
        models = {name: _adapter(served) if served.card.parent in models else served for name, served in models.items()}
        return Learned(models, longest_of(models))

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


def _adapter(served: Served) -> Served:
    """It is listed by its own name, but asked for as `base:adapter`: by its own name alone, the base model would answer, silently."""
    full = f"{served.card.parent}:{served.card.id}"
    return replace(served, card=replace(served.card, aliases=(full,), upstream=full), upstream=full)
