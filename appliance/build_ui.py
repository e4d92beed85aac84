"""Build the web UI from the parts of the appliance: what its pages follow, and the last hour."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

from appliance import __version__
from appliance.front.manager.objects import vram
from appliance.front.ui.feed import Feed
from appliance.front.ui.files import UiFiles
from appliance.front.ui.handlers import UiHandlers
from appliance.front.ui.history import SAMPLE_S, History, LoadTotals
from appliance.front.ui.sessions import UiTokens
from appliance.models.status.objects import as_status
from appliance.parts import Appliance

LATEST: Final = 20
# The addresses where models are asked: what counts as a request in the pictures.
WORK: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/rerank",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
)


@dataclass(frozen=True, slots=True)
class WebUi:
    """The web UI.

    Attributes:
        handlers: Its addresses.
        feed: What its pages follow; to be closed when the appliance stops.
    """

    handlers: UiHandlers
    feed: Feed


def build_ui(appliance: Appliance) -> WebUi:
    """Build the web UI, and begin to keep the last hour."""
    pipeline, clock = appliance.pipeline, appliance.clock
    tokens = UiTokens(clock=clock)
    pipeline.use_key_tokens(tokens)
    history = History(lambda: _totals(appliance), clock=clock)
    feed = Feed(_topics(appliance), _operator_topics(appliance), clock=clock)
    handlers = UiHandlers(
        files=UiFiles(),
        tokens=tokens,
        feed=feed,
        history=history,
        look_up=pipeline.look_up,
        knows_key=lambda key: pipeline.keys.knows(key),
        parts=lambda: _parts(appliance),
        version=__version__,
        now_s=clock.monotonic_s,
    )
    appliance.tasks.every(SAMPLE_S, history.sample, name="ui_history")
    if appliance.manager is not None:
        appliance.tasks.start(_note_models(appliance, history), name="ui_models")
    return WebUi(handlers, feed)


async def _note_models(appliance: Appliance, history: History) -> None:
    """Note each change of a model."""
    manager = appliance.manager
    assert manager is not None
    async for _ in manager.changed.follow():
        history.note_models(manager.models())


def _parts(appliance: Appliance) -> dict[str, bool]:
    """Return which parts there are."""
    return {
        "models": appliance.manager is not None,
        "accounts": appliance.accounts is not None,
        "demo": appliance.router.is_demo,
        "hosted": any(backend.kind == "hosted" for backend in appliance.router.backends()),
    }


def _topics(appliance: Appliance) -> dict[str, Callable[[], Any]]:
    """Return what every client's page follows."""

    def status() -> dict[str, Any]:
        state = appliance.lifecycle.state.value
        return {"state": state, "ok": state == "serving", "started_at_s": appliance.started_s}

    def models() -> dict[str, Any]:
        manager = appliance.manager
        cards = [{"id": card.id, "backend": card.owned_by} for card in appliance.router.cards()]
        return {"table": as_status(manager)["models"] if manager is not None else {}, "cards": cards}

    def memory() -> dict[str, Any]:
        return vram(appliance.manager) if appliance.manager is not None else {}

    def load() -> dict[str, Any]:
        return asdict(_totals(appliance))

    return {"status": status, "models": models, "memory": memory, "load": load}


def _operator_topics(appliance: Appliance) -> dict[str, Callable[[], Any]]:
    """Return what operators' pages follow besides."""

    def backends() -> dict[str, Any]:
        status = appliance.status()
        return {name: status[name] for name in ("backends", "warnings", "gpu", "worker", "steps")}

    def requests() -> list[dict[str, Any]]:
        return [one.as_dict() for one in appliance.receipts.latest(LATEST)]

    return {"backends": backends, "requests": requests}


def _totals(appliance: Appliance) -> LoadTotals:
    """Return the counters of requests that were sent to models."""
    metrics = appliance.metrics
    requests = errors = 0.0
    for (route, status), counter in metrics.requests.rows():
        if route in WORK:
            requests += counter.value
            errors += counter.value if status >= "500" else 0.0
    tokens = sum(counter.value for (_, _, kind), counter in metrics.tokens.rows() if kind != "prompt")
    states = appliance.router.states()
    return LoadTotals(
        requests=requests,
        errors=errors,
        tokens=tokens,
        by_backend={state.name: float(state.chosen_total) for state in states},
        running=appliance.pipeline.answering,
        queued=round(sum(state.waiting or 0.0 for state in states)),
    )
