"""Settings of the control API."""

from pathlib import Path

from pydantic import Field, SecretStr

from appliance.base.setting_types import HOST, ListenHost, Switch
from appliance.base.settings import PackageSettings


class ControlSettings(PackageSettings):
    """Where the control API listens, and how callers authenticate."""

    control: Switch = Field(True, description="0 = no control API")
    control_host: ListenHost = Field(
        "127.0.0.1",
        description="Address of the control API; beyond loopback a token or mutual TLS is required",
        json_schema_extra={"allowed": HOST},
    )
    control_port: int = Field(
        50051, ge=0, le=65_535, description="Port of the control API; 0 = none (only CONTROL_SOCKET)"
    )
    control_socket: Path | None = Field(
        None,
        description="Path of a unix socket for the control API",
        json_schema_extra={"allowed": "an absolute path"},
    )
    control_token: SecretStr = Field(
        SecretStr(""), description="Token that callers of the control API must send"
    )
    control_tls_cert: Path | None = Field(
        None,
        description="Certificate of the control API (PEM file)",
        json_schema_extra={"allowed": "a PEM file"},
    )
    control_tls_key: Path | None = Field(
        None,
        description="Private key of the control API (PEM file)",
        json_schema_extra={"allowed": "a PEM file"},
    )
    control_tls_client_ca: Path | None = Field(
        None,
        description="CA of client certificates; callers must have one (mutual TLS)",
        json_schema_extra={"allowed": "a PEM file"},
    )
    grpc_port: int = Field(
        0,
        ge=0,
        le=65_535,
        description="Port of the gRPC API of aiserve-gpuproxyd (`gpuproxy.GPUProxyService`), with "
        "ACCOUNTS=1; 0 = none",
    )
    grpc_host: ListenHost = Field(
        "127.0.0.1", description="Address of GRPC_PORT", json_schema_extra={"allowed": HOST}
    )
    grpc_tls_cert: Path | None = Field(
        None, description="Certificate of GRPC_PORT (PEM file)", json_schema_extra={"allowed": "a PEM file"}
    )
    grpc_tls_key: Path | None = Field(
        None, description="Private key of GRPC_PORT (PEM file)", json_schema_extra={"allowed": "a PEM file"}
    )
