"""Which names mean the public model: exact names, aliases, compact spellings and known suffixes. Pure.

Source: system A, alias rules (compact form; suffixes `/fp-16-fast-vllm-<n>`, `:fp16`, `:fp-16`).
"""

import re

_SUFFIX = re.compile(r"(/fp-16-fast-vllm-\d+|:fp-?16)$", re.IGNORECASE)
_SEPARATORS = str.maketrans("", "", "/:_-.")


def compact(name: str) -> str:
    """Give a name's compact spelling: lower case, without `/ : _ - .`."""
    return name.lower().translate(_SEPARATORS)


def without_suffix(name: str) -> str:
    """Take a precision suffix off the end of a name."""
    return _SUFFIX.sub("", name)


class Names:
    """The names of one model: what the upstream calls it, what clients see, and every other spelling that means it."""

    def __init__(self, *, upstream: str, public: str, aliases: list[str]) -> None:
        self.upstream = upstream
        self.public = public
        self.reported: tuple[str, ...] = tuple(
            dict.fromkeys([*aliases, upstream, public, compact(upstream), compact(public)])
        )
        self._known = {
            compact(spelling) for name in self.reported for spelling in (name, without_suffix(name))
        }

    def matches(self, name: str) -> bool:
        """Say whether `name` means this model; a tag `:latest`, which Ollama clients add, is ignored.

        1. the name, however spelt      2. the name without a precision suffix     3. either without `:latest`
        """
        plain = name.removesuffix(":latest")
        return compact(plain) in self._known or compact(without_suffix(plain)) in self._known
