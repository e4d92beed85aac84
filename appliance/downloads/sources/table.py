"""Scheme → source. A new source is one module and one row."""

import difflib
import re
from collections.abc import Callable

from appliance.base.errors import Invalid
from appliance.downloads.sources.contract import DownloadSource, SourceContext
from appliance.downloads.sources.file import File
from appliance.downloads.sources.hf import Hf
from appliance.downloads.sources.https import Https
from appliance.downloads.sources.modelscope import ModelScope
from appliance.downloads.sources.obs import Obs
from appliance.downloads.sources.pvc import Pvc
from appliance.downloads.sources.s3 import S3

SOURCES: dict[str, Callable[[SourceContext], DownloadSource]] = {
    "hf": Hf,
    "s3": S3,
    "obs": Obs,
    "pvc": Pvc,
    "ms": ModelScope,
    "https": Https,
    "file": File,
}
MAX_CHARS = 4096
_BARE = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[^/]+)?(/.+)?")


def split_source(source: str) -> tuple[str, str]:
    """Return a source's scheme and address.

    1. not a text that could be one   → refused
    2. without a scheme               → Hugging Face's, if it looks like a repository
    3. an unknown scheme              → refused
    4. otherwise                      → as it is

    Raises:
        Invalid: No such scheme, or no source at all.
    """
    text = source.strip()
    scheme, separator, address = text.partition("://")
    if "\0" in text or len(text) > MAX_CHARS:  # 1
        raise Invalid(
            f"The source has a NUL character, or is longer than {MAX_CHARS} characters.", param="source"
        )
    if not separator:  # 2
        if _BARE.fullmatch(text) and ".." not in text:
            return "hf", text
        is_path = text.startswith(("/", ".", "~"))
        hint = " For a folder of this machine, write file:// or pvc:// and its path." if is_path else ""
        known = ", ".join(f"{name}://…" for name in SOURCES)
        raise Invalid(f"Unknown source. Write {known}, or namespace/repository.{hint}", param="source")
    if scheme.lower() not in SOURCES:  # 3
        near = difflib.get_close_matches(scheme.lower(), SOURCES, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Invalid(f"Unknown source {scheme[:20]}://. Known: {', '.join(SOURCES)}.{hint}", param="source")
    return scheme.lower(), address  # 4


def open_source(scheme: str, context: SourceContext) -> DownloadSource:
    """Build a source; nothing is requested yet.

    Raises:
        Invalid: The address or the config is wrong.
        Forbidden: The host is not allowed.
    """
    return SOURCES[scheme](context)
