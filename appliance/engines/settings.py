"""Settings of the engines room: backends and how one is chosen, the hosted API, model names, streaming."""

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from appliance.base.balancing import STRATEGIES
from appliance.base.settings import CommaList, PackageSettings, SemicolonList, Switch

RELOAD: dict[str, Any] = {"reload": True}
ZMQ: dict[str, Any] = {"allowed": "tcp://host:port or ipc:///path"}
ZMQ_ENDPOINT = re.compile(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\s:/*\[\]]+):[0-9]{1,5}|ipc://\S+")


class EngineSettings(PackageSettings):
    """Who answers, under which names, and how streams are made."""

    novita_api_key: SecretStr = Field(
        SecretStr(""),
        description="Key of the hosted API; without one, and without BACKENDS, the built-in demo engine answers",
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
        description="The model asked of the hosted API",
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
        description="Further names for the same model (comma list); `name=model` means a model of a backend",
        json_schema_extra=RELOAD | {"allowed": "names separated by commas"},
    )
    model_strict: Switch = Field(
        False,
        description="1 = unknown model names get 404; 0 = any name is answered by PUBLIC_MODEL",
        json_schema_extra=RELOAD,
    )
    upstream_streaming: Literal["auto", "relay", "simulate"] = Field(
        "auto",
        description="auto = ask for a real stream, pace out what comes in one piece; relay = real streams only; "
        "simulate = always ask for one piece and pace it out",
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
        description="Seconds to reach an endpoint (DNS, TCP, TLS)",
        json_schema_extra=RELOAD,
    )
    upstream_first_byte_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="Seconds until an endpoint's first byte", json_schema_extra=RELOAD
    )
    upstream_idle_timeout_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds an endpoint may be silent in a stream",
        json_schema_extra=RELOAD,
    )
    upstream_total_timeout_s: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds for all attempts of one request together",
        json_schema_extra=RELOAD,
    )
    upstream_max_connections: int = Field(
        1024, ge=1, le=65_535, description="Most connections to the endpoints at a time"
    )
    backends: CommaList = Field(
        [],
        description="Servers that answer: llama.cpp, vLLM, SGLang or any OpenAI-compatible one (comma list; `name=address` names one)",
        json_schema_extra=RELOAD | {"allowed": "addresses such as http://llm-1:8080, separated by commas"},
    )
    config_path: Path | None = Field(
        None,
        description="A JSON file with `backends` and `pools`, for what does not fit into BACKENDS (docs/backends.md), and with `models` and "
        "`system` (etc/models.example.json)",
        json_schema_extra=RELOAD | {"allowed": "a readable file"},
    )
    lb_enabled: Switch = Field(
        True,
        description="0 = always the first backend that can take a request, in the order given",
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
        description="The pool that is asked when every one of BACKENDS is full or down: `hosted`, or one of the "
        "configuration file; empty = none",
        json_schema_extra=RELOAD | {"allowed": "the name of a pool"},
    )
    metrics_cache_ttl_seconds: float = Field(
        3.0,
        gt=0,
        le=300,
        description="Seconds between two looks at a backend's health and metrics",
        json_schema_extra=RELOAD,
    )
    request_timeout: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds for a question of the sidecar to its engine, such as a scrape of its metrics",
        json_schema_extra=RELOAD,
    )
    backend_timeout_seconds: float = Field(
        300.0,
        gt=0,
        le=86_400,
        description="Seconds until a backend's answer begins, all attempts and the time in line together",
        json_schema_extra=RELOAD,
    )
    max_allowed_request_queue: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Most requests that a backend works on at a time; 0 = llama.cpp: "
        "its slots, others: what they take without making requests wait",
        json_schema_extra=RELOAD,
    )
    max_allowed_deferred: int = Field(
        2,
        ge=1,
        le=1_000_000,
        description="A backend with so many requests waiting inside it gets no more",
        json_schema_extra=RELOAD,
    )
    backend_startup_grace_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Seconds after its first mention in which a backend that does not "
        "answer yet is starting, not down",
        json_schema_extra=RELOAD,
    )
    slow_start_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds over which a backend that came back gets its full share again; 0 = at once",
        json_schema_extra=RELOAD,
    )
    queue_limit: int = Field(
        512,
        ge=0,
        le=1_000_000,
        description="Most requests that wait in line while every backend is full; 0 = none waits",
        json_schema_extra=RELOAD,
    )
    queue_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Longest time in line in seconds", json_schema_extra=RELOAD
    )
    queue_ageing_s: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Seconds in line that raise a request's priority by one level",
        json_schema_extra=RELOAD,
    )
    lora_allowed_dirs: CommaList = Field(
        [],
        description="Folders that LoRA adapters may be loaded from and downloaded to, as the engines see them (comma list); "
        "empty = `adapters` in STATE_DIR, and DOWNLOAD_DIR",
        json_schema_extra=RELOAD | {"allowed": "absolute paths of folders, separated by commas"},
    )
    breaker_failures: int = Field(
        3,
        ge=1,
        le=100,
        description="Failures in a row after which an endpoint is rested",
        json_schema_extra=RELOAD,
    )
    breaker_rest_s: float = Field(
        15.0,
        gt=0,
        le=3600,
        description="Seconds an endpoint is rested before one request tries it again",
        json_schema_extra=RELOAD,
    )

    kv_events: Switch = Field(
        True,
        description="0 = the sidecar does not follow the engine's KV events, though it has a pod's and a model's name",
    )
    vllm_zmq_endpoint: str = Field(
        "tcp://localhost:5557", description="Where vLLM publishes its KV events", json_schema_extra=ZMQ
    )
    vllm_zmq_topic_filter: str = Field(
        "kv-events", description="How the topics of vLLM's KV events begin; * = all"
    )
    sglang_zmq_endpoint: str = Field(
        "tcp://localhost:5557", description="Where SGLang publishes its KV events", json_schema_extra=ZMQ
    )
    sglang_zmq_topic_filter: str = Field(
        "", description="How the topics of SGLang's KV events begin; empty or * = all"
    )
    kv_events_max_blocks: int = Field(
        200_000,
        ge=1,
        le=100_000_000,
        description="Most blocks of an engine's cache that are kept in mind, some 300 "
        "bytes each; those beyond are left out",
    )
    redis_host: str = Field(
        "redis-server",
        min_length=1,
        description="The Redis that is told which blocks an engine has (docs/kv-events.md)",
    )
    redis_port: int = Field(
        6379,
        ge=1,
        le=65_535,
        description="Its port; of an address as Kubernetes sets it (`tcp://10.0.0.7:6379`) the port counts",
    )
    redis_db: int = Field(0, ge=0, le=65_535, description="Number of its database")
    redis_password: SecretStr = Field(
        SecretStr(""), description="Its password", json_schema_extra={"allowed": "text"}
    )
    redis_tls: Switch = Field(False, description="1 = by TLS, with a certificate that this machine trusts")

    @field_validator("vllm_zmq_endpoint", "sglang_zmq_endpoint")
    @classmethod
    def _zmq(cls, value: str) -> str:
        if not ZMQ_ENDPOINT.fullmatch(value):
            raise ValueError(f"{value!r} is no address such as tcp://localhost:5557 or ipc:///run/kv")
        return value

    @field_validator("redis_port", mode="before")
    @classmethod
    def _port(cls, value: object) -> object:
        """Kubernetes sets REDIS_PORT in every pod beside a Service `redis`, to an address."""
        return value.rpartition(":")[2] if isinstance(value, str) and value.startswith("tcp://") else value

    @field_validator("lora_allowed_dirs")
    @classmethod
    def _folders(cls, value: list[str]) -> list[str]:
        for folder in value:
            if not folder.startswith("/") or ".." in folder.split("/") or folder.rstrip("/") == "":
                raise ValueError(f"{folder!r} is no absolute path of a folder below /")
        return value

    @field_validator("novita_openai_endpoints")
    @classmethod
    def _endpoints(cls, value: list[str]) -> list[str]:
        for address in value:
            parts = urlsplit(address)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise ValueError(f"{address!r} is no http(s) address")
            if parts.username or parts.password:
                raise ValueError("put no credentials into an address; set NOVITA_API_KEY")
        if not value:
            raise ValueError("name at least one address")
        return value
