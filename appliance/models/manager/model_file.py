"""Checks a model's file: header, memory need and slots, or why it cannot be loaded."""

import asyncio
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.logs import get_logger
from appliance.models.manager.model_state import ModelState
from appliance.models.manager.state import ManagerState
from appliance.models.runner.load_history import key_of
from appliance.models.table.catalogue import Model
from appliance.models.table.command import model_kind, request_context_tokens, slot_count
from appliance.models.table.engine import EngineCommand
from appliance.models.table.entries import System
from appliance.models.table.estimate import Estimate, estimate_memory
from appliance.models.table.file_state import FileState, read_states
from appliance.models.table.gguf import GgufHeader, InvalidGguf, read_header
from appliance.models.table.gguf_files import check_split, check_whole, gguf_parts, gguf_size_bytes

log = get_logger("models")


@dataclass(frozen=True, slots=True)
class FileCheck:
    """The result of a check.

    Attributes:
        problem: Why the file cannot be loaded; "" = it can. Only then header, estimate and history_key are
            set.
        files: The states of the model's files before they were read.
    """

    slots: int
    problem: str = ""
    header: GgufHeader | None = None
    estimate: Estimate | None = None
    history_key: str = ""
    files: tuple[FileState | None, ...] = ()

    def apply_to(self, model: ModelState) -> None:
        """Write the result into the model's state; on the event loop, so that no reader sees half of it."""
        former_problem = model.file_problem
        model.files = self.files
        model.file_problem, model.history_key, model.slots = self.problem, self.history_key, self.slots
        if self.problem:
            if self.problem != former_problem:
                log.warning("model_file_unusable", alias=model.alias, problem=self.problem)
            return
        model.header, model.estimate = self.header, self.estimate
        if former_problem and model.failure == former_problem:  # this was the only cause, and it is repaired
            model.clear_failures()


async def check_file(model: ModelState, state: ManagerState) -> None:
    """Check a model's file in a thread, and write the result into the model's state.

    If the model was changed meanwhile, its new file is checked instead.
    """
    while True:
        checked = model.definition
        found = await asyncio.to_thread(read_file, checked, state.catalogue.system)
        if model.definition is checked:
            former = _shown(model)
            found.apply_to(model)
            if _shown(model) != former:
                state.models_changed()
            return


def _shown(model: ModelState) -> tuple[str, int]:
    """Return what clients see of a model's file."""
    tokens = request_context_tokens(model.definition, model.header, model.slots)
    return model_kind(model.definition, model.header), tokens


def read_file(model: Model, system: System) -> FileCheck:
    """Check a model's file (blocks).

    A file that is missing may be there later: it is checked again before each load.
    """
    slots, files = slot_count(model, system), read_states(files_of(model))
    if model.engine is not None:
        return replace(_check_engine(model, model.engine, slots), files=files)
    assert model.path is not None
    header, problem = _read_header(model.path)
    if header is None:
        return FileCheck(slots, problem, files=files)
    key = key_of(model.path, shape_text(model, system, slots), files[1:])
    return FileCheck(slots, "", header, estimate_memory(model, system, header), key, files)


def files_of(model: Model) -> list[Path]:
    """List all files of a model, its first one first: all parts, and what is loaded with it."""
    return [part for path in model.files.values() for part in gguf_parts(path)]


async def is_file_changed(model: ModelState) -> bool:
    """Whether a file of a model is another one, or has changed, since it was checked."""
    if not model.files:
        return False
    return await asyncio.to_thread(read_states, files_of(model.definition)) != model.files


def _read_header(path: Path) -> tuple[GgufHeader | None, str]:
    """Return the header with the size of all parts, and "" or what is wrong with the file."""
    try:
        header = read_header(path)
        check_split(path, header)
        check_whole(path)
        return replace(header, size_bytes=gguf_size_bytes(path)), ""
    except FileNotFoundError as exc:
        return None, f"model file not found: {exc.filename or path}"
    except OSError as exc:
        return None, f"the file {exc.filename or path} cannot be read: {exc.strerror or exc}"
    except InvalidGguf as exc:
        return None, f"the file {path} is not a GGUF model: {exc}"


def _check_engine(model: Model, engine: EngineCommand, slots: int) -> FileCheck:
    """Check the program of an engine, and the model's file if the table names one."""
    if engine.program and shutil.which(engine.program) is None:
        return FileCheck(slots, f"program not found: {engine.program}")
    header, problem = _read_header(model.path) if model.path is not None else (None, "")
    if problem:
        return FileCheck(slots, problem)
    known = Estimate(engine.memory_bytes, 0, 0, is_rough=False) if engine.memory_bytes else None
    return FileCheck(slots, "", header, known, key_of(model.path or Path(), f"{model.alias} {engine!r}"))


def shape_text(model: Model, system: System, slots: int) -> str:
    """Return how one llama-server of a model is started, as the text that history keys are made of.

    It must stay the same from release to release, names of classes included: with another text, all that
    was recorded of a model would be forgotten.
    """
    started = repr(replace(model, pinned=False, replicas=1))
    started = started.replace("LoraAdapter(path=", "Lora(path=")  # the class's name in the first release
    text = f"{started} {system.cpu_threads} {slots} {system.flash_attention} {system.use_mmap}"
    return f"{text} {model.extra_args} {model.env}" if model.extra_args or model.env else text
