"""The one entrance to the engines: a model's name → a backend → a reply, with the story in the receipt."""

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel, Unavailable
from appliance.engines.backends.contract import Backend
from appliance.engines.pacing import paced
from appliance.engines.settings import EngineSettings
from appliance.engines.types import BackendState, EngineReply, EngineRequest, ModelCard

WHOLE = 1 << 30         # characters: larger than any answer


class Router:
    """Chooses who answers. Holds the backends; `replace` swaps them while requests run."""

    def __init__(self, settings: EngineSettings, backends: list[Backend], *, clock: Clock) -> None:
        self.settings = settings
        self._backends = backends
        self._clock = clock

    @property
    def is_demo(self) -> bool:
        """Whether the built-in demo engine is what answers."""
        return all(b.kind == "demo" for b in self._backends)

    def replace(self, settings: EngineSettings, backends: list[Backend]) -> list[Backend]:
        """Put new backends in place; give the old ones, whose running answers go on until they end."""
        old, self._backends, self.settings = self._backends, backends, settings
        return old

    def cards(self) -> list[ModelCard]:
        """List the models that are served, each once."""
        return list({card.id: card for backend in self._backends for card in backend.cards()}.values())

    def states(self) -> list[BackendState]:
        return [backend.state() for backend in self._backends]

    def measure(self) -> None:
        """Bring every backend's gauges up to date."""
        for backend in self._backends:
            backend.measure()

    def resolve(self, model: str) -> ModelCard:
        """Give the card of the model that `model` means ("" = the default one).

        Raises  NoSuchModel when nobody serves it (MODEL_STRICT=1)
        """
        return self._pick(model)[1]

    def _pick(self, model: str) -> tuple[Backend, ModelCard, str]:
        """Choose the backend for a name, and say why.

        1. a backend that has the very name or an alias     2. the default backend, which answers any name
        """
        for backend in self._backends:
            for card in backend.cards():
                if model == card.id or model in card.aliases:                                   # 1
                    return backend, card, "model" if model == card.id else "alias"
        for backend in self._backends:
            if backend.serves(model) and (cards := backend.cards()):                            # 2
                return backend, cards[0], "default" if model else "no model named"
        if not self._backends:
            raise Unavailable("No backend is configured. Set NOVITA_API_KEY.")
        known = ", ".join(card.id for card in self.cards())
        raise NoSuchModel(f"The model {model!r} does not exist here. Known: {known}.", param="model")

    async def answer(self, request: EngineRequest) -> EngineReply:
        """Answer `request`; if a stream was asked for and the answer came in one piece, pace it out.

        Gives   EngineReply: `body`, or `events` when `request.stream` (unless the reply is an error status)
        Raises  what the backend raises (see Backend.send) · NoSuchModel
        """
        receipt, settings = request.receipt, self.settings
        backend, card, reason = self._pick(request.model)
        receipt.model, receipt.public_model, receipt.reason = request.model, card.id, reason
        receipt.streamed = request.stream
        reply = await backend.send(request)
        if request.stream and reply.body is not None and reply.status == 200:
            options = request.body.get("stream_options")
            include_usage = isinstance(options, dict) and bool(options.get("include_usage"))
            is_paced = settings.upstream_streaming != "relay"       # relay: no artificial pauses, the one piece goes at once
            events = paced(jsons.loads(reply.body), size=settings.stream_chunk_size if is_paced else WHOLE,
                           delay_ms=settings.stream_delay_ms if is_paced else 0, include_usage=include_usage)
            return EngineReply(events=events, content_type="text/event-stream; charset=utf-8")
        return reply
