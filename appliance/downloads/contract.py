"""What a download is: the words that pass between whoever asks for one (doors, command line) and whoever does it (download.py).

Sources (table.py in sources/): hf://ns/repo and the bare ns/repo, s3://, obs://, pvc://, ms://, https:// and file:// where allowed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

DEFAULT_WORKERS, MAX_WORKERS = 8, 64


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What is to be fetched, and where to.

    source       with its scheme, as the caller wrote it; never with credentials in it
    output_dir   absolute; made where it is missing
    max_workers  files (and parts of files) that are fetched at a time
    config       system E's keys: hf_token, hf_endpoint, hf_revision, ms_token, ms_revision, access_key, secret_key, endpoint; also
                 `revision`, `include` and `exclude` (patterns, comma list), `checksum` (of a single file, sha256:…), `path_style` and `region`
                 (of object stores), `anonymous`, `ms_endpoint`
    """

    source: str
    output_dir: Path
    max_workers: int = DEFAULT_WORKERS
    config: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is. Bytes; `fetched_bytes`: what came over the network in this run (less than done_bytes when it was resumed)."""

    files: int = 0
    files_done: int = 0
    total_bytes: int | None = None
    done_bytes: int = 0
    fetched_bytes: int = 0
    rate_bytes_s: float = 0.0
    now: tuple[str, ...] = ()  # the files that are being fetched, by their path below output_dir
    note: str = ""  # who is waited for, what is tried again; for people
    phase: str = "listing"  # waiting (for another process that fetches the same) | listing | fetching | verifying | done


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """What a download came to."""

    output_dir: Path
    files: int
    total_bytes: int
    fetched_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FileFault:
    """A file of a folder that is not as it should be: missing, size, checksum or partial."""

    path: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class SourceOffer:
    """A file that a source has: its path there, its bytes (None = not told), its SHA-256 in hex ("" = not told)."""

    path: str
    size_bytes: int | None = None
    sha256: str = ""


class SourceLister(Protocol):
    """Lists what a source has, without fetching it. Raises as Downloader does."""

    async def __call__(self, source: str, config: Mapping[str, str]) -> list[SourceOffer]: ...


def redact_source(source: str) -> str:
    """Give a source as it may be shown and written down: without user, password and query, which can be a key.

    1. a path of this machine: there a question mark is a letter like others    2. an address    3. others, where an @ names a revision
    """
    try:
        parts = urlsplit(source)
    except ValueError:
        return source.partition("?")[0].rpartition("@")[2]
    if parts.scheme in {"file", "pvc"}:  # 1
        return source
    if parts.scheme in {"http", "https"}:  # 2
        return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    return source.partition("?")[0]  # 3


OnProgress = Callable[[DownloadProgress], None]


class Downloader(Protocol):
    """Fetches. Raises ApplianceError kinds: Invalid (source, config), NotFound, Forbidden, Conflict (no space), UpstreamFailed, TimedOut,
    each naming the file and the reason, never a credential. Cancelling leaves parts that a later run resumes."""

    async def download(
        self, request: DownloadRequest, on_progress: OnProgress = lambda _: None
    ) -> DownloadResult: ...

    async def verify(self, folder: Path) -> list[FileFault]:
        """Hold a folder against what its download wrote down (sizes and checksums)."""
        ...

    async def repair(
        self, folder: Path, on_progress: OnProgress = lambda _: None, config: Mapping[str, str] | None = None
    ) -> DownloadResult:
        """Fetch again what verify finds wrong, from the source that was written down."""
        ...
