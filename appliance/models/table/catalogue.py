"""The model table: `config.json` (api, system, models), the files of a folder, and what was pulled.

An unknown key or an impossible value is refused with its path in the file. Files of the table are searched
for here, not read (`models/check.py` reads them). A missing one is only a warning: the other models must
still serve.

The file is compatible with another project's (docs/compatibility.md), whose README and newest source have
different limits. Both are accepted; a value that its README refuses is a warning. We add to a model all keys
but `model_path` and `params`, and `use_mlock` to the system.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema

from appliance.base.config_file import ConfigFile, read_config_file
from appliance.base.logs import is_secret_variable, secrets_of_address, secrets_of_words
from appliance.base.settings import Problem
from appliance.models.settings import ModelSettings
from appliance.models.table.engine import EngineCommand, EngineKeys, engine_of, has_reference, program_of
from appliance.models.table.extra_args import Environment, ExtraArgs
from appliance.models.table.file_walk import WalkedFolder
from appliance.models.table.folder import FoundModel, scan_folder
from appliance.models.table.gguf import is_regular
from appliance.models.table.groups import Group, conflicts_of, find_group_problems
from appliance.models.table.hooks import NO_HOOKS, HookKeys, Hooks, hooks_of
from appliance.models.table.pulled import read_pulled
from appliance.models.table.sampling import NO_REQUEST_SETTINGS, RequestSettings, SamplingFields
from appliance.models.table.section import Section, explain

CacheType = Literal["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
README_CONTEXT = (4096, 8192)  # what older readers of this file allow for n_ctx
# What a model with a command may have of the keys that are otherwise for llama-server.
ENGINE_PARAMS = frozenset({"embedding", "n_gpu_layers"})


class Api(Section):
    """Where the appliance listens: other names of three variables, which win."""

    host: str = Field(
        default="0.0.0.0",
        description="The address to listen at, where PROXY_HOST is not set; without this key 127.0.0.1",
    )
    port: int = Field(
        default=8000,
        ge=1024,
        le=65_535,
        description="The port to listen at, where PROXY_PORT is not set; without this key 14000",
    )
    cors_origins: tuple[str, ...] = Field(
        default=("http://localhost:3000",),
        description="Web origins that browsers may call from, where CORS_ORIGINS is not set; without this "
        "key none",
    )


class System(Section):
    """How models are run."""

    llama_server_path: str = Field(
        default="", description="The llama-server program; LLAMA_SERVER_PATH wins; empty = the one in PATH"
    )
    base_models_path: str = Field(
        default="",
        description="Where relative paths begin; BASE_MODELS_PATH wins; empty = the folder of this file",
    )
    max_concurrent_models: int = Field(
        default=3, ge=1, le=10, description="How many may be loaded at the same time"
    )
    enable_idle_timeout: bool = Field(default=True, description="Whether an idle model is unloaded")
    idle_timeout_sec: int = Field(
        default=300, ge=60, le=86_400, description="Seconds without a request after which a model is idle"
    )
    request_timeout_sec: int = Field(
        default=300, ge=30, le=3600, description="Longest time for one request, in seconds"
    )
    preload_models: tuple[str, ...] = Field(
        default=(), description="Models that are loaded at the start; `*` = all"
    )
    preload_delay_sec: int = Field(default=5, ge=1, le=120, description="Seconds between two of those loads")
    min_vram_required: int = Field(
        default=500,
        ge=200,
        le=750,
        description="Lower limit of the memory that a model is estimated to take, in MB",
    )
    vram_multiplier: float = Field(
        default=1.1,
        ge=1.0,
        le=3.0,
        description="Estimated memory as a multiple of the file, if the header does not say enough",
    )
    keep_warm_models: int = Field(
        default=2, ge=0, description="How many of the most requested models are not unloaded when idle"
    )
    gpu_devices: tuple[int, ...] = Field(
        default=(0,), description="The GPUs for models, as the driver counts them"
    )
    parallel_requests: int = Field(
        default=4, ge=1, le=32, description="Requests that one llama-server processes at the same time"
    )
    cpu_threads: int = Field(default=8, ge=1, le=64, description="Threads of one llama-server")
    use_mmap: bool = Field(default=True, description="Map files into memory instead of reading them")
    # Without CAP_IPC_LOCK or a higher memlock limit a container can lock hardly any memory: llama-server logs
    # an error at each load. And locked memory cannot be reclaimed when memory gets short.
    use_mlock: bool = Field(
        default=False, description="Keep models from being swapped out; needs CAP_IPC_LOCK in a container"
    )
    flash_attention: Literal["on", "off", "auto"] = Field(
        default="on", description="Whether llama-server uses flash attention"
    )
    max_queue_size_per_model: int = Field(
        default=100, ge=10, le=1000, description="Requests that may wait for one model"
    )
    queue_timeout_sec: int = Field(
        default=300, ge=30, le=600, description="Longest time of a request in the queue, in seconds"
    )
    timeout_warmup_sec: int = Field(
        default=180,
        ge=120,
        le=3600,
        description="Accepted from older tables, without effect: a model is warm when it is ready",
    )
    wait_ready_sec: int = Field(
        default=120, ge=120, le=3600, description="Longest time for a model to load, in seconds"
    )
    http_max_keepalive: int = Field(
        default=100, ge=10, le=500, description="Idle connections that are kept to llama-servers"
    )
    http_max_connections: int = Field(default=200, ge=20, le=1000, description="Connections to llama-servers")
    queue_processor_idle_sec: int = Field(
        default=120,
        ge=30,
        le=600,
        description="Accepted from older tables, without effect: an empty queue costs nothing",
    )
    model_load_max_retries: int = Field(
        default=2, ge=0, le=5, description="How often a failed load is retried"
    )


class Params(Section):
    """How one model is run."""

    n_gpu_layers: int = Field(
        default=99, ge=-1, description="Layers on the GPU; 99 = all; -1 = llama-server decides"
    )
    n_ctx: int = Field(
        default=4096, ge=512, le=131_072, description="Tokens of context, for all slots together"
    )
    n_batch: int = Field(default=256, ge=8, le=512, description="Tokens that are processed at once")
    batch_override: int | None = Field(
        default=None, ge=128, le=4096, description="Wins over n_batch, and may be larger"
    )
    rope_freq_base: float | None = Field(
        default=None, ge=0, description="For a context longer than in training; null = as the file says"
    )
    embedding: bool = Field(default=False, description="The model gives embeddings")
    chat_template: str | None = Field(
        default=None, description="Name or text of a chat template; null = the one in the file"
    )
    parallel_override: int | None = Field(
        default=None, ge=1, le=32, description="Wins over system.parallel_requests"
    )
    type_k: CacheType = Field(default="f16", description="Type of the keys in the cache")
    type_v: CacheType = Field(default="f16", description="Type of the values in the cache")


def _ends_with(*endings: str) -> AfterValidator:
    def check(value: str) -> str:
        if not value.lower().endswith(endings):
            raise ValueError(f"must end with {' or '.join(endings)}")
        return value

    return AfterValidator(check)


GgufPath = Annotated[str, _ends_with(".gguf"), Field(json_schema_extra={"pattern": r"\.[gG][gG][uU][fF]$"})]
LoraPath = Annotated[
    str,
    _ends_with(".gguf", ".bin"),
    Field(json_schema_extra={"pattern": r"\.([gG][gG][uU][fF]|[bB][iI][nN])$"}),
]


def _is_name(value: str) -> str:
    # llama-server reads a comma as the end of a name.
    if not 1 <= len(value) <= 128 or not value.isprintable() or "," in value or value != value.strip():
        raise ValueError("a name must be 1-128 printable characters; no comma, no space at its ends")
    return value


Alias = Annotated[str, AfterValidator(_is_name)]


class LoraEntry(Section):
    """A LoRA adapter: its file, or its file and how strongly it applies."""

    path: LoraPath = Field(description="The adapter (.gguf, or the older .bin)")
    scale: float = Field(
        default=1.0,
        ge=-100,
        le=100,
        allow_inf_nan=False,
        description="How strongly it applies; 0 = only if a request wants it",
    )

    @model_validator(mode="before")
    @classmethod
    def _or_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [made["properties"]["path"], made]}


class ModelEntry(EngineKeys, HookKeys):
    """One model of the table."""

    model_path: GgufPath | None = Field(
        default=None,
        description="The model (.gguf); of a model in parts, the first. Required without a command",
    )
    params: Params = Field(default=Params(), description="How it is run")
    replicas: int = Field(
        default=1, ge=1, le=16, description="How many llama-servers may run it at the same time"
    )
    pinned: bool = Field(
        default=False, description="It is never unloaded, neither for other models nor when idle"
    )
    lora: tuple[LoraEntry, ...] = Field(default=(), description="LoRA adapters that are loaded with it")
    draft_model_path: GgufPath | None = Field(
        default=None, description="A small model of the same vocabulary, for speculative decoding"
    )
    mmproj_path: GgufPath | None = Field(default=None, description="The projector with which it reads images")
    reranking: bool = Field(default=False, description="It scores pairs of texts")
    pooling: Pooling | None = Field(
        default=None, description="How the tokens become one embedding; null = as the file says"
    )
    max_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Requests that each server of it gets at a time; others wait. null = its slots, with a "
        "command 10",
    )
    aliases: tuple[Alias, ...] = Field(default=(), max_length=32, description="Further names of it")
    defaults: SamplingFields = Field(
        default=SamplingFields(), description="Sampling parameters of requests that do not set them"
    )
    force: SamplingFields = Field(
        default=SamplingFields(), description="Sampling parameters of all requests, whatever they set"
    )
    system_prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="The system message of chats that have none",
    )
    extra_args: ExtraArgs = Field(default=(), description="Further arguments for llama-server, as a list")
    env: Environment = Field(default={}, description="Variables of its llama-servers")
    idle_timeout_sec: int | None = Field(
        default=None,
        ge=-1,
        le=604_800,
        description="Seconds without a request after which it is unloaded; -1 = never; null = as the system "
        "says",
    )
    pin: bool | None = Field(default=None, description="The same as pinned")
    preload: bool = Field(default=False, description="It is loaded at the start")

    @model_validator(mode="after")
    def _has_engine(self) -> Self:
        if self.command is None:
            if self.model_path is None:
                raise ValueError("model_path or command is required")
            of_command = EngineKeys.model_fields.keys() & self.model_fields_set - {"command"}
            if of_command:
                raise ValueError(f"{', '.join(sorted(of_command))} needs a command")
            return self
        other = {"lora", "draft_model_path", "mmproj_path", "pooling", "extra_args"} & self.model_fields_set
        other |= {f"params.{key}" for key in self.params.model_fields_set - ENGINE_PARAMS}
        if other:
            raise ValueError(
                f"{', '.join(sorted(other))} is for a llama-server; with a command, say it in the command"
            )
        return self

    @model_validator(mode="after")
    def _has_references(self) -> Self:
        if has_reference("PORT", self.before_load):
            raise ValueError("before_load names ${PORT}, which is chosen only after it")
        for key in ("command", "before_load", "after_unload"):
            if self.model_path is None and has_reference("MODEL_PATH", getattr(self, key)):
                raise ValueError(f"{key} names ${{MODEL_PATH}}, but there is no model_path")
        return self

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.pin is not None and "pinned" in self.model_fields_set and self.pin != self.pinned:
            raise ValueError("pin and pinned mean the same: give one of them")
        if self.idle_timeout_sec == 0:
            raise ValueError("idle_timeout_sec must be -1 (never), or at least 1")
        if self.idle_timeout_sec is not None and (self.pin or self.pinned):
            raise ValueError("a pinned model is never unloaded: remove idle_timeout_sec or the pin")
        if self.reranking and self.pooling not in {None, "rank"}:
            raise ValueError(f"reranking needs pooling rank, not {self.pooling}; leave pooling out")
        if self.draft_model_path and (self.reranking or self.params.embedding):
            raise ValueError("draft_model_path is for text models, not for embedding or reranking")
        return self


class Table(Section):
    """The sections of the file that this package reads; other packages may have their own."""

    api: Api = Field(default=Api(), description="Where the appliance listens")
    system: System = Field(default=System(), description="How models are run")
    models: dict[Alias, ModelEntry] = Field(default={}, description="The models by name")
    groups: dict[Alias, Group] = Field(
        default={}, description="Models that are loaded together, or never, by the name of their group"
    )


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter that is loaded with its model.

    Attributes:
        scale: How strongly it applies, 0 = only if a request wants it.
        name: Of one that is a model of its own for requests (`engines/lora/managed_host.py`); "" = of the
            table.
    """

    path: Path
    scale: float = 1.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it is to be run. Paths are absolute.

    Attributes:
        origin: The table, the folder (MODEL_DIR), or a pull.
        replicas: llama-servers that may run it at the same time.
        pinned: Never unloaded, neither for other models nor when idle.
        path: The model's file; None = only the command of its engine knows.
        draft_model_path: A small model that drafts tokens, which this one only verifies.
        mmproj_path: The projector that turns images into embeddings for the model.
        reranking: False = as its file says, as pooling None.
        engine: What runs it; None = a llama-server.
        max_concurrency: Requests that each server of it gets at a time; None = as many as it has slots.
        aliases: Further names of it.
        requests: What is changed in requests for it.
        extra_args: Further arguments for llama-server.
        env: Variables of its llama-servers, as (name, value).
        idle_timeout_s: Seconds without a request after which it is unloaded; negative = never, None = as the
            system says.
        preload: It is loaded at the start.
        hooks: Commands before a load and after an unload.
    """

    alias: str
    path: Path | None
    params: Params
    origin: Literal["table", "folder", "pulled"]
    replicas: int = 1
    pinned: bool = False
    lora: tuple[LoraAdapter, ...] = ()
    draft_model_path: Path | None = None
    mmproj_path: Path | None = None
    reranking: bool = False
    pooling: Pooling | None = None
    # Not in repr: records of earlier loads are found by it (manager/model_file.py).
    engine: EngineCommand | None = field(default=None, repr=False)
    max_concurrency: int | None = field(default=None, repr=False)
    aliases: tuple[str, ...] = field(default=(), repr=False)
    requests: RequestSettings = field(default=NO_REQUEST_SETTINGS, repr=False)
    extra_args: tuple[str, ...] = field(default=(), repr=False)
    env: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    idle_timeout_s: int | None = field(default=None, repr=False)
    preload: bool = field(default=False, repr=False)
    hooks: Hooks = field(default=NO_HOOKS, repr=False)

    def as_started(self) -> "Model":
        """Return the same model without what a running llama-server need not be restarted for."""
        return replace(
            self,
            replicas=1,
            pinned=False,
            aliases=(),
            requests=NO_REQUEST_SETTINGS,
            idle_timeout_s=None,
            preload=False,
            hooks=NO_HOOKS,
        )

    @property
    def files(self) -> dict[str, Path]:
        """Every file of the model, by its key in the table."""
        found = {
            "model_path": self.path,
            "draft_model_path": self.draft_model_path,
            "mmproj_path": self.mmproj_path,
            **{f"lora.{number}.path": one.path for number, one in enumerate(self.lora)},
        }
        return {key: path for key, path in found.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models by alias, and how they are run.

    Attributes:
        groups: By name.
        conflicts: By alias, the models that are never loaded together with one; only where there are some.
    """

    models: Mapping[str, Model]
    system: System = field(default_factory=System)
    api: Api = field(default_factory=Api)
    llama_server: str = ""  # "" = the one in PATH
    groups: Mapping[str, Group] = field(default_factory=dict)
    conflicts: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def name_of(self, name: str) -> str | None:
        """Return the name of the model that has this name or alias; None = there is none."""
        if name in self.models:
            return name
        return next((model.alias for model in self.models.values() if name in model.aliases), None)

    def secrets(self) -> list[str]:
        """List the secrets of models, as far as they are known: by the names of variables and arguments.

        1. values of variables whose names say so, as HF_TOKEN, and passwords in addresses
        2. the same of command lines: `--hf-token VALUE`
        """
        found: list[str] = []
        for model in self.models.values():
            for name, value in model.env:  # 1
                found += [value] if is_secret_variable(name) else secrets_of_address(value)
            engine = model.engine.words if model.engine is not None else ()
            for words in (engine, model.extra_args, model.hooks.before_load, model.hooks.after_unload):  # 2
                found += secrets_of_words(words)
        return [one for one in found if not one.isdigit() and not one.startswith("$")]

    def preloaded(self) -> list[str]:
        """List the names of the models that are loaded at the start: the system's first."""
        if "*" in self.system.preload_models:
            return list(self.models)
        named = [self.name_of(name) or name for name in self.system.preload_models]
        own = [model.alias for model in self.models.values() if model.preload]
        return list(dict.fromkeys([*named, *own]))


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
    found, problems = _read_file(config if config is not None else read_config_file(config_path))
    base = settings.base_models_path or _path_or_none(found.system.base_models_path)
    if base is not None and not base.is_dir():
        problems.append(Problem("BASE_MODELS_PATH", str(base), "a folder", "No such folder."))
    models: dict[str, Model] = {}
    pulled = _read_pulled(downloads, problems)
    # MODEL_DIR and DOWNLOAD_DIR may be one folder, or one in the other.
    taken = {model.path for model in pulled.values()}
    names = {alias for entry in found.models.values() for alias in entry.aliases}
    server = str(settings.llama_server_path or "") or found.system.llama_server_path
    has_server = shutil.which(server or "llama-server") is not None
    folder = settings.model_dir
    if has_backends and folder is not None and (left := _why_left_alone(folder, has_server)):
        problems.append(Problem("MODEL_DIR", str(folder), "a folder", left, is_fatal=False))
        folder = None
    for one in _scan_folder(folder, walked, problems):
        if one.alias in names:
            remedy = f"{one.alias!r} is an alias of a model of the table. The file is left out."
            problems.append(
                Problem("MODEL_DIR", str(one.path), "model files (.gguf)", remedy, is_fatal=False)
            )
        elif one.path not in taken:
            models[one.alias] = Model(one.alias, one.path, Params(), "folder", mmproj_path=one.mmproj_path)
    for alias, entry in found.models.items():
        models[alias] = _resolve(alias, entry, base or (config_path.parent if config_path else Path()))
        problems += _find_warnings(models[alias])
    problems += _find_alias_problems(models, config_path)
    for name in found.system.preload_models:
        if name != "*" and Catalogue(models).name_of(name) is None:
            problems.append(
                _file_problem(config_path, "system.preload_models", f"The table has no model {name!r}.")
            )
    if any(model.engine is None for model in models.values()) and not has_server:
        problems.append(_no_server(settings, server))
    elif pulled and not has_server:  # a pull must not keep the appliance from starting
        problems.append(replace(_no_server(settings, server), is_fatal=False))
        pulled = {}
    every = {**pulled, **models}
    problems += [
        _file_problem(config_path, f"groups.{where}", text)
        for where, text in find_group_problems(found.groups, every)
    ]
    conflicts = conflicts_of(found.groups, every)
    problems += _find_pinned_conflicts(config_path, every, conflicts)
    problems += _find_empty_folder(folder, every)
    return Catalogue(every, found.system, found.api, server, found.groups, conflicts), problems


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
    config_path: Path | None, models: Mapping[str, Model], conflicts: Mapping[str, frozenset[str]]
) -> list[Problem]:
    """Warn of pinned models that are never loaded together: the second is never loaded."""
    pinned = [alias for alias, model in models.items() if model.pinned]
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


def _find_alias_problems(models: Mapping[str, Model], path: Path | None) -> list[Problem]:
    """Find aliases that are the name of a model, or are given twice."""
    owners: dict[str, str] = {}
    problems = []
    for model in models.values():
        for number, alias in enumerate(model.aliases):
            other = alias if alias in models else owners.setdefault(alias, model.alias)
            is_twice = other != model.alias or model.aliases.index(alias) != number
            if alias in models or is_twice:
                where = f"models.{model.alias}.aliases.{number}"
                remedy = f"{alias!r} is a name of {other!r} already. Take another one."
                problems.append(_file_problem(path, where, remedy))
    return problems


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
        return Table(), [
            config.problem_at(".".join(map(str, error["loc"])), explain(error, Table))
            for error in exc.errors()
        ]


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
