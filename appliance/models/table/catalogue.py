"""The table of models: `config.json` as system D has it (api, system, models), with keys of ours; and the files of a folder (folder.py).

An unknown key or an impossible value is refused with its path in the file. Files of the table are looked for here, not read: check.py
reads them. One that is missing is only warned of: the other models must still serve.
Source: system D's README and its newest source, whose limits differ; both are taken, and what its README would refuse is warned of.
Ours are `replicas`, `pinned`, `lora`, `draft_model_path`, `mmproj_path`, `reranking`, `pooling` of a model and `use_mlock` of the system.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema

from appliance.base import jsons
from appliance.base.settings import Problem
from appliance.models.settings import ModelSettings
from appliance.models.table.folder import FoundModel, scan_folder
from appliance.models.table.pulled import read_pulled

CacheType = Literal["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
README_CONTEXT = (4096, 8192)  # what system D's README allows for n_ctx


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Api(Section):
    host: str = Field(
        default="0.0.0.0", description="As system D has it; the appliance listens at PROXY_HOST"
    )
    port: int = Field(
        default=8000,
        ge=1024,
        le=65_535,
        description="As system D has it; the appliance listens at PROXY_PORT",
    )
    cors_origins: tuple[str, ...] = Field(
        default=("http://localhost:3000",), description="As system D has it"
    )


class System(Section):
    llama_server_path: str = Field(
        default="", description="The llama-server program; LLAMA_SERVER_PATH wins; empty = the one in PATH"
    )
    base_models_path: str = Field(
        default="",
        description="Where relative paths of models begin; BASE_MODELS_PATH wins; empty = the folder of this file",
    )
    max_concurrent_models: int = Field(
        default=3, ge=1, le=10, description="How many may be loaded at the same time"
    )
    enable_idle_timeout: bool = Field(
        default=True, description="Whether a model that nobody uses is unloaded"
    )
    idle_timeout_sec: int = Field(
        default=300, ge=60, le=86_400, description="After how many seconds without a request"
    )
    request_timeout_sec: int = Field(
        default=300, ge=30, le=3600, description="How long a model may take for one request, in seconds"
    )
    preload_models: tuple[str, ...] = Field(
        default=(), description="Names of models that are loaded at the start; `*` = all"
    )
    preload_delay_sec: int = Field(default=5, ge=1, le=120, description="Seconds between two of those loads")
    min_vram_required: int = Field(
        default=500,
        ge=200,
        le=750,
        description="The least memory, in MB, that loading a model is reckoned to take",
    )
    vram_multiplier: float = Field(
        default=1.1,
        ge=1.0,
        le=3.0,
        description="By how much more than its file a model takes where its header does not say enough to reckon",
    )
    keep_warm_models: int = Field(
        default=2, ge=0, description="How many of the most asked for models are not unloaded for being idle"
    )
    gpu_devices: tuple[int, ...] = Field(
        default=(0,), description="The GPUs that models may lie on, as the driver counts them"
    )
    parallel_requests: int = Field(
        default=4, ge=1, le=32, description="Requests that one llama-server works on at the same time"
    )
    cpu_threads: int = Field(default=8, ge=1, le=64, description="Threads of one llama-server")
    use_mmap: bool = Field(default=True, description="Map files into memory instead of reading them")
    # System D always locks. A container may lock hardly any memory unless it is given CAP_IPC_LOCK or a higher memlock limit: there
    # llama-server fails to, and says so in its log at each load. And what is locked cannot be taken back when memory gets short.
    use_mlock: bool = Field(
        default=False, description="Keep models from being swapped out; hardly works in containers"
    )
    flash_attention: Literal["on", "off", "auto"] = Field(
        default="on", description="Whether llama-server uses flash attention"
    )
    max_queue_size_per_model: int = Field(
        default=100, ge=10, le=1000, description="Requests that may wait for one model"
    )
    queue_timeout_sec: int = Field(
        default=300, ge=30, le=600, description="How long a request may wait, in seconds"
    )
    timeout_warmup_sec: int = Field(
        default=180,
        ge=120,
        le=3600,
        description="Taken from older tables, without effect: a model is warm when it is ready",
    )
    wait_ready_sec: int = Field(
        default=120, ge=120, le=3600, description="How long a model may take to load, in seconds"
    )
    http_max_keepalive: int = Field(
        default=100, ge=10, le=500, description="Idle connections that are kept to llama-servers"
    )
    http_max_connections: int = Field(default=200, ge=20, le=1000, description="Connections to llama-servers")
    queue_processor_idle_sec: int = Field(
        default=120,
        ge=30,
        le=600,
        description="Taken from older tables, without effect: a line costs nothing while nobody is in it",
    )
    model_load_max_retries: int = Field(
        default=2, ge=0, le=5, description="How often a load that failed is tried again"
    )


class Params(Section):
    n_gpu_layers: int = Field(
        default=99, ge=-1, description="Layers on the GPU; 99 = all; -1 = as llama-server does by itself"
    )
    n_ctx: int = Field(
        default=4096, ge=512, le=131_072, description="Tokens of context, of all slots together"
    )
    n_batch: int = Field(default=256, ge=8, le=512, description="Tokens that are read at once")
    batch_override: int | None = Field(
        default=None, ge=128, le=4096, description="Wins over n_batch, and may be larger"
    )
    rope_freq_base: float | None = Field(
        default=None, ge=0, description="For a context longer than trained with; null = as the file says"
    )
    embedding: bool = Field(default=False, description="The model gives embeddings")
    chat_template: str | None = Field(
        default=None, description="Name or text of a chat template; null = the one in the file"
    )
    parallel_override: int | None = Field(
        default=None, ge=1, le=32, description="Wins over system.parallel_requests"
    )
    type_k: CacheType = Field(default="f16", description="How keys are kept in the cache")
    type_v: CacheType = Field(default="f16", description="How values are kept in the cache")


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
    # llama-server takes a comma for the end of a name.
    if not 1 <= len(value) <= 128 or not value.isprintable() or "," in value or value != value.strip():
        raise ValueError("a name has 1 to 128 signs that can be seen, no comma, and no blank at its ends")
    return value


Alias = Annotated[str, AfterValidator(_is_name)]


class LoraEntry(Section):
    """A LoRA adapter: its file, or its file and how strongly it applies."""

    path: LoraPath = Field(description="The adapter (.gguf, or .bin of old)")
    scale: float = Field(
        default=1.0,
        ge=-100,
        le=100,
        allow_inf_nan=False,
        description="How strongly it applies; 0 = not until a request asks for it",
    )

    @model_validator(mode="before")
    @classmethod
    def _or_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [made["properties"]["path"], made]}


class ModelEntry(Section):
    """One model of the table."""

    model_path: GgufPath = Field(description="The model (.gguf); of one in parts, the first")
    params: Params = Field(default=Params(), description="How it is run")
    replicas: int = Field(
        default=1, ge=1, le=16, description="How many llama-servers may run it at the same time"
    )
    pinned: bool = Field(default=False, description="It is never unloaded for others, nor for being idle")
    lora: tuple[LoraEntry, ...] = Field(default=(), description="LoRA adapters that are loaded with it")
    draft_model_path: GgufPath | None = Field(
        default=None, description="A small model of the same vocabulary that guesses ahead"
    )
    mmproj_path: GgufPath | None = Field(
        default=None, description="The projector through which it reads images"
    )
    reranking: bool = Field(default=False, description="It gives scores for pairs of texts")
    pooling: Pooling | None = Field(
        default=None, description="How an embedding is made of its tokens; null = as the file says"
    )

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.reranking and self.pooling not in {None, "rank"}:
            raise ValueError(f"reranking goes with pooling rank, not {self.pooling}; leave pooling out")
        if self.draft_model_path and (self.reranking or self.params.embedding):
            raise ValueError("draft_model_path is for models that write text, not for embedding or reranking")
        return self


class Table(Section):
    """The sections of the file that are ours; it may have others, of other rooms."""

    api: Api = Field(default=Api(), description="Kept for readers of system D")
    system: System = Field(default=System(), description="How models are run")
    models: dict[Alias, ModelEntry] = Field(default={}, description="The models by name")


@dataclass(frozen=True, slots=True)
class LoraAdapter:
    """An adapter that is loaded with its model. `scale`: how strongly it applies, 0 = not until a request asks for it; `name`: of one that
    is a model of its own for requests (engines/lora/adapters.py), "" = of the table."""

    path: Path
    scale: float = 1.0
    name: str = ""


@dataclass(frozen=True, slots=True)
class Model:
    """One model as it is to be run. Paths are absolute; `origin`: the table, the folder, or a pull (pulled.py).

    replicas            llama-servers that may run it at the same time
    pinned              never unloaded for others, nor for idleness
    draft_model_path    of a small model that guesses ahead what this one then only checks
    mmproj_path         of the projector that turns images into what the model reads
    reranking, pooling  False and None = as its file says of itself
    """

    alias: str
    path: Path
    params: Params
    origin: Literal["table", "folder", "pulled"]
    replicas: int = 1
    pinned: bool = False
    lora: tuple[LoraAdapter, ...] = ()
    draft_model_path: Path | None = None
    mmproj_path: Path | None = None
    reranking: bool = False
    pooling: Pooling | None = None

    @property
    def files(self) -> dict[str, Path]:
        """Every file that it is made of, by its key in the table."""
        found = {
            "model_path": self.path,
            "draft_model_path": self.draft_model_path,
            "mmproj_path": self.mmproj_path,
            **{f"lora.{number}.path": one.path for number, one in enumerate(self.lora)},
        }
        return {key: path for key, path in found.items() if path is not None}


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All models by alias, and how they are run."""

    models: Mapping[str, Model]
    system: System = field(default_factory=System)
    api: Api = field(default_factory=Api)
    llama_server: str = ""  # "" = the one in PATH


