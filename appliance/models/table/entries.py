"""The sections of the model table as they stand in the file: `api`, `system`, `models`, `groups`.

The file is compatible with another project's (docs/compatibility.md), whose README and newest source have
different limits. Both are accepted; a value that its README refuses is a warning. We add to a model all keys
but `model_path` and `params`, and `use_mlock` to the system.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from appliance.models.table.engine import EngineKeys, has_reference
from appliance.models.table.extra_args import Environment, ExtraArgs
from appliance.models.table.groups import Group
from appliance.models.table.hooks import HookKeys
from appliance.models.table.sampling import SamplingFields
from appliance.models.table.section import Section

CacheType = Literal["f16", "f32", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1"]
Pooling = Literal["none", "mean", "cls", "last", "rank"]
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
