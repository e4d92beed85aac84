"""Settings of the host package: machine-id, GPU identity, NAT, worker."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from appliance.base.setting_types import Switch
from appliance.base.settings import PackageSettings

UUID_SHAPE = re.compile(r"GPU-[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
BUS_ID_SHAPE = re.compile(r"[0-9A-Fa-f]{8}:[0-9A-Fa-f]{2}:[01][0-9A-Fa-f]\.[0-7]")
DRIVER_SHAPE = re.compile(r"\d{3}\.\d{2,3}(\.\d{2})?")
OUR_SECRETS = ("NOVITA_API_KEY", "APPLIANCE_API_KEYS", "OPERATOR_API_KEYS", "CONTROL_TOKEN")
KUZCO_COMMAND = "inference node start --code {code}"


def _mebibytes(value: object) -> object:
    """Accept `24576`, `24576 MiB` and `24 GiB`, as people write memory sizes."""
    if isinstance(value, str) and (
        match := re.fullmatch(r"\s*(\d+)\s*(MiB|MB|GiB|GB)?\s*", value, re.IGNORECASE)
    ):
        return int(match[1]) * (1024 if (match[2] or "").lower().startswith("g") else 1)
    return value


class HostSettings(PackageSettings):
    """The machine: machine-id, GPU, NAT, worker."""

    state_dir: Path = Field(
        Path("/var/lib/appliance"),
        description="The one writable folder for everything that must outlast a restart",
        json_schema_extra={"allowed": "an absolute path of a writable folder"},
    )
    machine_id_path: Path = Field(
        Path("/etc/machine-id"),
        description="File of the machine-id; it is read, and written if possible",
        json_schema_extra={"allowed": "an absolute path"},
    )
    gpu_mode: Literal["auto", "real", "simulated", "none"] = Field(
        "auto",
        description="What nvidia-smi reports: auto = the real GPU if there is one, else none; simulated = a "
        "simulated GPU that says so in every name (development, CI and fleet tests)",
    )
    gpu_spoof_uuid: str = Field(
        "",
        description="Simulated GPU: its UUID; empty = generated at the first call of a run",
        json_schema_extra={"allowed": "GPU- and a UUID, GPU-XXXXXXXX-XXXX-XXXX-XXXX-XXXXXXXXXXXX"},
    )
    gpu_spoof_pci_bus_id: str = Field(
        "",
        description="Simulated GPU: its PCI bus id; empty = generated at the first call of a run",
        json_schema_extra={"allowed": "a bus id, 00000000:BB:DD.F in hexadecimal"},
    )
    gpu_spoof_name: str = Field(
        "NVIDIA GeForce RTX 4090",
        max_length=64,
        description="Simulated GPU: its name; ` (simulated)` is always added",
        json_schema_extra={"allowed": "1 to 64 printable ASCII characters"},
    )
    gpu_spoof_driver: str = Field(
        "535.00",
        description="Simulated GPU: the driver version",
        json_schema_extra={"allowed": "a driver version, 535.00 or 535.104.05"},
    )
    gpu_spoof_memory_total: Annotated[int, BeforeValidator(_mebibytes)] = Field(
        24576, ge=1, le=1_048_576, description="Simulated GPU: memory in MiB (24576, 24576 MiB, 24 GiB)"
    )
    gpu_spoof_state_dir: Path = Field(
        Path("/var/run/gpu-spoof"),
        description="Simulated GPU: folder for its identity during this run",
        json_schema_extra={"allowed": "an absolute path"},
    )
    gpu_sim_count: int = Field(1, ge=1, le=16, description="Simulated GPU: how many GPUs")
    nat_redirect: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Redirect tcp 14444 to PROXY_PORT: auto = by a NAT rule if the container has NET_ADMIN, "
        "else by a second listener on 127.0.0.1:14444; on = by a rule, else the start fails; off = neither",
    )
    nat_forwarded: Switch = Field(
        False, description="Redirect traffic from other machines too, not only from local clients"
    )
    worker: Literal["", "kuzco"] = Field(
        "",
        description="A worker CLI to run in the container: kuzco = `inference node start --code CODE`",
        json_schema_extra={"allowed": "kuzco, or empty"},
    )
    worker_command: str = Field(
        "",
        description="The command line of a worker to run in the container (split as a shell would)",
        json_schema_extra={"allowed": "a command line"},
    )
    code: SecretStr = Field(
        SecretStr(""), description="The worker's registration code; required with WORKER=kuzco"
    )
    keepalive: Switch = Field(False, description="Restart the worker when it exits, with growing pauses")
    worker_env: str = Field(
        "",
        description="Names of further variables that the worker gets (never the appliance's own secrets)",
        json_schema_extra={"allowed": "a comma list of variable names"},
    )
    worker_stop_grace_s: float = Field(
        10.0, ge=0, le=600, description="Seconds between SIGTERM and SIGKILL when the worker is stopped"
    )
    worker_restart_min_s: float = Field(
        5.0, gt=0, le=3600, description="KEEPALIVE=1: seconds before the first restart"
    )
    worker_restart_max_s: float = Field(
        300.0, gt=0, le=86_400, description="KEEPALIVE=1: longest pause in seconds"
    )
    worker_crash_limit: int = Field(
        10,
        ge=1,
        le=1000,
        description="KEEPALIVE=1: the worker stays stopped after so many runs in a row of less than a minute",
    )
    worker_allow_simulated_gpu: Switch = Field(
        False,
        description="1 = start the worker although the GPU is simulated; only for networks that accept this",
    )

    @field_validator("state_dir", "machine_id_path", "gpu_spoof_state_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        if not value.is_absolute():
            raise ValueError(
                "the path must be absolute: several processes with different working folders use it"
            )
        return value

    @field_validator("worker_env")
    @classmethod
    def _no_secrets(cls, value: str) -> str:
        for name in (piece.strip() for piece in value.split(",")):
            if any(word in name.upper() for word in OUR_SECRETS):
                raise ValueError(f"a worker never gets {name}, a secret of the appliance; remove it")
        return value

    @field_validator("gpu_spoof_uuid")
    @classmethod
    def _uuid(cls, value: str) -> str:
        if value and not UUID_SHAPE.fullmatch(value):
            raise ValueError("not a GPU UUID; unset it to have one generated")
        return value

    @field_validator("gpu_spoof_pci_bus_id")
    @classmethod
    def _bus_id(cls, value: str) -> str:
        if value and not BUS_ID_SHAPE.fullmatch(value):
            raise ValueError(
                "not a PCI bus id (domain of 8 digits, bus, device 00-1F, function 0-7); "
                "unset it to have one generated"
            )
        return value.upper()

    @field_validator("gpu_spoof_name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not value.isascii() or not value.isprintable() or "," in value:
            raise ValueError("a GPU name is 1 to 64 printable ASCII characters without a comma")
        return value

    @field_validator("gpu_spoof_driver")
    @classmethod
    def _driver(cls, value: str) -> str:
        if not DRIVER_SHAPE.fullmatch(value):
            raise ValueError("not a driver version; write it like 535.00 or 535.104.05")
        return value

    @model_validator(mode="after")
    def _worker(self) -> "HostSettings":
        if self.worker and self.worker_command:
            raise ValueError("WORKER_COMMAND: WORKER and WORKER_COMMAND are both set; unset one of them")
        if self.worker == "kuzco" and not self.code.get_secret_value():
            raise ValueError("CODE: WORKER=kuzco needs the registration code; set CODE or CODE_FILE")
        return self