def read_catalogue(
    settings: ModelSettings, config_path: Path | None, downloads: Path | None = None
) -> tuple[Catalogue, list[Problem]]:
    """Read the table, the folder, and what was pulled; of two models with one name the table's counts, then the pulled one.

    Takes   config_path: the file of CONFIG_PATH; its other sections (`backends`, `pools`) are somebody else's;
            downloads: the folder that pulled models are in (DOWNLOAD_DIR), None = there is none
    Gives   (what could be read, problems): those with is_fatal mean that it must not be used
    """
    found, problems = _read_file(config_path)
    base = settings.base_models_path or (
        Path(found.system.base_models_path) if found.system.base_models_path else None
    )
    if base is not None and not base.is_dir():
        problems.append(Problem("BASE_MODELS_PATH", str(base), "a folder", "There is no such folder."))
    models: dict[str, Model] = {}
    pulled = _pulled(downloads, problems)
    taken = {
        model.path for model in pulled.values()
    }  # MODEL_DIR and DOWNLOAD_DIR may be one folder, or one in the other
    for one in _files(settings.model_dir, problems):
        if one.path not in taken:
            models[one.alias] = Model(one.alias, one.path, Params(), "folder", mmproj_path=one.mmproj_path)
    for alias, entry in found.models.items():
        models[alias] = _model(alias, entry, base or (config_path.parent if config_path else Path()))
        problems += _warnings(models[alias])
    for name in found.system.preload_models:
        if name != "*" and name not in models:
            problems.append(
                _problem(config_path, "system.preload_models", f"There is no model {name!r} in the table.")
            )
    server = str(settings.llama_server_path or "") or found.system.llama_server_path
    has_server = shutil.which(server or "llama-server") is not None
    if models and not has_server:
        problems.append(_no_server(settings, server))
    elif pulled and not has_server:  # a pull must not keep the appliance from starting
        problems.append(replace(_no_server(settings, server), is_fatal=False))
        pulled = {}
    return Catalogue({**pulled, **models}, found.system, found.api, server), problems


