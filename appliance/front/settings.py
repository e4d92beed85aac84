"""Settings of the HTTP door: where it listens, who may call, what is bounded."""

from typing import Any

from pydantic import Field, SecretStr, field_validator

from appliance.base.settings import CommaList, PackageSettings, Switch

RELOAD: dict[str, Any] = {"reload": True}


class FrontSettings(PackageSettings):
    """What the operator says about the HTTP door."""

    proxy_host: str = Field("127.0.0.1", description="Address to listen on; the image sets 0.0.0.0")
    proxy_port: int = Field(
        14000,
        ge=1,
        le=65_535,
        description="Port of the HTTP door; `PORT` does the same where this is not set",
    )
    sidecar_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of the sidecar's addresses (`/health`, `/ready`, `/metrics`, "
        "adapters, downloads), such as 9000; empty = none",
    )
    sidecar_host: str = Field("127.0.0.1", description="Address of SIDECAR_PORT")
    sidecar_backend: str = Field(
        "", description="The backend that the sidecar's addresses are about; empty = the first one"
    )
    sidecar_model: str = Field(
        "",
        description="The model's name for the index of KV blocks, with POD_NAME (docs/kv-events.md); empty = the sidecar "
        "does not follow KV events",
    )
    pod_name: str = Field(
        "", description="This pod's name, which the sidecar tells on `/ready` and in the index of KV blocks"
    )
    appliance_api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys that clients must show (comma or line list); empty = open to whoever reaches the port",
        json_schema_extra=RELOAD | {"allowed": "keys of at least 8 characters, separated by commas or lines"},
    )
    operator_api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys for operator-only addresses (receipts); empty = those are for loopback callers, or any key "
        "of APPLIANCE_API_KEYS",
        json_schema_extra=RELOAD | {"allowed": "keys of at least 8 characters, separated by commas or lines"},
    )
    stay_local_api_keys: SecretStr = Field(
        SecretStr(""),
        description="Keys among them whose requests are answered by own backends only, never by an overflow or the hosted API",
        json_schema_extra=RELOAD | {"allowed": "keys of at least 8 characters, separated by commas or lines"},
    )
    cors_origins: CommaList = Field(
        [],
        description="Web origins that browsers may call from (comma list, * = all)",
        json_schema_extra=RELOAD | {"allowed": "origins such as https://app.example, or *"},
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
        15.0, gt=0, le=600, description="Seconds a client has to send a request's head"
    )
    body_timeout_s: float = Field(
        60.0, gt=0, le=3600, description="Seconds a client may pause while it sends a body"
    )
    keepalive_timeout_s: float = Field(
        75.0, gt=0, le=3600, description="Seconds an idle connection stays open"
    )
    write_timeout_s: float = Field(
        120.0, gt=0, le=3600, description="Seconds a client may stop reading an answer"
    )
    heartbeat_s: float = Field(
        10.0,
        ge=0,
        le=600,
        description="Seconds between heartbeats to streaming clients that wait; 0 = none",
        json_schema_extra=RELOAD,
    )
    passthrough: Switch = Field(
        True,
        description="Addresses that are not served here go to a chosen backend as they came; off = 404",
        json_schema_extra=RELOAD,
    )
    access_log: Switch = Field(True, description="One line in the log per request", json_schema_extra=RELOAD)
    shutdown_grace_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running answers get after SIGTERM"
    )

    @field_validator("appliance_api_keys", "operator_api_keys", "stay_local_api_keys")
    @classmethod
    def _keys(cls, value: SecretStr) -> SecretStr:
        if any(len(key) < 8 for key in split_keys(value)):
            raise ValueError("a key is shorter than 8 characters; use long random keys")
        return value


def split_keys(value: SecretStr) -> list[str]:
    """Give the single keys of a list of keys (commas or lines between them)."""
    return [
        key
        for line in value.get_secret_value().splitlines()
        for key in (k.strip() for k in line.split(","))
        if key
    ]
