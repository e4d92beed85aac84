"""How long a loaded model stays without requests."""

from appliance.models.manager.model_state import ModelState
from appliance.models.manager.state import ManagerState
from appliance.models.runner.runner import Runner


class Retention:
    """Decides how long an idle llama-server stays loaded."""

    def __init__(self, state: ManagerState) -> None:
        self._state = state

    def expires_in_s(self, runner: Runner, model: ModelState, now_s: float) -> float | None:
        """Return how much longer a llama-server stays without a request; None = for ever.

        1. its model is pinned              → for ever
        2. a request said how long          → that long
        3. its model has an idle timeout    → that long, negative = for ever
        4. its model is kept warm           → for ever
        5. there is no idle timeout         → for ever
        6. else                             → idle_timeout_sec of the system
        """
        system = self._state.catalogue.system
        if model.is_pinned:  # 1
            return None
        idle_s = 0.0 if runner.active else now_s - runner.idle_since_s
        if runner.keep_alive_s is not None:  # 2
            return None if runner.keep_alive_s < 0 else max(0.0, runner.keep_alive_s - idle_s)
        own_s = model.definition.idle_timeout_s
        if own_s is not None:  # 3
            return None if own_s < 0 else max(0.0, own_s - idle_s)
        if not system.enable_idle_timeout or model.alias in self.warm_models():  # 4, 5
            return None
        return max(0.0, system.idle_timeout_sec - idle_s)  # 6

    def warm_models(self) -> set[str]:
        """Name the loaded models that are requested most, as many as keep_warm_models says."""
        count = self._state.catalogue.system.keep_warm_models
        if not count:
            return set()
        models = self._state.models
        aliases = dict.fromkeys(
            runner.alias for runner in self._state.runners.values() if runner.phase != "stopping"
        )
        loaded = [model for model in map(models.get, aliases) if model is not None and model.requests]
        return {model.alias for model in sorted(loaded, key=lambda model: -model.requests)[:count]}
