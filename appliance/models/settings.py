"""Settings of the models' room; the table itself is in the file of CONFIG_PATH, or is the folder MODEL_DIR."""

from pathlib import Path
from typing import Any

from pydantic import Field

from appliance.base.settings import RoomSettings

RELOAD: dict[str, Any] = {"reload": True}


class ModelSettings(RoomSettings):
    """What the operator says about model files."""

    llama_server_path: Path | None = Field(
        None, description="The llama-server that runs models; wins over the file of CONFIG_PATH; else the one in PATH",
        json_schema_extra=RELOAD | {"allowed": "a program"})
    base_models_path: Path | None = Field(None, description="Where relative paths of models begin; wins over the file of CONFIG_PATH",
                                          json_schema_extra=RELOAD | {"allowed": "a folder"})
    model_dir: Path | None = Field(None, description="A folder of .gguf files: each is a model by its file's name",
                                   json_schema_extra=RELOAD | {"allowed": "a folder"})
