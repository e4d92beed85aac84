"""Text without what controls a terminal, and addresses without a password."""

import re

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])?")

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


def without_userinfo(text: str, shown: str = "***") -> str:
    """Return a text with `shown` for the name and password of each address in it (`http://name:word@host`)."""
    return _USERINFO.sub(rf"\1{shown}@", text) if "@" in text else text
