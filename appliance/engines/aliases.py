"""The names of the hosted model: exact names, aliases, compact spellings and known suffixes. Pure.

Source: docs/compatibility.md, alias rules (compact form; suffixes `/fp-16-fast-vllm-<n>`, `:fp16`, `:fp-16`).
"""

import re

_SUFFIX = re.compile(r"(/fp-16-fast-vllm-\d+|:fp-?16)$", re.IGNORECASE)
_SEPARATORS = str.maketrans("", "", "/:_-.")


def compact_name(name: str) -> str:
    """Return the compact spelling: lower case, without `/ : _ - .`."""
    return name.lower().translate(_SEPARATORS)


def strip_precision(name: str) -> str:
    """Return the name without a precision suffix at its end."""
    return _SUFFIX.sub("", name)


class ModelNames:
    """The names of one model.

    Attributes:
        upstream: Its name at the hosted API.
        public: Its name for clients.
        reported: Every name that /v1/models lists for it.
    """

    def __init__(self, *, upstream: str, public: str, aliases: list[str]) -> None:
        self.upstream = upstream
        self.public = public
        self.reported: tuple[str, ...] = tuple(
            dict.fromkeys([*aliases, upstream, public, compact_name(upstream), compact_name(public)])
        )
        self._known = {
            compact_name(spelling) for name in self.reported for spelling in (name, strip_precision(name))
        }

    def matches(self, name: str) -> bool:
        """Whether `name` means this model, in any spelling, with or without a precision suffix.

        A tag `:latest`, which Ollama clients add, is ignored.
        """
        plain = name.removesuffix(":latest")
        return compact_name(plain) in self._known or compact_name(strip_precision(plain)) in self._known
