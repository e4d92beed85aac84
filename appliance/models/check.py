"""What would run and what would not, found without running any model: `appliance models check`."""

import os
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.base.config_file import ConfigFile
from appliance.base.logs import SECRETS, hide_words
from appliance.base.settings import Problem
from appliance.models.runner.process import environment
from appliance.models.runner.program import find_program
from appliance.models.settings import FIRST_PORT
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.command import (
    MIN_SLOT_TOKENS,
    Flags,
    InvalidCommand,
    build_command,
    is_lockable,
    model_kind,
    slot_count,
    unknown_flags,
)
from appliance.models.table.engine import EngineCommand, InvalidReference, fill_words
from appliance.models.table.estimate import MIB, estimate_memory
from appliance.models.table.gguf import GgufHeader, InvalidGguf, read_header
from appliance.models.table.gguf_files import (
    check_split,
    check_whole,
    gguf_size_bytes,
    is_regular,
    missing_parts,
)

MAX_DRAFT_DIFFERENCE = 128  # tokens by which the vocabularies of a model and its draft may differ


@dataclass(slots=True)
class ModelCheck:
    """The findings about one model.

    Attributes:
        problem: Why it could not be run; "" = it could.
        facts: Sizes in bytes.
        command: Its words, without secrets.
        never_with: The models that are never loaded together with it.
    """

    alias: str
    path: str
    problem: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    command: list[str] = field(default_factory=list)
    never_with: list[str] = field(default_factory=list)


@dataclass(slots=True)
class CheckReport:
    """The outcome of a check.

    Attributes:
        server: The llama-server.
        server_problem: Why it cannot be used, "" = it can.
    """

    server: str
    server_problem: str
    models: list[ModelCheck]

    @property
    def is_ok(self) -> bool:
        """Whether everything could be run."""
        return not self.server_problem and not any(one.problem for one in self.models)


def check_models(catalogue: Catalogue) -> CheckReport:
    """Check the llama-server and every model's files. The report has no secrets: it is shown."""
    SECRETS.learn(catalogue.secrets())
    program = find_program(catalogue.llama_server)
    flags = None if program.problem else program.flags
    needs_server = not catalogue.models or any(one.engine is None for one in catalogue.models.values())
    return CheckReport(
        program.path,
        program.problem if needs_server else "",
        [_check_model(model, catalogue, program.path, flags) for model in catalogue.models.values()],
    )


def check_extra_args(catalogue: Catalogue, config: ConfigFile) -> list[Problem]:
    """Warn of `extra_args` that the llama-server does not have, as its `--help` says.

    A model with one cannot be loaded, and the others can. The program runs only where some model has such
    arguments.

    Args:
        catalogue: The models.
        config: The file that names them.
    """
    models = [one for one in catalogue.models.values() if one.extra_args and one.engine is None]
    if not models:
        return []
    program = find_program(catalogue.llama_server)
    if program.problem:
        named = ", ".join(one.alias for one in models)
        remedy = f"`extra_args` of {named} cannot be checked: {program.problem}."
        return [config.problem_at("models", remedy, is_fatal=False)]
    problems = []
    for model in models:
        for at, (name, near) in unknown_flags(model.extra_args, program.flags).items():
            hint = f"Did you mean {near}?" if near else "Install a newer one, or remove it."
            remedy = f"{program.path} does not have {name}: the model cannot be loaded. {hint}"
            problems.append(
                config.problem_at(f"models.{model.alias}.extra_args.{at}", remedy, is_fatal=False)
            )
    return problems


def _check_model(model: Model, catalogue: Catalogue, server: str, flags: Flags | None) -> ModelCheck:
    """Check one model's files. `flags` None: the server cannot be used, so there is no command line."""
    found = _find_out(model, catalogue, server, flags)
    found.command = hide_words(found.command)
    found.problem = SECRETS.redact(found.problem)
    return found


