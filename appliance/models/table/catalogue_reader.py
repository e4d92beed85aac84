"""Reads the model table: the file of CONFIG_PATH, the files of a folder, and what was pulled.

An unknown key or an impossible value is refused with its path in the file. Files of the table are searched
for here, not read (`models/check.py` reads them). A missing one is only a warning: the other models must
still serve.
"""

import os
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from appliance.base.config_file import ConfigFile, read_config_file
from appliance.base.settings import Problem
from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import Catalogue, LoraAdapter, Model, is_other_latest, latest_text
from appliance.models.table.engine import EngineCommand, engine_of, program_of
from appliance.models.table.entries import ModelEntry, Params, Table
from appliance.models.table.file_walk import WalkedFolder
from appliance.models.table.folder import FoundModel, scan_folder
from appliance.models.table.gguf_files import is_regular
from appliance.models.table.groups import conflicts_of, find_group_problems
from appliance.models.table.hooks import hooks_of
from appliance.models.table.pulled import read_pulled
from appliance.models.table.sampling import RequestSettings
from appliance.models.table.section import explain

README_CONTEXT = (4096, 8192)  # what older readers of the file allow for n_ctx


def read_catalogue(
    settings: ModelSettings,
    config_path: Path | None,
    downloads: Path | None = None,
    walked: WalkedFolder | None = None,
    config: ConfigFile | None = None,
    *,
    has_backends: bool = False,
) -> tuple[Catalogue, list[Problem]]:
    """Read the table, the folder, and what was pulled.

    Of models with the same name, the table's is used, then the folder's. Beside backends MODEL_DIR may be the
    folder of their models: where it is not here, or there is no llama-server, it is left alone.

    Args:
        settings: The package's.
        config_path: The file of CONFIG_PATH, None = there is none. Its other sections (`backends`, `pools`)
            belong to other packages.
        downloads: The folder of pulled models (DOWNLOAD_DIR), None = there is none.
        walked: What MODEL_DIR has; None = it is walked now.
        config: That file; None = it is read.
        has_backends: Whether there are servers that answer without models of the appliance's own.

    Returns:
        (what could be read, problems); with a fatal problem it must not be used.
    """
    table, problems = _read_file(config if config is not None else read_config_file(config_path))
    base = settings.base_models_path or _path_or_none(table.system.base_models_path)
    if base is not None and not base.is_dir():
        problems.append(Problem("BASE_MODELS_PATH", str(base), "a folder", "No such folder."))
    server = str(settings.llama_server_path or "") or table.system.llama_server_path
    has_server = shutil.which(server or "llama-server") is not None
    folder = settings.model_dir
    if has_backends and folder is not None and (left := _why_left_alone(folder, has_server)):
        problems.append(Problem("MODEL_DIR", str(folder), "a folder", left, is_fatal=False))
        folder = None
    pulled = _read_pulled(downloads, problems)
    models = _read_folder(folder, walked, table, pulled, problems)
    for alias, entry in table.models.items():
        models[alias] = _resolve(alias, entry, base or (config_path.parent if config_path else Path()))
        problems += _find_warnings(models[alias])
    problems += _find_alias_problems({name: one.aliases for name, one in models.items()}, config_path)
    problems += _find_preload_problems(table, models, config_path)
    if any(model.engine is None for model in models.values()) and not has_server:
        problems.append(_no_server(settings, server))
    elif pulled and not has_server:  # a pull must not keep the appliance from starting
        problems.append(replace(_no_server(settings, server), is_fatal=False))
        pulled = {}
    every = {**pulled, **models}
    problems += [
        _file_problem(config_path, f"groups.{where}", text)
        for where, text in find_group_problems(table.groups, every)
    ]
    conflicts = conflicts_of(table.groups, every)
    problems += _find_pinned_conflicts(config_path, every, conflicts)
    problems += _find_empty_folder(folder, every)
    return Catalogue(every, table.system, table.api, server, table.groups, conflicts), problems


def _read_folder(
    folder: Path | None,
    walked: WalkedFolder | None,
    table: Table,
    pulled: Mapping[str, Model],
    problems: list[Problem],
) -> dict[str, Model]:
    """Return the models of MODEL_DIR's files.

    Left out are files whose name is an alias of the table, and those that were pulled: MODEL_DIR and
    DOWNLOAD_DIR may be one folder, or one in the other.
    """
    names = {alias for entry in table.models.values() for alias in entry.aliases}
    taken = {model.path for model in pulled.values()}
    models = {}
    for one in _scan_folder(folder, walked, problems):
        if one.alias in names:
            remedy = f"{one.alias!r} is an alias of a model of the table. The file is left out."
            problems.append(
                Problem("MODEL_DIR", str(one.path), "model files (.gguf)", remedy, is_fatal=False)
            )
        elif one.path not in taken:
            models[one.alias] = Model(one.alias, one.path, Params(), "folder", mmproj_path=one.mmproj_path)
    return models


