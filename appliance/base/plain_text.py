"""Text without what controls a terminal, and addresses without a password."""

import re
from itertools import pairwise

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")

LONG_RUN = 16
CHANGES_OF_A_KEY = 0.45  # for each character; names in camel case have fewer
_RUN = re.compile(r"[A-Za-z0-9]{12,}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s\"'<>]+", re.IGNORECASE)
_QUERY_VALUE = re.compile(r"([?&][^=&#\s,;]*=)[^&#\s,;]+")
_USERINFO = re.compile(r"\b([a-z][a-z0-9+.-]*://)[^/\s@\"']+@", re.IGNORECASE)


def plain_text(text: str) -> str:
    """Remove escape sequences (colours, titles, movements of the cursor); the rest stays as it is.

    Source:
        ECMA-48, sections 5.3 to 5.6: control sequences, control strings, escapes of two characters.
    """
    return _ESCAPES.sub("", text) if "\x1b" in text else text


def one_line(text: str) -> str:
    """Return a text as one line without escape sequences; other characters that do not print are escaped."""
    text = plain_text(text)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def hide_in_addresses(text: str, shown: str = "***") -> str:
    """Return a text with `shown` for what may be a secret in each address in it.

    1. name and password: `http://user:password@host`
    2. the values of its query: `http://host/path?key=value`
    """
    if "://" not in text:
        return text
    return _ADDRESS.sub(
        lambda found: _QUERY_VALUE.sub(rf"\1{shown}", found[0]), _USERINFO.sub(rf"\1{shown}@", text)
    )


def public_address(address: str) -> str:
    """Return an address as every caller may see it: also without parts of its path that look random.

    Some servers take a key as a part of the path. Host, port and what looks like a word or a version stay.
    """
    scheme, mark, rest = hide_in_addresses(address).partition("://")
    host, *parts = rest.split("/") if mark else [scheme]
    shown = "/".join([host, *("***" if _is_random(part.partition("?")[0]) else part for part in parts)])
    return f"{scheme}{mark}{shown}" if mark else address


def _is_random(part: str) -> bool:
    """Whether a part of a path looks like a key.

    1. a UUID
    2. a run of letters and digits that changes between the two at least three times
    3. a run of letters and digits that changes between its kinds at nearly every second character
    """
    if _UUID.fullmatch(part):  # 1
        return True
    for run in _RUN.findall(part):
        kinds = ["0" if char.isdigit() else "A" if char.isupper() else "a" for char in run]
        changes = sum(one != other for one, other in pairwise(kinds))
        to_digits = sum((one == "0") != (other == "0") for one, other in pairwise(kinds))
        if to_digits >= 3 or (len(run) >= LONG_RUN and changes >= CHANGES_OF_A_KEY * len(run)):  # 2, 3
            return True
    return False
