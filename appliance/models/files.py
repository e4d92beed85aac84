"""What a model's file says, put into its entry: header, need of memory, slots, or why it cannot be loaded."""

from appliance.models.catalogue import System
from appliance.models.command import slots_of
from appliance.models.entry import Entry
from appliance.models.estimate import MIB, estimate
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
    params = model.params
    entry.estimate = estimate(header, context_tokens=params.n_ctx, type_k=params.type_k, type_v=params.type_v, multiplier=system.vram_multiplier,
                              floor_bytes=system.min_vram_required * MIB)
    entry.key = key_of(model.path, f"{model!r} {system.cpu_threads} {entry.slots} {system.flash_attention} {system.use_mmap}")