def _find_preload_problems(
    table: Table, models: Mapping[str, Model], config_path: Path | None
) -> list[Problem]:
    """Find names among `preload_models` that no model has."""
    known = Catalogue(models)
    return [
        _file_problem(config_path, "system.preload_models", f"The table has no model {name!r}.")
        for name in table.system.preload_models
        if name != "*" and known.name_of(name) is None
    ]


def _find_empty_folder(folder: Path | None, models: Mapping[str, Model]) -> list[Problem]:
    """Warn of a MODEL_DIR without a model, where there is no other model either."""
    if folder is None or models or not folder.is_dir():
        return []
    remedy = (
        "There is no model file (.gguf) in it that can be used, and no other model is configured: requests "
        "get 404 until there is one."
    )
    return [Problem("MODEL_DIR", str(folder), "a folder with .gguf files", remedy, is_fatal=False)]


def _find_pinned_conflicts(
    config_path: Path | None, models: Mapping[str, Model], conflicts: Mapping[str, Set[str]]
) -> list[Problem]:
    """Warn of pinned models that are never loaded together: the second is never loaded."""
    pinned = [alias for alias, model in models.items() if model.pinned and alias in conflicts]
    return [
        _file_problem(
            config_path,
            "groups",
            f"The models {one!r} and {other!r} are pinned and never loaded together: unpin one.",
            is_fatal=False,
        )
        for number, one in enumerate(pinned)
        for other in pinned[number + 1 :]
        if other in conflicts.get(one, ())
    ]


def _path_or_none(text: str) -> Path | None:
    return Path(text) if text else None


def _read_pulled(downloads: Path | None, problems: list[Problem]) -> dict[str, Model]:
    """Return the pulled models; a missing file is a warning, as in the table."""
    found, problem = read_pulled(downloads) if downloads else ([], "")
    if problem:
        allowed = "a folder with an index of pulled models"
        problems.append(Problem("DOWNLOAD_DIR", str(downloads), allowed, problem, is_fatal=False))
    models = {
        one.alias: Model(one.alias, one.path, Params(), "pulled", mmproj_path=one.mmproj_path)
        for one in found
    }
    problems += [
        Problem(
            "DOWNLOAD_DIR",
            str(path),
            "a file",
            f"The file of the pulled model {alias} is missing. Pull the model again, or delete it.",
            is_fatal=False,
        )
        for alias, model in models.items()
        for path in model.files.values()
        if not is_regular(path)
    ]
    return models


def _no_server(settings: ModelSettings, server: str) -> Problem:
    if not server:
        return Problem(
            "LLAMA_SERVER_PATH",
            "",
            "a program",
            "llama-server not found in PATH, but there are models to run. Install llama.cpp, or set "
            "LLAMA_SERVER_PATH.",
        )
    if settings.llama_server_path:
        return Problem("LLAMA_SERVER_PATH", server, "a program", f"llama-server not found: {server}.")
    return Problem(
        "CONFIG_PATH",
        f"system.llama_server_path={server}",
        "a program",
        f"llama-server not found: {server}.",
    )


def _resolve(alias: str, entry: ModelEntry, base: Path) -> Model:
    """Return a model of the table with absolute paths."""

    def whole(path: str) -> Path:
        return (base / path).absolute()  # base / an absolute path = that path

    return Model(
        alias,
        whole(entry.model_path) if entry.model_path else None,
        entry.params,
        "table",
        entry.replicas,
        bool(entry.pin or entry.pinned),
        tuple(LoraAdapter(whole(one.path), one.scale) for one in entry.lora),
        whole(entry.draft_model_path) if entry.draft_model_path else None,
        whole(entry.mmproj_path) if entry.mmproj_path else None,
        entry.reranking,
        entry.pooling,
        engine_of(entry),
        entry.max_concurrency,
        aliases=entry.aliases,
        requests=RequestSettings(
            entry.defaults.fields_set(), entry.force.fields_set(), entry.system_prompt or ""
        ),
        extra_args=entry.extra_args,
        env=tuple(entry.env.items()),
        idle_timeout_s=entry.idle_timeout_sec,
        preload=entry.preload,
        hooks=hooks_of(entry),
    )


def _find_alias_problems(names: Mapping[str, Sequence[str]], path: Path | None) -> list[Problem]:
    """Find aliases that are the name of a model, or are given twice; warn of those that Ollama confuses.

    Args:
        names: The aliases of each model, by its name.
        path: The file.
    """
    owners: dict[str, str] = {}
    problems = []
    for name, aliases in names.items():
        for number, alias in enumerate(aliases):
            other = alias if alias in names else owners.setdefault(alias, name)
            is_twice = other != name or aliases.index(alias) != number
            if alias in names or is_twice:
                remedy = f"{alias!r} is a name of {other!r} already. Take another one."
                problems.append(_file_problem(path, f"models.{name}.aliases.{number}", remedy))
    return problems + _find_latest(names, {**owners, **{name: name for name in names}}, path)


