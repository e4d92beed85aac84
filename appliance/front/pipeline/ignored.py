"""The response header that names what of a request was left out."""

import re
from collections.abc import Iterable

IGNORED = "x-appliance-ignored"
MAX_NAMES, MAX_NAME_CHARACTERS = 20, 64  # the names are the client's
_UNPRINTABLE = re.compile(r"[^A-Za-z0-9_.:-]")


def ignored_headers(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the header that names what was left out; nothing where everything was used.

    Args:
        names: Of fields, items and tools; a name that comes twice is shown once.
    """
    shown = [_UNPRINTABLE.sub("?", name[:MAX_NAME_CHARACTERS]) for name in dict.fromkeys(names)]
    return [(IGNORED, ", ".join(shown[:MAX_NAMES]))] if shown else []
