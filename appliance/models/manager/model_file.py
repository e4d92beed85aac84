"""What a model's file says: header, need of memory, slots, or why it cannot be loaded."""

from dataclasses import dataclass, replace

from appliance.models.manager.state import ModelState
from appliance.models.runner.load_history import key_of
from appliance.models.table.catalogue import Model, System
from appliance.models.table.command import slot_count
from appliance.models.table.estimate import Estimate, estimate_memory
from appliance.models.table.gguf import GgufHeader, InvalidGguf, read_header


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What was found. `problem`: why it cannot be loaded, "" = it can; then the others are there."""

    slots: int
    problem: str = ""
    header: GgufHeader | None = None
    estimate: Estimate | None = None
    key: str = ""

    def into(self, entry: ModelState) -> None:
        """Put it into the model's entry; on the event loop, where nobody then sees a half of it."""
        former, entry.problem, entry.key, entry.slots = entry.problem, self.problem, self.key, self.slots
        if self.problem:
            return
        entry.header, entry.estimate = self.header, self.estimate
        if former and entry.failed == former:  # it failed for this alone, and that is mended
            entry.forgive()


def look_at_file(model: Model, system: System) -> FileCheck:
    """Look (blocks). A file that is missing may come later: it is looked at again before each load."""
    slots = slot_count(model, system)
    try:
        header = read_header(model.path)
    except FileNotFoundError:
        return FileCheck(slots, f"model file not found: {model.path}")
    except OSError as exc:
        return FileCheck(slots, f"the file {model.path} cannot be read: {exc.strerror or exc}")
    except InvalidGguf as exc:
        return FileCheck(slots, f"the file {model.path} is no model: {exc}")
    shape = replace(model, pinned=False, replicas=1)  # what one llama-server is made of
    key = key_of(
        model.path, f"{shape!r} {system.cpu_threads} {slots} {system.flash_attention} {system.use_mmap}"
    )
    return FileCheck(slots, "", header, estimate_memory(model, system, header), key)