def _pulled(downloads: Path | None, problems: list[Problem]) -> dict[str, Model]:
    """Give the pulled models; those whose files are gone are warned of and stay, as in the table."""
    found, said = read_pulled(downloads) if downloads else ([], "")
    if said:
        problems.append(
            Problem(
                "DOWNLOAD_DIR",
                str(downloads),
                "a folder with an index of pulled models",
                said,
                is_fatal=False,
            )
        )
    models = {
        one.alias: Model(one.alias, one.path, Params(), "pulled", mmproj_path=one.mmproj_path)
        for one in found
    }
    problems += [
        Problem(
            "DOWNLOAD_DIR",
            str(path),
            "a file",
            f"{alias} was pulled, but there is no such file any more. Pull or delete it again.",
            is_fatal=False,
        )
        for alias, model in models.items()
        for path in model.files.values()
        if not path.is_file()
    ]
    return models


def _no_server(settings: ModelSettings, server: str) -> Problem:
    if not server:
        return Problem(
            "LLAMA_SERVER_PATH",
            "",
            "a program",
            "There are models, but no llama-server in PATH to run them. Install llama.cpp, or set "
            "LLAMA_SERVER_PATH.",
        )
    if settings.llama_server_path:
        return Problem("LLAMA_SERVER_PATH", server, "a program", "There is no program here that can be run.")
    return Problem(
        "CONFIG_PATH",
        f"system.llama_server_path={server}",
        "a program",
        "There is no program here that can be run.",
    )


