"""Lines of logs as a terminal shows them."""

import re

_LEVEL = re.compile(r'"level": ?"(\w+)"|\[(debug|info|warning|error|critical) *\]')
STYLES = {"debug": "dim", "warning": "yellow", "error": "red", "critical": "bold red"}


def log_style(text: str) -> str:
    """Return the style of a line by its level, in JSON or in text for people; "" = as it is."""
    found = _LEVEL.search(text)
    return STYLES.get(found.group(1) or found.group(2), "") if found else ""
