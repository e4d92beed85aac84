"""The state that all parts of the manager share: the table, the models, the llama-servers, the counts.

Written on the event loop only; a part that changes what a reader can see calls `notify`.
"""

from collections import deque
from collections.abc import Callable

from appliance.base.clock import Clock
from appliance.base.errors import NoSuchModel
from appliance.base.watch import Watched
from appliance.models.manager.model_state import ModelState
from appliance.models.runner.runner import Runner
from appliance.models.status.views import KEPT_SAMPLES, ManagerCounts, RequestSample, ServerStatus
from appliance.models.table.catalogue import Catalogue, LoraAdapter

NAMES_SHOWN = 20  # of the models that an error message lists


class ManagerState:
    """The state of the model manager.

    Attributes:
        models: By alias, in the order of the table.
        runners: Every llama-server by its serial, until it is removed; also those of models that left the
            table.
        adapters: Adapters in addition to those of the table, by alias of the model.
        samples: The latest finished requests.
        changed: Rises with every change that a reader can see.
        models_version: Rises when models come or go, or when their files say something else.
        models_callbacks: Called when a model's file says something else than before.
        is_closed: The appliance is shutting down; nothing is started any more.
    """

    def __init__(self, catalogue: Catalogue, *, clock: Clock) -> None:
        self.catalogue = catalogue
        self.clock = clock
        self.models: dict[str, ModelState] = {}
        self.runners: dict[int, Runner] = {}
        self.adapters: dict[str, tuple[LoraAdapter, ...]] = {}
        self.samples: deque[RequestSample] = deque(maxlen=KEPT_SAMPLES)
        self.counts = ManagerCounts()
        self.changed: Watched[int] = Watched(0)
        self.models_version = 0
        self.models_callbacks: list[Callable[[], None]] = []
        self.is_closed = False
        self.server_status: ServerStatus = "initializing"
        self.server_started_at_s = self.server_updated_at_s = clock.now_s()

    def model(self, alias: str) -> ModelState:
        """Return the state of a model, by its name or an alias.

        Raises:
            NoSuchModel: The table has no such model.
        """
        model = self.models.get(alias) or self.models.get(self.catalogue.name_of(alias) or "")
        if model is None:
            known = ", ".join(list(self.models)[:NAMES_SHOWN])
            raise NoSuchModel(
                f"The model {alias[:200]!r} does not exist here. Known: {known}.", param="model"
            )
        return model

    def notify(self, model: ModelState | None = None) -> None:
        """Tell followers that something changed, of this model or in general."""
        if model is not None:
            model.updated_at_s = self.clock.now_s()
        self.changed.set(self.changed.value + 1)

    def models_changed(self) -> None:
        """Tell that a model's file says something else than before: its kind, its context."""
        self.models_version += 1
        for callback in self.models_callbacks:
            callback()

    def set_server_status(self, status: ServerStatus) -> None:
        """Set the status of the server as a whole."""
        if status != self.server_status:
            self.server_status, self.server_updated_at_s = status, self.clock.now_s()
            self.notify()

    def count(self, *, loads: int = 0, loaded: int = 0, ejects: int = 0, crashes: int = 0) -> None:
        """Add to the totals since the start."""
        was = self.counts
        self.counts = ManagerCounts(
            was.loads + loads, was.loaded + loaded, was.ejects + ejects, was.crashes + crashes
        )
