"""Settings of the engines: backends and balancing, the hosted API, names, streaming, KV events."""

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, field_validator

from appliance.base.balancing import STRATEGIES
from appliance.base.setting_types import CommaList, SemicolonList, Switch, check_address
from appliance.base.settings import PackageSettings

RELOAD: dict[str, Any] = {"reload": True}
ZMQ: dict[str, Any] = {"allowed": "tcp://host:port or ipc:///path"}
KEY = re.compile(r"[!-~]+")
ZMQ_ENDPOINT = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\s:/*\[\]]+):[0-9]{1,5}|ipc://\S+")


def check_key(key: str) -> None:
    """Refuse a key that cannot be sent: it would end the header, or every request would fail.

    Raises:
        ValueError: It is not one word of printable ASCII characters; it is not shown.
    """
    if key and not KEY.fullmatch(key):
        raise ValueError(
            "a key is one word of printable ASCII characters, without spaces and line breaks; is there more "
            "than one in it?"
        )


class EngineSettings(PackageSettings):
    """Backends, balancing, queue, names, streams and KV events."""

    novita_api_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the hosted API; without a key, BACKENDS, MODEL_DIR and CONFIG_PATH the built-in "
        "demo engine answers",
        json_schema_extra=RELOAD,
    )
    novita_openai_endpoints: SemicolonList = Field(
        ["https://api.novita.ai/openai/v1", "https://api.novita.ai/v3/openai"],
        description="Base addresses of the hosted API, tried in order (semicolon list)",
        json_schema_extra=RELOAD | {"separator": ";", "allowed": "http(s) addresses separated by semicolons"},
    )
    upstream_base_model: str = Field(
        "meta-llama/llama-3.2-3b-instruct",
        min_length=1,
        description="The model that the hosted API is asked for",
        json_schema_extra=RELOAD,
    )
    public_model: str = Field(
        "meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1",
        min_length=1,
        description="The model name that clients see",
        json_schema_extra=RELOAD,
    )
    model_aliases: CommaList = Field(
        ["llama3.2-3b-instruct", "llama-3.2-3b-instruct", "meta-llama-llama-3.2-3b-instruct"],
        description="Further names of the same model (comma list); `name=model` is a name of a backend's "
        "model",
        json_schema_extra=RELOAD | {"allowed": "names, or name=model, separated by commas"},
    )
    model_strict: Switch = Field(
        False,
        description="1 = unknown model names get 404; 0 = any name is answered by PUBLIC_MODEL, or by the "
        "only model where there is one",
        json_schema_extra=RELOAD,
    )
    default_model: str = Field(
        "",
        max_length=256,
        description="The model that answers where a request names none: its name or an alias; empty = the "
        "first one that generates text",
        json_schema_extra=RELOAD | {"allowed": "the name or an alias of a model"},
    )
    upstream_streaming: Literal["auto", "relay", "simulate"] = Field(
        "auto",
        description="auto = ask for a stream, and cut a whole response into a paced one; relay = the same "
        "without pauses; simulate = always ask for a whole response and cut it into a paced stream",
        json_schema_extra=RELOAD,
    )
    upstream_on_client_left: Literal["drain", "cancel"] = Field(
        "drain",
        description="A client leaves the stream of a hosted API that its account pays for: drain = it is "
        "read to its end, to charge what the API has counted (at most 30 seconds, 16 at a time); cancel = it "
        "is closed, and what was delivered is charged",
        json_schema_extra=RELOAD,
    )
    stream_chunk_size: int = Field(
        64, ge=1, le=4096, description="Simulated streams: characters per piece", json_schema_extra=RELOAD
    )
    stream_delay_ms: float = Field(
        30,
        ge=0,
        le=10_000,
        description="Simulated streams: milliseconds between pieces",
        json_schema_extra=RELOAD,
    )
    upstream_connect_timeout_s: float = Field(
        5.0,
        gt=0,
        le=120,
        description="Seconds to connect to an endpoint (DNS, TCP, TLS)",
        json_schema_extra=RELOAD,
    )
    upstream_first_byte_timeout_s: float = Field(
        120.0,
        gt=0,
        le=3600,
        description="Seconds until an endpoint's first byte; of a stream, until its first content, whatever "
        "else it sends",
        json_schema_extra=RELOAD,
    )
    upstream_idle_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds an endpoint may be silent in a response",
        json_schema_extra=RELOAD,
    )
    upstream_total_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds for all attempts of one request together; of a stream, until its first content, "
        "and later between two contents",
        json_schema_extra=RELOAD,
    )
    upstream_max_connections: int = Field(
        1024, ge=1, le=65_535, description="Most connections to the endpoints at a time"
    )
    backends: CommaList = Field(
        [],
        description="Servers that answer: llama.cpp, vLLM, SGLang or any other OpenAI-compatible server "
        "(comma list); `name=address` gives one a name",
        json_schema_extra=RELOAD | {"allowed": "addresses such as http://llm-1:8080, separated by commas"},
    )
    config_path: Path | None = Field(
        None,
        description="A JSON or YAML file with `settings` (all of these variables), `backends` and `pools` "
        "(docs/backends.md), `models` and `system` (etc/models.example.json)",
        json_schema_extra=RELOAD | {"allowed": "a readable file"},
    )
    config_watch: Switch = Field(
        False,
        description="1 = the files of CONFIG_PATH and APPLIANCE_ENV_FILE are read again when they change, as "
        "by a reload",
    )
    lb_enabled: Switch = Field(
        True,
        description="0 = always the first backend that can take a request, in the order of BACKENDS",
        json_schema_extra=RELOAD,
    )
    lb_strategy: str = Field(
        "least_busy",
        description="How a backend is chosen among those that can take a request; an unknown name means "
        "round_robin",
        json_schema_extra=RELOAD | {"allowed": ", ".join(STRATEGIES)},
    )
    lb_overflow: str = Field(
        "",
        description="The pool that takes requests when all of BACKENDS are full or down: `hosted`, or one "
        "of CONFIG_PATH; empty = none",
        json_schema_extra=RELOAD | {"allowed": "the name of a pool"},
    )
    metrics_cache_ttl_seconds: float = Field(
        3.0,
        gt=0,
        le=300,
        description="Seconds between two probes of a backend's health and metrics",
        json_schema_extra=RELOAD,
    )
    request_timeout: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds for a request of the sidecar to its engine, such as a scrape of its metrics",
        json_schema_extra=RELOAD,
    )
    backend_timeout_seconds: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds for a backend's response, all attempts and the time in the queue together; of a "
        "stream, until its first content, and later between two contents",
        json_schema_extra=RELOAD,
    )
    max_allowed_request_queue: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Most requests that a backend works on at a time; 0 = as many as it has slots "
        "(llama.cpp), or as it takes without making requests wait (others)",
        json_schema_extra=RELOAD,
    )
    max_allowed_deferred: int = Field(
        2,
        ge=1,
        le=1_000_000,
        description="A backend in which so many requests wait gets no more",
        json_schema_extra=RELOAD,
    )
    backend_startup_grace_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds after a backend was added in which it is starting, not down, though it does "
        "not answer",
        json_schema_extra=RELOAD,
    )
    slow_start_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds until a backend that came back gets its full share again; 0 = at once",
        json_schema_extra=RELOAD,
    )
    queue_limit: int = Field(
        512,
        ge=0,
        le=1_000_000,
        description="Most requests in the queue while every backend is full; 0 = no queue",
        json_schema_extra=RELOAD,
    )
    queue_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Longest time in the queue in seconds", json_schema_extra=RELOAD
    )
    queue_ageing_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds in the queue that raise a request's priority by one level",
        json_schema_extra=RELOAD,
    )
    lora_allowed_dirs: CommaList = Field(
        [],
        description="Folders that LoRA adapters may be loaded from and downloaded to, as the engines see "
        "them (comma list); empty = `adapters` in STATE_DIR, DOWNLOAD_DIR and DOWNLOAD_ALLOWED_DIRS",
        json_schema_extra=RELOAD | {"allowed": "absolute paths of folders, separated by commas"},
    )
    breaker_failures: int = Field(
        3,
        ge=1,
        le=100,
        description="Failures in a row that open an endpoint's circuit: it gets no requests for "
        "BREAKER_REST_S",
        json_schema_extra=RELOAD,
    )
    breaker_rest_s: float = Field(
        15.0,
        gt=0,
        le=3600,
        description="Seconds that an endpoint's circuit stays open before one request tries it again",
        json_schema_extra=RELOAD,
    )

    kv_events: Switch = Field(
        True,
        description="0 = the sidecar does not follow the engine's KV events, although it has the names of a "
        "pod and a model",
    )
    vllm_zmq_endpoint: str = Field(
        "tcp://localhost:5557", description="Where vLLM publishes its KV events", json_schema_extra=ZMQ
    )
    vllm_zmq_topic_filter: str = Field(
        "kv-events", description="Prefix of the topics of vLLM's KV events; * = all"
    )
    sglang_zmq_endpoint: str = Field(
        "tcp://localhost:5557", description="Where SGLang publishes its KV events", json_schema_extra=ZMQ
    )
    sglang_zmq_topic_filter: str = Field(
        "", description="Prefix of the topics of SGLang's KV events; empty or * = all"
    )
    kv_events_max_blocks: int = Field(
        200_000,
        ge=1,
        le=100_000_000,
        description="Most blocks of an engine's cache that are kept in memory, about 300 bytes each; the "
        "rest is ignored",
    )

    @field_validator("vllm_zmq_endpoint", "sglang_zmq_endpoint")
    @classmethod
    def _zmq(cls, value: str) -> str:
        if not ZMQ_ENDPOINT.fullmatch(value):
            raise ValueError(f"{value!r} is not an address such as tcp://localhost:5557 or ipc:///run/kv")
        return value

    @field_validator("lora_allowed_dirs")
    @classmethod
    def _folders(cls, value: list[str]) -> list[str]:
        for folder in value:
            if not folder.startswith("/") or ".." in folder.split("/") or folder.rstrip("/") == "":
                raise ValueError(f"{folder!r} is not an absolute path of a folder below / without '..'")
        return value

    @field_validator("model_aliases")
    @classmethod
    def _aliases(cls, value: list[str]) -> list[str]:
        wrong = [entry for entry in value if "=" in entry and not all(map(str.strip, entry.split("=", 1)))]
        if wrong:
            shown = ", ".join(map(repr, wrong))
            raise ValueError(f"a name or a model is missing in {shown}: write `name` or `name=model`")
        return value

    @field_validator("novita_api_key")
    @classmethod
    def _key(cls, value: SecretStr) -> SecretStr:
        check_key(value.get_secret_value())
        return value

    @field_validator("novita_openai_endpoints")
    @classmethod
    def _endpoints(cls, value: list[str]) -> list[str]:
        for address in value:
            check_address(address)
        if not value:
            raise ValueError("must hold at least one address")
        return value