def _find_latest(
    names: Mapping[str, Sequence[str]], owners: Mapping[str, str], path: Path | None
) -> list[Problem]:
    """Warn of names that differ from another model's by `:latest` alone."""
    places = {name: f"models.{name}" for name in names}
    places |= {
        alias: f"models.{name}.aliases.{number}"
        for name, aliases in names.items()
        for number, alias in enumerate(aliases)
        if owners[alias] == name
    }
    return [
        _file_problem(path, places[one], latest_text(one, owners), is_fatal=False)
        for one in places
        if is_other_latest(one, owners)
    ]


def _raw_names(models: object) -> dict[str, list[str]]:
    """Return the aliases of each model of a table that has mistakes, as far as they are names."""
    found = {}
    for name, entry in models.items() if isinstance(models, Mapping) else ():
        aliases = entry.get("aliases") if isinstance(entry, Mapping) else None
        if isinstance(name, str):
            listed = aliases if isinstance(aliases, list) else []
            found[name] = [one for one in listed if isinstance(one, str)]
    return found


def _read_file(config: ConfigFile) -> tuple[Table, list[Problem]]:
    """Return the table in the file of CONFIG_PATH, or an empty one and what is wrong with the file."""
    if config.problem:
        return Table(), [config.problem_at("", config.problem)]
    own = {key: one for key, one in config.sections.items() if key in Table.model_fields}
    if "models" in own and not own["models"]:
        return Table(), [
            config.problem_at("models", "It is empty. List at least one model, or leave it out.")
        ]
    try:
        return Table.model_validate(own), []
    except ValidationError as exc:
        problems = [
            config.problem_at(".".join(map(str, error["loc"])), explain(error, Table))
            for error in exc.errors()
        ]
        return Table(), problems + _find_alias_problems(_raw_names(own.get("models")), config.path)


def _file_problem(path: Path | None, where: str, remedy: str, *, is_fatal: bool = True) -> Problem:
    return ConfigFile(path).problem_at(where, remedy, is_fatal=is_fatal)


def _scan_folder(
    folder: Path | None, walked: WalkedFolder | None, problems: list[Problem]
) -> list[FoundModel]:
    if folder is None:
        return []
    if not os.path.isdir(folder):  # Path.is_dir would raise where it may not look
        problems.append(Problem("MODEL_DIR", str(folder), "a folder of .gguf files", "No such folder."))
        return []
    found, warnings = scan_folder(folder, walked)
    problems += warnings
    return found


def _why_left_alone(folder: Path, has_server: bool) -> str:
    """Say why MODEL_DIR is not served beside backends; empty = it is."""
    if not os.path.isdir(folder):
        return "No such folder here: it is not served. The backends answer."
    if has_server:
        return ""
    return (
        "It is not served: there is no llama-server in PATH or LLAMA_SERVER_PATH. The backends answer; unset "
        "MODEL_DIR, or install llama.cpp."
    )


def _find_warnings(model: Model) -> list[Problem]:
    where, n_ctx = f"models.{model.alias}", model.params.n_ctx
    low, high = README_CONTEXT
    found = (
        _find_engine_warnings(model.engine, where)
        if model.engine is not None
        else []
        if low <= n_ctx <= high
        else [
            Problem(
                "CONFIG_PATH",
                f"{where}.params.n_ctx={n_ctx}",
                f"{low} to {high}",
                f"n_ctx={n_ctx} is outside {low} to {high}: older readers of this file refuse it.",
                is_fatal=False,
            )
        ]
    )
    found += [
        Problem(
            "CONFIG_PATH",
            f"{where}.{key}",
            "a command line",
            f"Program not found: {program_of(words)}.",
            is_fatal=False,
        )
        for key, words in (
            ("before_load", model.hooks.before_load),
            ("after_unload", model.hooks.after_unload),
        )
        if words and program_of(words) and shutil.which(program_of(words)) is None
    ]
    return found + [
        Problem(
            "CONFIG_PATH",
            f"{where}.{key}",
            "a file",
            f"Model file not found: {path}. The model cannot be loaded until it exists.",
            is_fatal=False,
        )
        for key, path in model.files.items()
        if not is_regular(path)
    ]


def _find_engine_warnings(engine: EngineCommand, where: str) -> list[Problem]:
    found = []
    if engine.program and shutil.which(engine.program) is None:
        found.append(f"Program not found: {engine.program}. The model cannot be loaded until it exists.")
    if not engine.names_port:
        found.append("It does not have ${PORT}: the engine must listen on the port in its variable PORT.")
    return [
        Problem("CONFIG_PATH", f"{where}.command", "a command line", remedy, is_fatal=False)
        for remedy in found
    ]
