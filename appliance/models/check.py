"""What would be run, and what would not work, without running any model: `appliance models check`."""

import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from typing import Any

from appliance.models.catalogue import Catalogue, Model
from appliance.models.command import Flags, command_line, slots_of
from appliance.models.estimate import MIB, estimate
from appliance.models.gguf import BadGguf, Header, read_header

FIRST_PORT = 8085           # the lowest of those that runners are given
HELP_S = 20.0


@dataclass(slots=True)
class Checked:
    """What was found out about one model. `problem` is "" where it could be run; sizes in bytes."""

    alias: str
    path: str
    problem: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """The check's outcome. `server`: the llama-server, and `server_problem` why it cannot be used ("" = it can)."""

    server: str
    server_problem: str
    models: list[Checked]

    @property
    def is_well(self) -> bool:
        return not self.server_problem and not any(one.problem for one in self.models)


def check(catalogue: Catalogue) -> Report:
    """Look at the llama-server and at every model's file."""
    server, flags, problem = _look_at_server(catalogue.llama_server)
    return Report(server, problem, [_look_at(model, catalogue, server, flags) for model in catalogue.models.values()])


def _look_at_server(wanted: str) -> tuple[str, Flags, str]:
    """Give (its path, what it takes, what is wrong with it)."""
    nothing = Flags(frozenset(), False)
    program = shutil.which(wanted or "llama-server")
    if program is None:
        return wanted, nothing, f"{wanted or 'llama-server'} is no program that is found; set LLAMA_SERVER_PATH"
    try:
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=HELP_S, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return program, nothing, f"`{program} --help` does not work: {exc}"
    flags = Flags.of_help(done.stdout + done.stderr)
    if "--port" not in flags.names:
        return program, flags, f"`{program} --help` does not read like a llama-server's (exit code {done.returncode})"
    return program, flags, ""


def _look_at(model: Model, catalogue: Catalogue, server: str, flags: Flags) -> Checked:
    found = Checked(model.alias, str(model.path))
    try:
        header = read_header(model.path)
    except FileNotFoundError:
        found.problem = "there is no such file"
        return found
    except OSError as exc:
        found.problem = f"the file cannot be read: {exc.strerror or exc}"
        return found
    except BadGguf as exc:
        found.problem = f"the file is no model: {exc}"
        return found
    found.facts = _facts(model, catalogue, header)
    found.command = command_line(server or "llama-server", model, catalogue.system, flags, port=FIRST_PORT, header=header)
    return found


def _facts(model: Model, catalogue: Catalogue, header: Header) -> dict[str, Any]:
    params, system = model.params, catalogue.system
    memory = estimate(header, context_tokens=params.n_ctx, type_k=params.type_k, type_v=params.type_v, multiplier=system.vram_multiplier,
                      floor_bytes=system.min_vram_required * MIB)
    slots = slots_of(model, system)
    notes = []
    if header.context_tokens and params.n_ctx > header.context_tokens:
        notes.append(f"n_ctx is more than the {header.context_tokens} tokens that it was trained with")
    wanted = params.parallel_override or system.parallel_requests
    if slots < wanted:
        notes.append(f"{wanted} slots would have less than 2048 tokens each: {slots}")
    return {"name": header.name, "architecture": header.architecture, "quantization": header.quantization, "size_bytes": header.size_bytes,
            "trained_context_tokens": header.context_tokens, "context_tokens": params.n_ctx, "slots": slots,
            "memory_bytes": memory.total, "weights_bytes": memory.weights, "cache_bytes": memory.cache, "buffers_bytes": memory.buffers,
            "is_rough": memory.is_rough, "notes": notes}


def as_text(report: Report) -> str:
    """Write the report for people."""
    lines = [f"llama-server: {report.server or '-'}" + (f"  PROBLEM: {report.server_problem}" if report.server_problem else "")]
    for one in report.models:
        lines += ["", f"{one.alias}  {one.path}"]
        if one.problem:
            lines.append(f"  PROBLEM: {one.problem}")
            continue
        facts = one.facts
        what = " ".join(filter(None, (facts["architecture"], facts["quantization"])))
        lines.append(f"  {what}, {facts['size_bytes'] / MIB:,.1f} MiB; {facts['context_tokens']} tokens of context in {facts['slots']} slots")
        about = "about (its header says too little to reckon)" if facts["is_rough"] else "about"
        lines.append(f"  memory: {about} {facts['memory_bytes'] / MIB:,.0f} MiB = weights {facts['weights_bytes'] / MIB:,.0f} + cache "
                     f"{facts['cache_bytes'] / MIB:,.0f} + buffers {facts['buffers_bytes'] / MIB:,.0f}")
        lines += [f"  note: {note}" for note in facts["notes"]]
        lines.append(f"  {shlex.join(one.command)}")
    if not report.models:
        lines += ["", "No models: name them in the file of CONFIG_PATH (`models`), or set MODEL_DIR."]
    return "\n".join(lines) + "\n"
