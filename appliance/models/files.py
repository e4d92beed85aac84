"""What a model's file says, put into its entry: header, need of memory, slots, or why it cannot be loaded."""

from dataclasses import replace

from appliance.models.catalogue import System
from appliance.models.command import slots_of
from appliance.models.entry import Entry
from appliance.models.estimate import memory_of
from appliance.models.gguf import BadGguf, read_header
from appliance.models.learned import key_of


def look_at_file(entry: Entry, system: System) -> None:
    """Look (blocks). A file that is missing may come later: it is looked at again before each load.

    It runs beside the event loop, where nobody may see a half of what was found: nothing is put down before all is known.
    """
    model, slots = entry.model, slots_of(entry.model, system)
    try:
        header = read_header(model.path)
    except FileNotFoundError:
        entry.problem, entry.key = f"model file not found: {model.path}", ""
    except OSError as exc:
        entry.problem, entry.key = f"the file {model.path} cannot be read: {exc.strerror or exc}", ""
    except BadGguf as exc:
        entry.problem, entry.key = f"the file {model.path} is no model: {exc}", ""
    else:
        shape = replace(model, pinned=False, replicas=1)        # what one llama-server is made of
        key = key_of(model.path, f"{shape!r} {system.cpu_threads} {slots} {system.flash_attention} {system.use_mmap}")
        entry.header, entry.estimate, entry.slots = header, memory_of(model, system, header), slots
        entry.key, entry.problem = key, ""
