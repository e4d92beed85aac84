"""What a model's file says, put into its entry: header, need of memory, slots, or why it cannot be loaded."""

from appliance.models.catalogue import System
from appliance.models.command import slots_of
from appliance.models.entry import Entry
from appliance.models.estimate import memory_of
from appliance.models.gguf import BadGguf, read_header
from appliance.models.learned import key_of


def look_at_file(entry: Entry, system: System) -> None:
    """Look (blocks). A file that is missing may come later: it is looked at again before each load."""
    model = entry.model
    entry.slots = slots_of(model, system)
    entry.problem, entry.key = "", ""
    try:
        entry.header = header = read_header(model.path)
    except FileNotFoundError:
        entry.problem = f"model file not found: {model.path}"
        return
    except OSError as exc:
        entry.problem = f"the file {model.path} cannot be read: {exc.strerror or exc}"
        return
    except BadGguf as exc:
        entry.problem = f"the file {model.path} is no model: {exc}"
        return
    entry.estimate = memory_of(model, system, header)
    entry.key = key_of(model.path, f"{model!r} {system.cpu_threads} {entry.slots} {system.flash_attention} {system.use_mmap}")
