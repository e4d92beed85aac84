"""The values that pass between the callers of a download (HTTP, gRPC, command line) and the downloader.

Sources (`sources/table.py`): hf://ns/repo and the bare ns/repo, s3://, obs://, pvc://, ms://, and https://
and file:// where allowed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

DEFAULT_WORKERS, MAX_WORKERS = 8, 64


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """What is fetched, and into which folder.

    Attributes:
        source: With its scheme, as the caller wrote it; never with a user or password in it.
        output_dir: Absolute; created if it is missing.
        max_workers: Files, and parts of files, that are fetched at a time, 1 to `MAX_WORKERS`.
        config: hf_token, hf_endpoint, hf_revision, ms_token, ms_revision, access_key, secret_key, endpoint;
            also `revision`, `include` and `exclude` (patterns, comma list), `checksum` (of a single file,
            sha256:…), `path_style` and `region` (of object stores), `anonymous`, `ms_endpoint`.
    """

    source: str
    output_dir: Path
    max_workers: int = DEFAULT_WORKERS
    config: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is.

    Attributes:
        total_bytes: None = not known.
        fetched_bytes: Received over the network in this run; less than `done_bytes` in a resumed download.
        now: The files that are being fetched, by their path below the output folder.
        note: What it waits for, or why it retries; for people.
        phase: listing | waiting (for another process that fetches into the same folder) | verifying |
            fetching | done.
    """

    files: int = 0
    files_done: int = 0
    total_bytes: int | None = None
    done_bytes: int = 0
    fetched_bytes: int = 0
    rate_bytes_s: float = 0.0
    now: tuple[str, ...] = ()
    note: str = ""
    phase: str = "listing"


@dataclass(frozen=True, slots=True)
class DownloadResult:
    """The result of a download."""

    output_dir: Path
    files: int
    total_bytes: int
    fetched_bytes: int
    seconds: float

    def plus(self, other: "DownloadResult") -> "DownloadResult":
        """Return the sum of two downloads into one folder."""
        return DownloadResult(
            self.output_dir,
            self.files + other.files,
            self.total_bytes + other.total_bytes,
            self.fetched_bytes + other.fetched_bytes,
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class FileFault:
    """A file that is not as it should be. `kind`: missing, size, checksum, partial or unreadable."""

    path: str
    kind: str
    detail: str


@dataclass(frozen=True, slots=True)
class SourceOffer:
    """A file that a source has. `size_bytes` None and `sha256` "" (in hex) = the source does not say."""

    path: str
    size_bytes: int | None = None
    sha256: str = ""


class SourceLister(Protocol):
    """Lists what a source has, without fetching it. Raises what `Downloader` raises."""

    async def __call__(self, source: str, config: Mapping[str, str]) -> list[SourceOffer]:
        """Return the files of a source."""
        ...


OnProgress = Callable[[DownloadProgress], None]


def ignore_progress(_: DownloadProgress) -> None:
    """Ignore progress: the default of `on_progress`."""


class Downloader(Protocol):
    """Downloads. Cancelling leaves parts that a later run resumes.

    Raises:
        Invalid: The source or the config is wrong.
        NotFound: There is no such source.
        Forbidden: It may not be read, or not be written to that folder.
        Conflict: The disk is full, or the folder cannot be written.
        UpstreamFailed, TimedOut: The source failed.

    Every error names the file and the reason, never a credential.
    """

    async def download(
        self, request: DownloadRequest, on_progress: OnProgress = ignore_progress
    ) -> DownloadResult:
        """Fetch what the folder does not have yet."""
        ...

    async def verify(self, folder: Path) -> list[FileFault]:
        """Compare a folder with the sizes and checksums that its downloads recorded."""
        ...

    async def repair(
        self,
        folder: Path,
        on_progress: OnProgress = ignore_progress,
        config: Mapping[str, str] | None = None,
    ) -> DownloadResult:
        """Fetch again what `verify` finds wrong, from the recorded source."""
        ...


def redact_source(source: str) -> str:
    """Return a source as it may be shown and kept: without user, password and query (a signature).

    1. a path of this machine   → unchanged; a question mark is an ordinary character
    2. an address               → without user, password, query and fragment
    3. any other                → without query; an @ names a revision
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
