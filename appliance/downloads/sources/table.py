"""Scheme → source. A new one is one file and one row."""

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
_BARE = re.compile(r"[\w-][\w.-]*/[\w.-]+(@[^/]+)?(/.+)?")


def split_source(source: str) -> tuple[str, str]:
    """Give a source's scheme and address; without a scheme it is Hugging Face's, as in system E.

    Raises  Invalid: no such scheme, or no source at all
    """
    text = source.strip()
    scheme, separator, address = text.partition("://")
    if "\0" in text or len(text) > 4096:
        raise Invalid("The source cannot be read.", param="source")
    if not separator:
        if _BARE.fullmatch(text) and ".." not in text:
            return "hf", text
        hint = (
            " For a folder of this machine write file:// or pvc:// and its path."
            if text.startswith(("/", ".", "~"))
            else ""
        )
        raise Invalid(
            f"The source is none that is known; write one of {', '.join(f'{name}://…' for name in SOURCES)}, or namespace/repository."
            f"{hint}",
            param="source",
        )
    if scheme.lower() not in SOURCES:
        near = difflib.get_close_matches(scheme.lower(), SOURCES, n=1)
        raise Invalid(
            f"There are no {scheme[:20]}:// sources; known: {', '.join(SOURCES)}.{f' Did you mean {near[0]}?' if near else ''}",
            param="source",
        )
    return scheme.lower(), address


def open_source(scheme: str, context: SourceContext) -> DownloadSource:
    """Build the source; nothing is asked yet. Raises  Invalid, Forbidden"""
    return SOURCES[scheme](context)