def _model(alias: str, entry: ModelEntry, base: Path) -> Model:
    def whole(path: str) -> Path:
        return (base / path).absolute()  # base / an absolute path = that path

    return Model(
        alias,
        whole(entry.model_path),
        entry.params,
        "table",
        entry.replicas,
        entry.pinned,
        tuple(LoraAdapter(whole(one.path), one.scale) for one in entry.lora),
        whole(entry.draft_model_path) if entry.draft_model_path else None,
        whole(entry.mmproj_path) if entry.mmproj_path else None,
        entry.reranking,
        entry.pooling,
    )


def _read_file(path: Path | None) -> tuple[Table, list[Problem]]:
    if path is None:
        return Table(), []
    try:
        value: Any = jsons.loads(path.read_bytes())
    except OSError as exc:
        return Table(), [_problem(path, "", f"The file cannot be read: {exc.strerror or exc}.")]
    except jsons.InvalidJson as exc:
        return Table(), [_problem(path, "", f"The file is not JSON: {exc}.")]
    if not isinstance(value, dict):
        return Table(), [_problem(path, "", "It must hold one JSON object.")]
    own = {key: one for key, one in value.items() if key in Table.model_fields}
    if "models" in own and not own["models"]:
        return Table(), [_problem(path, "models", "It is empty; name at least one model, or leave it out.")]
    try:
        return Table.model_validate(own), []
    except ValidationError as exc:
        return Table(), [
            _problem(path, ".".join(map(str, error["loc"])), _said(error)) for error in exc.errors()
        ]


def _said(error: Any) -> str:
    given = (
        "" if error["type"] in {"missing", "extra_forbidden"} else f", not {str(error.get('input'))[:80]!r}"
    )
    said = str(error["msg"]).removeprefix("Value error, ")
    text = {"missing": "It is missing", "extra_forbidden": "This key is not known"}.get(error["type"], said)
    return f"{text[0].upper()}{text[1:]}{given}."


def _problem(path: Path | None, where: str, remedy: str, *, is_fatal: bool = True) -> Problem:
    shown = f"{path}: {where}" if where else str(path)
    return Problem(
        "CONFIG_PATH", shown, "a JSON file with `api`, `system` and `models`", remedy, is_fatal=is_fatal
    )


def _files(folder: Path | None, problems: list[Problem]) -> list[FoundModel]:
    if folder is None:
        return []
    if not folder.is_dir():
        problems.append(
            Problem("MODEL_DIR", str(folder), "a folder of .gguf files", "There is no such folder.")
        )
        return []
    found, warnings = scan_folder(folder)
    problems += warnings
    return found


def _warnings(model: Model) -> list[Problem]:
    where, n_ctx = f"models.{model.alias}", model.params.n_ctx
    low, high = README_CONTEXT
    found = (
        []
        if low <= n_ctx <= high
        else [
            Problem(
                "CONFIG_PATH",
                f"{where}.params.n_ctx={n_ctx}",
                f"{low} to {high}",
                f"n_ctx={n_ctx} is outside {low} to {high}, which is all that older readers of this file take.",
                is_fatal=False,
            )
        ]
    )
    return found + [
        Problem(
            "CONFIG_PATH",
            f"{where}.{key}",
            "a file",
            f"There is no file {path}; this model cannot be loaded until there is.",
            is_fatal=False,
        )
        for key, path in model.files.items()
        if not path.is_file()
    ]
