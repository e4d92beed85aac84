"""What every source must offer to the engine, what it is given, and its errors."""

import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from appliance.base.errors import UpstreamFailed
from appliance.base.proxies import Proxies
from appliance.base.reach import FolderPolicy, HostPolicy


@dataclass(frozen=True, slots=True)
class SourceTimeouts:
    """How long a source is waited for, and how often an attempt is repeated.

    Attributes:
        idle_s: Between two pieces.
        tries: Attempts in a row that received no data.
        first_pause_s: Doubled after each attempt, with jitter.
        longest_pause_s: Also limits the pause that a server requests by Retry-After.
    """

    connect_s: float = 10.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0
    tries: int = 6
    first_pause_s: float = 0.5
    longest_pause_s: float = 20.0

    @property
    def listing_s(self) -> float:
        """Longest time for a whole listing, which may have several pages."""
        return self.first_byte_s * 4


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source is given.

    Attributes:
        address: The source without its scheme.
        config: Already chosen between the request and the settings; there are secrets in it.
        reach: Which hosts may be contacted.
        folders: Which folders may be read.
        proxies: Through which hosts are contacted.
    """

    address: str
    config: Mapping[str, str] = field(repr=False)
    reach: HostPolicy
    folders: FolderPolicy
    timeouts: SourceTimeouts = field(default_factory=SourceTimeouts)
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    proxies: Proxies = field(default_factory=Proxies)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file that a source has.

    Attributes:
        path: Where it belongs below the output folder, `/` between parts; not checked yet.
        size_bytes: None = not known before it is fetched.
        digest: `sha256:HEX` or `git-sha1:HEX` (the id of a git blob); "" = the source does not say.
        etag: Any text that changes with the contents; "" = none.
        key: The source's own name for it.
    """

    path: str
    size_bytes: int | None
    digest: str = ""
    etag: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a source.

    Attributes:
        pinned: The source again, without credentials, with the revision found instead of a name that moves.
    """

    files: tuple[RemoteFile, ...]
    pinned: str


class DownloadSource(Protocol):
    """One place that files are fetched from. Built by `table.open_source`, closed by its opener.

    Attributes:
        can_range: Whether parts of a file can be requested. A server may still refuse (`RangesUnsupported`).
    """

    can_range: bool

    async def listing(self) -> Listing:
        """Return all files.

        Raises:
            Interrupted, TimedOut: Another attempt may help.
            ApplianceError: It cannot.
        """
        ...

    def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Yield a file's bytes from `start` to before `end` (None = its end), as they arrive.

        Raises:
            RangesUnsupported: The server would send the whole file only.
            SourceChanged: The file is no longer the listed one.
            Interrupted, TimedOut: Another attempt for the rest may help.
            ApplianceError: It cannot.
        """
        ...

    async def close(self) -> None:
        """Close what was opened."""
        ...


class Interrupted(UpstreamFailed):
    """The transfer was interrupted, or the source is busy; another attempt may help."""

    retryable = True
    default_code = "interrupted"


class SourceChanged(UpstreamFailed):
    """The file is not the one that was listed."""

    default_code = "changed"


class RangesUnsupported(Exception):
    """The server answers a request for a part with the whole file."""


def sub_path_name(path: str, sub: str) -> str | None:
    """Return the name of a repository's file from a sub-path on; None = the file is not below that.

    Args:
        path: Of the file in its repository.
        sub: A folder or a file, "" = the whole repository.
    """
    if not sub:
        return path
    if path == sub:
        return path.rpartition("/")[2]
    return path[len(sub) :].lstrip("/") if path.startswith(f"{sub}/") else None


def pin(scheme: str, repository: str, revision: str, sub: str) -> str:
    """Return a repository's source with its revision."""
    return f"{scheme}://{repository}@{revision}" + (f"/{sub}" if sub else "")