def _find_out(model: Model, catalogue: Catalogue, server: str, flags: Flags | None) -> ModelCheck:
    found = ModelCheck(model.alias, str(model.path or ""))
    found.never_with = sorted(catalogue.conflicts.get(model.alias, ()))
    if model.engine is not None:
        return _check_engine(found, model, model.engine, catalogue)
    headers: dict[str, GgufHeader] = {}
    for key, path in model.files.items():
        header, problem = _read_file(path)
        if problem:
            found.problem = problem if key == "model_path" else f"{key}: {path}: {problem}"
            return found
        if header is not None:
            headers[key] = header
    found.problem = _find_mismatch(headers)
    found.facts = _gather_facts(model, catalogue, headers, flags)
    if flags is not None and not found.problem:
        try:
            found.command = build_command(
                server, model, catalogue.system, flags, port=FIRST_PORT, header=headers["model_path"]
            )
        except InvalidCommand as exc:
            found.problem = str(exc)
    return found


def _check_engine(found: ModelCheck, model: Model, engine: EngineCommand, catalogue: Catalogue) -> ModelCheck:
    """Check a model that runs by its own command."""
    if model.path is not None:
        found.problem = _read_file(model.path)[1]
    if engine.program and shutil.which(engine.program) is None:
        found.problem = f"program not found: {engine.program}"
    found.facts = {
        "kind": model_kind(model, None),
        "engine": engine.kind,
        "context_tokens": engine.context_tokens,
        "slots": slot_count(model, catalogue.system),
        "replicas": model.replicas,
        "pinned": model.pinned,
        "memory_bytes": engine.memory_bytes,
        "notes": [] if engine.names_port else ["the command does not have ${PORT}: it must read PORT"],
    }
    try:
        found.command = fill_words(
            engine.words,
            port=FIRST_PORT,
            alias=model.alias,
            path=model.path,
            # Variables may be secrets: they are named, not shown.
            environ={name: f"${{env.{name}}}" for name in (*environment(os.environ, ()), *dict(model.env))},
        )
    except InvalidReference as exc:
        found.problem = str(exc)
    return found


def _read_file(path: Path) -> tuple[GgufHeader | None, str]:
    """Read one file's header; return (it, ""), or (None, what is wrong). A .bin adapter has none."""
    if not is_regular(path):
        return None, "no such file"
    if missing := missing_parts(path):
        return None, f"incomplete model: {missing} is missing"
    if path.suffix.lower() != ".gguf":
        return None, ""
    try:
        header = read_header(path)
        check_split(path, header)
        check_whole(path)
        return header, ""
    except OSError as exc:
        return None, f"the file cannot be read: {exc.strerror or exc}"
    except InvalidGguf as exc:
        return None, f"not a GGUF model: {exc}"


def _find_mismatch(headers: dict[str, GgufHeader]) -> str:
    """Say which file is not what its key says; "" = all are."""
    main = headers["model_path"]
    for key, header in headers.items():
        wanted = {"mmproj_path": "mmproj"}.get(key, "adapter" if key.startswith("lora.") else "model")
        if header.kind != wanted:
            return f"{key}: the file is of type {header.kind}, not {wanted}"
        if wanted == "adapter" and header.architecture != main.architecture:
            return (
                f"{key}: the adapter is for the architecture {header.architecture}, "
                f"the model has {main.architecture}"
            )
    return ""


def _gather_facts(
    model: Model, catalogue: Catalogue, headers: dict[str, GgufHeader], flags: Flags | None
) -> dict[str, Any]:
    header, params = headers["model_path"], model.params
    assert model.path is not None
    memory = estimate_memory(model, catalogue.system, header)
    return {
        "name": header.name,
        "architecture": header.architecture,
        "quantization": header.quantization,
        "size_bytes": gguf_size_bytes(model.path),
        "kind": model_kind(model, header),
        "trained_context_tokens": header.context_tokens,
        "context_tokens": params.n_ctx,
        "slots": slot_count(model, catalogue.system),
        "replicas": model.replicas,
        "pinned": model.pinned,
        "files": {key: str(path) for key, path in model.files.items() if key != "model_path"},
        "memory_bytes": memory.total,
        "weights_bytes": memory.weights,
        "cache_bytes": memory.cache,
        "buffers_bytes": memory.buffers,
        "extras_bytes": memory.extras,
        "is_rough": memory.is_rough,
        "notes": _list_notes(model, catalogue, headers, flags),
    }


