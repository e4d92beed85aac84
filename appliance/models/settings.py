"""Settings of the models' room; the table itself is in the file of CONFIG_PATH, or is the folder MODEL_DIR."""

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from appliance.base.settings import CommaList, PackageSettings, Switch

FIRST_PORT, LAST_PORT = (
    8085,
    8584,
)  # of those that llama-servers of ours are given, where nothing else is said
RELOAD: dict[str, Any] = {"reload": True}


class ModelSettings(PackageSettings):
    """What the operator says about model files."""

    llama_server_path: Path | None = Field(
        None,
        description="The llama-server that runs models; wins over the file of CONFIG_PATH; else the one in PATH",
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
    download_dir: Path | None = Field(
        None,
        description="Where downloads are put that name no folder; else `models` in STATE_DIR",
        json_schema_extra={"allowed": "a folder that can be written"},
    )
    download_allowed_hosts: CommaList = Field(
        [],
        description="Hosts that https:// sources may name, such as `files.example.com,*.example.org`; none = https:// is refused. A private "
        "address is reached only when it, or its network (10.0.0.0/8), is listed here, too",
        json_schema_extra=RELOAD | {"allowed": "a comma list"},
    )
    download_allowed_dirs: CommaList = Field(
        [],
        description="Folders that pvc:// and file:// sources may read, and that downloads may be put in besides DOWNLOAD_DIR",
        json_schema_extra=RELOAD | {"allowed": "a comma list of absolute paths"},
    )
    download_jobs: int = Field(
        2, ge=1, le=32, description="Downloads that run at the same time; further ones wait"
    )
    download_resume: Switch = Field(
        True, description="Whether downloads that the end of the appliance cut off go on at its next start"
    )
    download_max_workers: int = Field(
        16,
        ge=1,
        le=64,
        description="Most files, and parts of large files, that one download fetches at a time",
        json_schema_extra=RELOAD,
    )
    hf_auth_token: SecretStr = Field(
        SecretStr(""),
        description="Token for hf:// sources; a download's own `hf_token` wins",
        json_schema_extra=RELOAD,
    )
    hf_endpoint: str = Field(
        "https://huggingface.co",
        description="Where hf:// sources are fetched from: Hugging Face, or what serves its API",
        json_schema_extra=RELOAD | {"allowed": "an http(s) address"},
    )
    hf_revision: str = Field(
        "", description="Revision of hf:// sources that name none; else main", json_schema_extra=RELOAD
    )
    ms_token: SecretStr = Field(
        SecretStr(""), description="Token for ms:// sources (ModelScope)", json_schema_extra=RELOAD
    )
    ms_revision: str = Field(
        "", description="Revision of ms:// sources that name none; else master", json_schema_extra=RELOAD
    )
    access_key: SecretStr = Field(
        SecretStr(""), description="Access key for s3:// and obs:// sources", json_schema_extra=RELOAD
    )
    secret_key: SecretStr = Field(
        SecretStr(""), description="Secret key for s3:// and obs:// sources", json_schema_extra=RELOAD
    )
    endpoint: str = Field(
        "",
        description="Where s3:// and obs:// sources are fetched from; empty = Amazon's",
        json_schema_extra=RELOAD | {"allowed": "an http(s) address"},
    )
