"""The settings of the models package. The model table is in the file of CONFIG_PATH, or is MODEL_DIR."""

from pathlib import Path
from typing import Any

from pydantic import Field

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
        description="Where relative paths of models begin; wins over the file of CONFIG_PATH",
        json_schema_extra=RELOAD | {"allowed": "a folder"},
    )
    model_dir: Path | None = Field(
        None,
        description="A folder of .gguf files: each is a model by its file's name",
        json_schema_extra=RELOAD | {"allowed": "a folder"},
    )
    model_log_dir: Path | None = Field(
        None,
        description="Where each llama-server's log is kept; else `model-logs` in STATE_DIR",
        json_schema_extra={"allowed": "a folder that can be written"},
    )
    model_swap_wait_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        description="Longest that requests for a model wait for others to be served together "
        "before a place is cleared for theirs; 0 = at once, as soon as running answers have ended",
        json_schema_extra=RELOAD,
    )
    model_look_s: float = Field(
        30.0, gt=0, le=3600, description="Seconds between two looks at the health of each loaded model"
    )
    model_first_port: int = Field(
        FIRST_PORT,
        ge=1024,
        le=65_535,
        description="Lowest port on loopback that a llama-server of ours is given",
    )
    model_last_port: int = Field(LAST_PORT, ge=1024, le=65_535, description="Highest of them")
    status_port: int | None = Field(
        None,
        ge=1,
        le=65_535,
        description="Port that tells the models' status while everything else still "
        "starts (`/health`, `/status`, `/status/stream`), such as 8001; empty = none",
    )
    status_host: str = Field("127.0.0.1", description="Address of STATUS_PORT; it asks for no key")
