"""What the tests of downloads share: engines with short time-outs, and what a folder contains."""

import os
import random
from collections.abc import Mapping
from pathlib import Path

from appliance.base.proxies import Proxies
from appliance.downloads.contract import DownloadProgress, DownloadRequest
from appliance.downloads.engine import DownloadEngine
from appliance.downloads.settings import DownloadSettings
from appliance.downloads.sources.contract import SourceTimeouts

QUICK = SourceTimeouts(
    connect_s=3, first_byte_s=3, idle_s=1, tries=3, first_pause_s=0.01, longest_pause_s=0.05
)
MIB = 1 << 20


def settings(**values: object) -> DownloadSettings:
    return DownloadSettings.from_env({name.upper(): str(value) for name, value in values.items()})


def engine(
    root: Path | None = None,
    *,
    is_trusted: bool = False,
    ssl_context: object = None,
    timeouts: SourceTimeouts = QUICK,
    proxies: Mapping[str, str] | None = None,
    **values: object,
) -> DownloadEngine:
    """Return an engine that may write below `root`. `proxies`: the variables that name some."""
    return DownloadEngine(
        settings(**values),
        output_roots=None if root is None else (root,),
        is_trusted=is_trusted,
        timeouts=timeouts,
        ssl_context=ssl_context,
        proxies=Proxies.from_environ(proxies or {}),
    )


def download_request(
    source: str, folder: Path, config: Mapping[str, str] | None = None, workers: int = 4
) -> DownloadRequest:
    return DownloadRequest(source, folder, workers, config or {})


def random_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, except our own."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in {".lock", ".download", ".download.json"}
    }


def leftovers(folder: Path) -> list[str]:
    """Return what a download left of its own, except the manifest and the (empty) lock file."""
    return sorted(os.listdir(folder / ".download")) if (folder / ".download").exists() else []


class ProgressLog(list[DownloadProgress]):
    """All reports of a download's progress."""

    def phases(self) -> list[str]:
        found: list[str] = []
        for progress in self:
            if not found or found[-1] != progress.phase:
                found.append(progress.phase)
        return found