def _list_notes(
    model: Model, catalogue: Catalogue, headers: dict[str, GgufHeader], flags: Flags | None
) -> list[str]:
    """List what works differently from what the table suggests."""
    header, params, system = headers["model_path"], model.params, catalogue.system
    slots, wanted = slot_count(model, system), params.parallel_override or system.parallel_requests
    notes = []
    if header.context_tokens and params.n_ctx > header.context_tokens:
        notes.append(f"n_ctx is larger than the {header.context_tokens} tokens of training")
    if slots < wanted:
        notes.append(f"{slots} instead of {wanted} slots: each needs {MIN_SLOT_TOKENS} tokens")
    draft = headers.get("draft_model_path")
    if draft and abs(draft.vocabulary - header.vocabulary) > MAX_DRAFT_DIFFERENCE:
        notes.append(
            f"the draft model has {draft.vocabulary} tokens and the model {header.vocabulary}: "
            "it cannot draft where they differ"
        )
    if system.use_mlock and flags is not None and not is_lockable(flags):
        notes.append("system.use_mlock is true, but this llama-server cannot lock memory")
    return notes


def render_report(report: CheckReport) -> str:
    """Render a report for people."""
    lines = [
        f"llama-server: {report.server or '-'}"
        + (f"  PROBLEM: {report.server_problem}" if report.server_problem else "")
    ]
    for one in report.models:
        lines += ["", f"{one.alias}  {one.path}"]
        if one.problem:
            lines.append(f"  PROBLEM: {one.problem}")
        if one.facts:
            lines += _render_facts(one.facts)
        if one.never_with:
            lines.append(f"  never loaded together with: {', '.join(one.never_with)}")
        if one.command:
            lines.append(f"  {shlex.join(one.command)}")
    if not report.models:
        lines += ["", "No models. List them in the file of CONFIG_PATH (`models`), or set MODEL_DIR."]
    return "\n".join(lines) + "\n"


def _render_engine(facts: dict[str, Any]) -> list[str]:
    """Render the facts of a model that runs by its own command."""
    context, memory = facts["context_tokens"], facts["memory_bytes"]
    return [
        f"  {facts['engine']} {facts['kind']}, by its own command; "
        + (f"{context} tokens of context; " if context else "")
        + f"{facts['slots']} {'request' if facts['slots'] == 1 else 'requests'} at a time"
        + (f"; up to {facts['replicas']} of it" if facts["replicas"] > 1 else "")
        + ("; pinned" if facts["pinned"] else ""),
        f"  memory: {f'{memory / MIB:,.0f} MiB' if memory else 'not known until it is measured (memory_mb)'}",
        *(f"  note: {note}" for note in facts["notes"]),
    ]


def _render_facts(facts: dict[str, Any]) -> list[str]:
    if "engine" in facts:
        return _render_engine(facts)
    what = " ".join(filter(None, (facts["architecture"], facts["quantization"], facts["kind"])))
    more = (f"; up to {facts['replicas']} of it" if facts["replicas"] > 1 else "") + (
        "; pinned" if facts["pinned"] else ""
    )
    about = "about (a rough estimate: the header says too little)" if facts["is_rough"] else "about"
    parts = " + ".join(
        f"{name} {facts[f'{name}_bytes'] / MIB:,.0f}"
        for name in ("weights", "cache", "buffers", "extras")
        if name != "extras" or facts["extras_bytes"]
    )
    return [
        f"  {what}, {facts['size_bytes'] / MIB:,.1f} MiB; "
        f"{facts['context_tokens']} tokens of context in {facts['slots']} slots{more}",
        f"  memory: {about} {facts['memory_bytes'] / MIB:,.0f} MiB = {parts}",
        *(f"  with {key}: {path}" for key, path in facts["files"].items()),
        *(f"  note: {note}" for note in facts["notes"]),
    ]
