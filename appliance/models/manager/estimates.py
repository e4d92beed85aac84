"""The memory and time that a load is expected to need: by earlier loads, else by the file."""

from appliance.models.manager.device_memory import DeviceMemory
from appliance.models.manager.model_state import ModelState
from appliance.models.runner.load_history import LoadHistory, LoadRecord
from appliance.models.table.catalogue import Model

MEASURED_MARGIN = 1.05  # of a need that was measured: the next load may take a little more


class Estimates:
    """Expectations for the next load of a model."""

    def __init__(self, history: LoadHistory, device_memory: DeviceMemory) -> None:
        self._history = history
        self._device_memory = device_memory

    def need_bytes(self, model: ModelState) -> int:
        """Return the memory that a load will take; 0 = not known yet.

        Where the operator says it (`memory_mb`), a measurement counts only if it is more: some engines take
        most of it later.
        """
        record = self.record(model)
        estimated = model.estimate.total if model.estimate is not None else 0
        if record is not None and record.memory_bytes:
            measured = round(record.memory_bytes * MEASURED_MARGIN)
            return measured if model.definition.engine is None else max(measured, estimated)
        return estimated

    def load_s(self, model: ModelState) -> float:
        """Return the seconds that a load will take."""
        return self._history.expected_load_s(model.history_key, model.size_bytes)

    def record(self, model: ModelState) -> LoadRecord | None:
        """Return what earlier loads showed; None = there was none."""
        return self._history.record_of(model.history_key)

    def is_on_gpu(self, model: Model) -> bool:
        """Whether at least one layer of a model is loaded on a GPU."""
        return self._device_memory.memory.is_gpu and model.params.n_gpu_layers != 0
