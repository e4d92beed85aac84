"""The settings of the downloads package: where to, from where, with which credentials."""

from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from appliance.base.setting_types import CommaList, HttpAddress, Switch
from appliance.base.settings import PackageSettings

RELOAD: dict[str, Any] = {"reload": True}


class DownloadSettings(PackageSettings):
    """What may be downloaded, where to, and the operator's own credentials for the sources."""

    download_dir: Path | None = Field(
        None,
        description="Folder of downloads that name none; default `models` in STATE_DIR",
        json_schema_extra={"allowed": "a writable folder"},
    )
    download_allowed_hosts: CommaList = Field(
        [],
        description="Hosts allowed in https:// sources, such as `files.example.com,*.example.org`; empty = "
        "https:// is refused. A private address must be listed as well, or its network (10.0.0.0/8)",
        json_schema_extra=RELOAD | {"allowed": "a comma list"},
    )
    download_allowed_dirs: CommaList = Field(
        [],
        description="Folders that pvc:// and file:// sources may read, and that downloads may be written to, "
        "besides DOWNLOAD_DIR; LoRA adapters may be there, too, unless LORA_ALLOWED_DIRS says otherwise",
        json_schema_extra=RELOAD | {"allowed": "a comma list of absolute paths"},
    )
    download_jobs: int = Field(
        2, ge=1, le=32, description="Downloads that run at the same time; further ones are queued"
    )
    download_resume: Switch = Field(
        True, description="Whether interrupted downloads continue at the next start"
    )
    download_max_workers: int = Field(
        16,
        ge=1,
        le=64,
        description="Maximum of files, and parts of large files, that one download fetches at a time",
        json_schema_extra=RELOAD,
    )
    hf_auth_token: SecretStr = Field(
        SecretStr(""),
        description="Token for hf:// sources; a download's own `hf_token` wins",
        json_schema_extra=RELOAD,
    )
    hf_endpoint: HttpAddress = Field(
        "https://huggingface.co",
        description="Server of hf:// sources: Hugging Face, or one with the same API",
        json_schema_extra=RELOAD | {"allowed": "an http(s) address"},
    )
    hf_revision: str = Field(
        "", description="Revision of hf:// sources that name none; default main", json_schema_extra=RELOAD
    )
    ms_token: SecretStr = Field(
        SecretStr(""), description="Token for ms:// sources (ModelScope)", json_schema_extra=RELOAD
    )
    ms_revision: str = Field(
        "", description="Revision of ms:// sources that name none; default master", json_schema_extra=RELOAD
    )
    access_key: SecretStr = Field(
        SecretStr(""), description="Access key for s3:// and obs:// sources", json_schema_extra=RELOAD
    )
    secret_key: SecretStr = Field(
        SecretStr(""), description="Secret key for s3:// and obs:// sources", json_schema_extra=RELOAD
    )
    endpoint: HttpAddress = Field(
        "",
        description="Server of s3:// and obs:// sources; empty = Amazon's",
        json_schema_extra=RELOAD | {"allowed": "an http(s) address"},
    )
