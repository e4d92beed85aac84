"""What every source promises to the engine, what it is given for it, and how it fails."""

import ssl
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from appliance.base.errors import UpstreamFailed
from appliance.base.proxies import Proxies
from appliance.base.reach import FolderPolicy, HostPolicy


@dataclass(frozen=True, slots=True)
class SourceTimeouts:
    """How long a source is waited for, and how often it is asked again. `tries`: attempts in a row that brought no byte."""

    connect_s: float = 10.0
    first_byte_s: float = 60.0
    idle_s: float = 60.0  # between two pieces
    tries: int = 6
    first_pause_s: float = 0.5  # doubled after each attempt, with jitter
    longest_pause_s: float = 20.0  # also of what a server asks for by Retry-After


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source is given.

    address   the source without its scheme
    config    system E's keys, already chosen between the wish and the operator's settings; secrets are in it
    reach     which hosts may be asked; folders: which folders may be read; proxies: through which those are asked
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

    path         where it belongs below the output folder, `/` between parts; not yet checked
    size_bytes   None = not known before it is fetched
    digest       `sha256:HEX` or `git-sha1:HEX` (git's name of a blob); "" = the source does not tell one
    etag         any text that changes with the contents; "" = none
    key          how the source itself calls it
    """

    path: str
    size_bytes: int | None
    digest: str = ""
    etag: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True)
class Listing:
    """All files of a source. `pinned`: the source again, without credentials, and with the revision that was found instead of a moving name."""

    files: tuple[RemoteFile, ...]
    pinned: str


class DownloadSource(Protocol):
    """One place that files are fetched from. Built by `table.open_source`, closed by whoever opened it."""

    can_range: bool  # whether parts of a file can be asked for; a server may still refuse (WholeOnly)

    async def listing(self) -> Listing:
        """Raises  ApplianceError; Interrupted and TimedOut where asking again may help"""
        ...

    def pieces(self, file: RemoteFile, start: int, end: int | None) -> AsyncGenerator[bytes]:
        """Give a file's bytes from `start` to before `end` (None = its end), as they arrive.

        Raises  WholeOnly: the server would give the whole file only · Changed: it is not the listed one any more
                Interrupted, TimedOut: asking again for the rest may help · other ApplianceError: it cannot
        """
        ...

    async def close(self) -> None: ...


class Interrupted(UpstreamFailed):
    """The source broke off, or is busy; asking again may help."""

    retryable = True
    default_code = "interrupted"


class SourceChanged(UpstreamFailed):
    """The file is not the one that was listed."""

    default_code = "changed"


class RangesUnsupported(Exception):
    """The server answers a question for a part with the whole file."""
