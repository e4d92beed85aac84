"""The settings of the models package. The model table is in the file of CONFIG_PATH, or is MODEL_DIR."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from appliance.base.setting_types import HOST, ListenHost
from appliance.base.settings import PackageSettings

# The ports of our own llama-servers, unless MODEL_FIRST_PORT and MODEL_LAST_PORT say otherwise.
FIRST_PORT, LAST_PORT = 8085, 8584
RELOAD: dict[str, Any] = {"reload": True}


class ModelSettings(PackageSettings):
    """Which llama-server runs the models, where the model files are, and where the status is served."""

    llama_server_path: Path | None = Field(
        None,
        description="The llama-server for models; wins over the file of CONFIG_PATH; else the one in PATH",
        json_schema_extra=RELOAD | {"allowed": "a program"},
    )
    base_models_path: Path | None = Field(
        None,
        description="Base folder of relative model paths; wins over the file of CONFIG_PATH",
        json_schema_extra=RELOAD | {"allowed": "a folder"},
    )
    model_dir: Path | None = Field(
        None,
        description="A folder of .gguf files; each file is a model, named after the file",
        json_schema_extra=RELOAD | {"allowed": "a folder"},
    )
    model_log_dir: Path | None = Field(
        None,
        description="Folder of the llama-servers' logs; default `model-logs` in STATE_DIR",
        json_schema_extra={"allowed": "a writable folder"},
    )
    model_swap_wait_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Longest time in seconds that requests for a model which is not loaded wait before a "
        "loaded model is unloaded; 0 = only until its running requests end",
        json_schema_extra=RELOAD,
    )
    model_look_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds between two health checks of each loaded model"
    )
    model_files_look_s: float = Field(
        3.0,
        ge=0,
        le=3600,
        description="Seconds for which a file of MODEL_DIR or of a model must have stayed the same, unless "
        "it was seen to be finished; also those between two looks where the kernel does not tell of changes. "
        "0 = no looks: new files are seen at a reload, changed ones at the next load",
    )
    model_first_port: int = Field(
        FIRST_PORT,
        ge=1024,
        le=65_535,
        description="Lowest port on loopback for the appliance's llama-servers",
    )
    model_last_port: int = Field(
        LAST_PORT,
        ge=1024,
        le=65_535,
        description="Highest port on loopback for the appliance's llama-servers",
    )
    status_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port of the models' status, available during the start already (`/health`, `/status`, "
        "`/status/stream`), such as 8001; empty = none",
    )
    status_host: ListenHost = Field(
        "127.0.0.1",
        description="Address of STATUS_PORT; requests need no key",
        json_schema_extra={"allowed": HOST},
    )

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.model_first_port > self.model_last_port:
            raise ValueError(
                f"MODEL_LAST_PORT: {self.model_last_port} is below MODEL_FIRST_PORT "
                f"({self.model_first_port}), so that no port is left. Change one of them."
            )
        return self
