"""Settings of the HTTP interface: where it listens, who may call, what is bounded."""

import re
from typing import Any

from pydantic import Field, SecretStr, field_validator

from appliance.base.setting_types import HOST, CommaList, ListenHost, Switch, is_remote_host
from appliance.base.settings import PackageSettings

MIN_KEY_CHARS = 8
# A slash at the end is no part of an origin, and is ignored.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(?::(?P<port>[0-9]{1,5}))?/?",
    re.IGNORECASE,
)
RELOAD: dict[str, Any] = {"reload": True}
KEYS: dict[str, Any] = RELOAD | {"allowed": "keys of at least 8 characters, separated by commas or lines"}


class FrontSettings(PackageSettings):
    """The settings of the HTTP interface."""

    proxy_host: ListenHost = Field(
        "127.0.0.1",
        description="Address to listen on; the image sets 0.0.0.0",
        json_schema_extra={"allowed": HOST},
    )
    proxy_port: int = Field(
        14000, ge=1, le=65_535, description="Port of the HTTP API; `PORT` is used where this is not set"
    )
    sidecar_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of the sidecar's addresses (`/health`, `/ready`, `/metrics`, adapters, downloads), "
        "such as 9000; empty = none",
    )
    sidecar_host: ListenHost = Field(
        "127.0.0.1", description="Address of SIDECAR_PORT", json_schema_extra={"allowed": HOST}
    )
    sidecar_backend: str = Field(
        "", description="The backend that the sidecar's addresses are about; empty = the first one"
    )
    sidecar_model: str = Field(
        "",
        description="The model's name in the index of KV blocks, with POD_NAME (docs/kv-events.md); empty = "
        "the sidecar does not follow KV events",
    )
    pod_name: str = Field(
        "", description="This pod's name: the sidecar reports it on `/ready` and in the index of KV blocks"
    )
    appliance_api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that clients must send (comma or line list); empty = open to all",
        json_schema_extra=KEYS,
    )
    operator_api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys for operator-only addresses such as /receipts; empty = those are for callers on "
        "this machine, or any key of APPLIANCE_API_KEYS",
        json_schema_extra=KEYS,
    )
    stay_local_api_keys: SecretStr = Field(
        SecretStr(""),
        description="Those of the client keys whose requests are answered by own backends only, never by an "
        "overflow or the hosted API",
        json_schema_extra=KEYS,
    )
    cors_origins: CommaList = Field(
        [],
        description="Web origins that browsers may call from (comma list, * = all)",
        json_schema_extra=RELOAD | {"allowed": "origins such as https://app.example, or *"},
    )
    allowed_hosts: CommaList = Field(
        [],
        description="Further host names that clients on this machine may use in `Host`, and pages in "
        "`Origin`, where no APPLIANCE_API_KEYS are set (comma list, *.example.com, * = all)",
        json_schema_extra=RELOAD | {"allowed": "host names such as models.example.com or *.example.com"},
    )
    max_body_bytes: int = Field(
        33_554_432,
        ge=1024,
        le=1_073_741_824,
        description="Largest request body in bytes",
        json_schema_extra=RELOAD,
    )
    max_header_bytes: int = Field(32_768, ge=1024, le=1_048_576, description="Largest request head in bytes")
    max_connections: int = Field(10_000, ge=1, le=1_000_000, description="Most open client connections")
    header_timeout_s: float = Field(
        15.0, gt=0, le=600, description="Seconds a client has to send a request head"
    )
    body_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Seconds a client may pause while it sends a body"
    )
    keepalive_timeout_s: float = Field(
        75.0, gt=0, le=3600, description="Seconds an idle connection stays open"
    )
    write_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="Seconds a client may stop reading a response"
    )
    heartbeat_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds between heartbeats to streaming clients that wait; 0 = none",
        json_schema_extra=RELOAD,
    )
    responses_keep_s: float = Field(
        3600.0,
        ge=0,
        le=604_800,
        description="Seconds for which `/v1/responses` keeps a response in memory after its last use; 0 = "
        "not at all",
    )
    passthrough: Switch = Field(
        True,
        description="1 = requests at other addresses are passed on to a backend, unchanged; 0 = 404",
        json_schema_extra=RELOAD,
    )
    ui: Switch = Field(
        True,
        description="1 = the web UI at /ui/, to which a browser at / is led; 0 = there is none",
    )
    access_log: Switch = Field(
        True,
        description="One line in the log per request; unset, there are none at LOG_LEVEL=warning and error",
        json_schema_extra=RELOAD,
    )
    shutdown_grace_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running requests get after SIGTERM"
    )

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, value: list[str]) -> list[str]:
        """Refuse what no browser sends as `Origin`: such an entry would allow nothing."""
        for entry in value:
            if entry not in {"*", "null"} and not _is_origin(entry):
                raise ValueError(
                    f"{entry!r} is no origin: it must be a scheme and a host, with a port where the page has "
                    "one, such as https://app.example or http://localhost:3000, or * for all"
                )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, value: list[str]) -> list[str]:
        """Refuse what no `Host` can be: such an entry would allow nothing."""
        for entry in value:
            if entry != "*" and not is_remote_host(entry.removeprefix("*.")):
                raise ValueError(
                    f"{entry!r} is no host name: give it without a scheme, port or path, such as "
                    "models.example.com or *.example.com, or * for all"
                )
        return value

    @field_validator("appliance_api_keys", "operator_api_keys", "stay_local_api_keys")
    @classmethod
    def _check_length(cls, value: SecretStr) -> SecretStr:
        keys = split_keys(value)
        if value.get_secret_value() and not keys:
            raise ValueError("it holds no key, only separators; unset it, or give a key")
        if any(len(key) < MIN_KEY_CHARS for key in keys):
            raise ValueError(f"a key is shorter than {MIN_KEY_CHARS} characters; use long random keys")
        return value


def _is_origin(text: str) -> bool:
    """Whether a text is an origin; schemes of applications, such as tauri, may have any host."""
    found = _ORIGIN.fullmatch(text)
    if found is None:
        return False
    is_web, port = found["scheme"].lower() in {"http", "https"}, found["port"]
    return (not is_web or is_remote_host(found["host"].strip("[]"))) and (port is None or int(port) <= 65_535)


def split_keys(value: SecretStr) -> list[str]:
    """Return the single keys of a list of keys (commas or lines between them)."""
    lines = value.get_secret_value().splitlines()
    return [key for line in lines for key in (part.strip() for part in line.split(",")) if key]
