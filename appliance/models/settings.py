"""Settings of the models' room; the table itself is in the file of CONFIG_PATH, or is the folder MODEL_DIR."""

from pathlib import Path

from pydantic import Field

from appliance.base.settings import RoomSettings


class ModelSettings(RoomSettings):
    """What the operator says about model files."""

    llama_server_path: Path | None = Field(
        None, description="The llama-server that runs models; wins over the file of CONFIG_PATH; else the one in PATH",
        json_schema_extra={"allowed": "a program"})
    base_models_path: Path | None = Field(None, description="Where relative paths of models begin; wins over the file of CONFIG_PATH",
                                          json_schema_extra={"allowed": "a folder"})
    model_dir: Path | None = Field(None, description="A folder of .gguf files: each is a model by its file's name",
                                   json_schema_extra={"allowed": "a folder"})
    status_port: int | None = Field(None, ge=1, le=65_535, description="Port that tells the models' status while everything else still "
                                    "starts (`/health`, `/status`, `/status/stream`), such as 8001; empty = none")
    status_host: str = Field("127.0.0.1", description="Address of STATUS_PORT; it asks for no key")
