"""The route of a model's name: the pools that serve it, the name that backends know, and why."""

import difflib
from dataclasses import dataclass, replace
from typing import Protocol

from appliance.base.errors import NoSuchModel, Unavailable
from appliance.engines.backends.adapters import AdapterNotLoaded
from appliance.engines.backends.contract import Backend
from appliance.engines.pool import Pool, Pools
from appliance.engines.settings import EngineSettings
from appliance.engines.types import ModelCard

MAX_CACHED_ROUTES = 4096  # names come from clients
NOT_NAMED = "no model named"  # the reason in receipts
NEAR_NAMES = 3
NAMED_MODELS, NAMED_BACKENDS = 20, 8  # in a sentence


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """Where requests for a model are sent.

    Attributes:
        stages: The pool that serves it, then those that it overflows into.
        model: The name by which backends know it.
        card: How it is shown to clients.
        reason: What the name was: model, alias, default, pinned …
    """

    stages: list[Pool]
    model: str
    card: ModelCard
    reason: str


class AdapterLookup(Protocol):
    """Finds declared adapters that no backend has."""

    def find_absent(self, name: str) -> AdapterNotLoaded | None:
        """Return why a declared adapter cannot be used now; None = there is none of that name."""
        ...


class Routes:
    """Finds routes by name, and caches them until something changes."""

    def __init__(self, pools: Pools, settings: EngineSettings) -> None:
        self._pools = pools
        self._adapters: AdapterLookup | None = None
        self._routes: dict[str, ModelRoute] = {}
        self._cards: list[ModelCard] | None = None
        self._adapter_names: set[str] = set()  # of any time: no other model may answer in their place
        self.apply(settings)

    def apply(self, settings: EngineSettings) -> None:
        """Take new settings: the aliases of models, and the default one."""
        self._is_strict = settings.model_strict
        self._default_name = settings.default_model
        self._aliases = dict(alias.split("=", 1) for alias in settings.model_aliases if "=" in alias)
        self.refresh()

    def connect_adapters(self, adapters: AdapterLookup) -> None:
        """Set what knows the declared adapters."""
        self._adapters = adapters

    def reserve_adapter(self, name: str) -> None:
        """Let no other model answer under the name of an adapter that an operator named."""
        self._adapter_names.add(name)
        self._routes.clear()

    def refresh(self) -> None:
        """Clear the cache: backends or their models changed."""
        self._routes.clear()
        self._cards = None
        for backend in self._pools.backends():
            self._adapter_names.update(card.id for card in backend.cards() if card.parent)

    def cards(self) -> list[ModelCard]:
        """Return the models that are served, each once, with all their aliases; the first is the default."""
        if self._cards is None:
            # If several backends have a model, the first one's card is shown, in the position of the last.
            backwards = [card for backend in self._pools.backends() for card in backend.cards()][::-1]
            cards = {card.id: card for card in backwards}
            for alias in self._aliases:
                route = self.find_named(alias)
                if route is not None and alias not in (
                    route.card.id,
                    *(card := cards[route.card.id]).aliases,
                ):
                    cards[card.id] = replace(card, aliases=(*card.aliases, alias))
            default = self.find_named(self._default_name) if self._default_name else self._first()
            first = default.card.id if default is not None else ""
            self._cards = [*cards.values()][::-1]
            self._cards.sort(key=lambda card: card.id != first)
        return self._cards

    def find(self, model: str) -> ModelRoute:
        """Return the route of a name; "" = the default model.

        Raises:
            NoSuchModel: No backend serves it.
            Unavailable: There is no backend, or not all could be asked yet.
            AdapterNotLoaded: It is a declared adapter that no backend has at the moment.
        """
        if not model:  # not cached: whether a model generates text may become known at any time
            return self._default()
        route = self._routes.get(model)
        if route is None:
            route = self._resolve(model)
            if len(self._routes) >= MAX_CACHED_ROUTES:
                self._routes.clear()
            self._routes[model] = route
        return route

    def _resolve(self, model: str) -> ModelRoute:
        """Look a name up.

        1. the name of a model, or an alias     → the first pool that serves it
        2. `name=model` of MODEL_ALIASES        → that model
        3. the same without `:latest`           → the same
        4. a declared adapter that is not loaded → AdapterNotLoaded: no other model may answer in its place
        5. a backend that serves any name       → that one
        6. there is one model, and MODEL_STRICT=0 → that one
        7. anything else                        → an error, with near names
        """
        if (route := self.find_named(model)) is not None:
            return route  # 1, 2, 3
        plain, aliases = model.removesuffix(":latest"), self._aliases
        for meant in (model, plain, aliases.get(model), aliases.get(plain)):
            if meant and (absent := self.find_absent(meant)) is not None:
                raise absent  # 4
        for pool in self._pools.all:
            for backend in pool.backends:
                if backend.find_model(model) is not None:
                    return ModelRoute(
                        self._pools.stages_from(pool), model, backend.cards()[0], "default"
                    )  # 5
        is_adapter = not self._adapter_names.isdisjoint((model, plain))
        if not is_adapter and (route := self._only_model()) is not None:
            return route  # 6
        raise self._unknown(model)  # 7

    def _default(self) -> ModelRoute:
        """Return the route of a request that names no model.

        1. DEFAULT_MODEL is set   → what that name means
        2. otherwise              → the first model that generates text, as far as that is known
        """
        if self._default_name:  # 1
            try:
                return replace(self.find(self._default_name), reason=NOT_NAMED)
            except NoSuchModel as error:
                text = f"No model is named, and DEFAULT_MODEL cannot answer. {error.message}"
                raise NoSuchModel(text, param="model") from None
        route = self._first()  # 2
        if route is None:
            raise self._unknown("")
        return route

    def _first(self) -> ModelRoute | None:
        """Return the route of the first model that generates text, else of the first one; None = no model."""
        first: ModelRoute | None = None
        for pool in self._pools.all:
            for backend in pool.backends:
                for card in backend.cards():
                    if first is None or card.is_text:
                        first = ModelRoute(self._pools.stages_from(pool), card.id, card, NOT_NAMED)
                    if card.is_text:
                        return first
        return first

    def _only_model(self) -> ModelRoute | None:
        """Return the route of the only model, where there is one and any name may mean it."""
        is_unsure = any(backend.is_unknown for backend in self._pools.backends())
        if self._is_strict or is_unsure or len(self.cards()) != 1:
            return None
        route = self._first()
        return replace(route, reason="default") if route is not None else None

    def find_named(self, model: str) -> ModelRoute | None:
        """Return the route of a model by a name or alias, also with `:latest`; None = no model has it."""
        aliases = self._aliases
        for name in dict.fromkeys((model, model.removesuffix(":latest"))):
            if (route := self.find_exact(name)) is not None:
                return route
            if name in aliases and (route := self.find_exact(aliases[name])) is not None:
                return replace(route, reason="alias")
        return None

    def find_exact(self, model: str) -> ModelRoute | None:
        """Return the route of a model by its exact name or alias; None = no backend has it."""
        for pool in self._pools.all:
            for backend in pool.backends:
                for card in backend.cards():
                    if model == card.id or model in card.aliases:
                        reason = "model" if model == card.id else "alias"
                        return ModelRoute(self._pools.stages_from(pool), model, card, reason)
        return None

    def find_absent(self, name: str) -> AdapterNotLoaded | None:
        """Return why a declared adapter cannot be used now; None = there is none of that name."""
        return self._adapters.find_absent(name) if self._adapters is not None else None

    def find_pinned(self, backend_name: str, model: str) -> ModelRoute:
        """Return the route to one backend; "" = the default model, or its first one where it has not that.

        Raises:
            NotFound: There is no such backend.
            NoSuchModel: It does not serve the model.
        """
        backend = self._pools.backend(backend_name)
        cards = backend.cards()
        wanted = self.find(model).model if model else self._default_of(backend)
        served = backend.find_model(wanted)
        if served is None:
            raise NoSuchModel(
                f"The backend {backend_name!r} does not serve the model {model[:200]!r}. It serves: "
                f"{', '.join(card.id for card in cards)}.",
                param="model",
            )
        return ModelRoute([self._pools.pool_of(backend)], wanted, served.card, "pinned")

    def _default_of(self, backend: Backend) -> str:
        """Return the default model if a backend has it, else its first that generates text; "" = none."""
        cards = backend.cards()
        default = self.find_named(self._default_name) if self._default_name else None
        if default is not None and any(card.id == default.card.id for card in cards):
            return default.model
        return next((card.id for card in cards if card.is_text), cards[0].id if cards else "")

    def _unknown(self, model: str) -> NoSuchModel | Unavailable:
        """Return the error for a name without a route.

        1. there is no backend                 → no backend is configured
        2. a backend was not reached yet       → it may serve the model
        3. otherwise                           → no such model, with the names that are similar
        """
        backends = self._pools.backends()
        if not backends:
            return Unavailable("No backend is configured. Set BACKENDS or NOVITA_API_KEY.")  # 1
        unseen = [backend.name for backend in backends if backend.is_unknown]
        if unseen:  # 2
            names = ", ".join(unseen[:NAMED_BACKENDS])
            return Unavailable(
                f"No backend that was reached serves {model[:200]!r}; not reached yet: {names}."
                if model
                else f"No backend available; not reached yet: {names}.",
                code="no_backend",
                retry_after_s=2,
            )
        known = [card.id for card in self.cards()]  # 3
        if not known:
            text = "There is no model here: no backend has named one, and no model file is configured."
            return NoSuchModel(text, param="model")
        near = difflib.get_close_matches(model, known, n=NEAR_NAMES, cutoff=0.5)
        hint = f"Did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
        listed = ", ".join(known[:NAMED_MODELS])
        if len(known) > NAMED_MODELS:
            listed += f" and {len(known) - NAMED_MODELS} more"
        return NoSuchModel(
            f"The model {model[:200]!r} does not exist here. {hint}Known: {listed}.", param="model"
        )
