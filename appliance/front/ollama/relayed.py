"""Models that run elsewhere, as /api/tags, /api/ps and /api/show describe them."""

import hashlib
from typing import Any

from appliance.base.clock import Clock, format_rfc3339
from appliance.base.plain_text import public_address
from appliance.engines.router import Router
from appliance.engines.types import ModelCard

EXPIRES_S = 365 * 86_400  # a relayed model does not expire: a year from now
CAPABILITIES = ["completion", "tools"]
DEMO_CAPABILITIES = ["completion", "tools", "insert", "embedding", "thinking"]


class RelayedModels:
    """Renders the cards of models that run elsewhere. None of their memory is here, so sizes are 0."""

    def __init__(self, router: Router, *, clock: Clock) -> None:
        self._router = router
        self._clock = clock

    def tag(self, card: ModelCard) -> dict[str, Any]:
        """Return a row of /api/tags."""
        return {
            **self._entry(card),
            "modified_at": format_rfc3339(card.created_s),
            "capabilities": self._capabilities(card),
        }

    def loaded(self, card: ModelCard) -> dict[str, Any]:
        """Return a row of /api/ps: it is always loaded."""
        expires_at = format_rfc3339(self._clock.now_s() + EXPIRES_S)
        return {**self._entry(card), "expires_at": expires_at, "size_vram": 0}

    def show(self, card: ModelCard) -> dict[str, Any]:
        """Return the body of /api/show."""
        modelfile = (
            f"# {card.id} is relayed to {card.upstream}; there is no model file here\nFROM {card.id}\n"
        )
        return {
            "modelfile": modelfile,
            "parameters": "",
            "template": "",
            "details": _details(card),
            "capabilities": self._capabilities(card),
            "modified_at": format_rfc3339(card.created_s),
            **self._remote(card),
            "model_info": {
                "general.architecture": _family(card),
                "general.name": card.id,
                "appliance.upstream": card.upstream,
            },
        }

    def _entry(self, card: ModelCard) -> dict[str, Any]:
        """Return what /api/tags and /api/ps share."""
        return {
            "name": card.id,
            "model": card.id,
            **self._remote(card),
            "size": 0,
            "digest": hashlib.sha256(card.upstream.encode()).hexdigest(),
            "details": _details(card),
        }

    def _remote(self, card: ModelCard) -> dict[str, str]:
        """Return the fields that mark a model of the hosted API; none for another one."""
        if card.owned_by != "novita":
            return {}
        host = self._router.settings.novita_openai_endpoints[0]
        return {"remote_model": card.upstream, "remote_host": public_address(host)}

    def _capabilities(self, card: ModelCard) -> list[str]:
        """Say what a model can do in Ollama's words, as far as it is known."""
        if self._router.is_demo:
            return DEMO_CAPABILITIES
        if not card.is_text:
            return ["embedding"]
        return [*CAPABILITIES, "vision"] if "multimodal" in card.capabilities else CAPABILITIES


def _family(card: ModelCard) -> str:
    """Return a model's family, guessed from its name: what precedes the first digit or dash."""
    name = card.upstream.rsplit("/", 1)[-1].lower()
    return "llama" if "llama" in name else name.split("-")[0].rstrip("0123456789.")


def _details(card: ModelCard) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "remote",
        "family": _family(card),
        "families": [_family(card)],
        "parameter_size": "",
        "quantization_level": "",
    }
