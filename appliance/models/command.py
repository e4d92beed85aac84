"""The command line of a llama-server for one model: from the table, and from what this very server's `--help` says that it takes.

Its flags change over time, and one that is not known ends it at once: what it does not know is left out, or written as it knows it.
"""

import re
from dataclasses import dataclass

from appliance.models.catalogue import Model, System
from appliance.models.gguf import Header

LEAST_SLOT_TOKENS = 2048        # of context: slots are taken away until each has so much
_FLAG = re.compile(r"(?<![\w-])(--?[a-zA-Z][\w-]*)")


@dataclass(frozen=True, slots=True)
class Flags:
    """What a llama-server takes. `fa_takes_value`: -fa wants on, off or auto; in older ones it is a switch."""

    names: frozenset[str]
    fa_takes_value: bool

    @classmethod
    def of_help(cls, text: str) -> "Flags":
        """Read the text of `llama-server --help`."""
        line = next((line for line in text.splitlines() if re.match(r"\s*-fa\b", line)), "")
        return cls(frozenset(_FLAG.findall(text)), bool(re.search(r"on\s*\|\s*off|\{on,off|\[on", line)))


def slots_of(model: Model, system: System) -> int:
    """Give how many requests at a time: as the table says, but each with LEAST_SLOT_TOKENS of context."""
    wanted = model.params.parallel_override or system.parallel_requests
    return max(1, min(wanted, model.params.n_ctx // LEAST_SLOT_TOKENS))


def command_line(program: str, model: Model, system: System, flags: Flags, *, port: int, header: Header | None = None) -> list[str]:
    """Give the words to start a server with.

    Takes   port: on loopback; header: of the model's file, None = not read
    """
    params = model.params
    words = [program, "--model", str(model.path), "--alias", model.alias, "--host", "127.0.0.1", "--port", str(port)]
    slides = header is not None and header.number("attention.sliding_window") > 0
    is_embedding = params.embedding or (header is not None and header.is_embedding)
    wanted: list[tuple[bool, list[str]]] = [
        (True, ["--n-gpu-layers", str(params.n_gpu_layers)]),
        (True, ["--ctx-size", str(params.n_ctx)]),
        (True, ["--batch-size", str(params.batch_override or params.n_batch)]),
        (True, ["--parallel", str(slots_of(model, system))]),
        (True, ["--threads", str(system.cpu_threads)]),
        (True, ["--metrics"]),
        (True, ["--slots"]),
        (not is_embedding, ["--jinja"]),
        (not slides, ["--no-context-shift"]),
        (params.rope_freq_base is not None, ["--rope-freq-base", f"{params.rope_freq_base or 0:g}"]),
        (not system.use_mmap, ["--no-mmap"]),
        (is_embedding, ["--embedding"]),
        (params.chat_template is not None, ["--chat-template", params.chat_template or ""]),
        (True, ["--cache-type-k", params.type_k]),
        (True, ["--cache-type-v", params.type_v]),
    ]
    for holds, option in wanted:
        if holds and option[0] in flags.names:
            words += option
    if "-fa" in flags.names:
        if flags.fa_takes_value:
            words += ["-fa", system.flash_attention]
        elif system.flash_attention == "on":
            words += ["-fa"]
    return words
