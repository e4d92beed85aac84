"""Command lines as programs in Go read them: flags with one or two dashes, up to the first word that is none.

1. `--` ends the flags      2. `-` is a word      3. `-name`, `--name`, `-name=value`, `-name value`
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

TRUE: Final = {"1", "t", "T", "true", "TRUE", "True"}
FALSE: Final = {"0", "f", "F", "false", "FALSE", "False"}


class WrongUsage(Exception):
    """The command line is wrong; the text says how, without the values of words."""


@dataclass(frozen=True, slots=True)
class GoFlag:
    """One flag.

    Attributes:
        name: Under which its value is returned.
        has_value: False = it is a switch, `-name` or `-name=false`.
    """

    name: str
    has_value: bool = False


def parse_flags(words: Sequence[str], flags: Mapping[str, GoFlag]) -> tuple[dict[str, str], list[str]]:
    """Read the flags at the beginning of a command line.

    Args:
        words: The command line without the program.
        flags: Spelling without dashes → flag; several spellings may mean one.

    Returns:
        (the flags' values by name, `1` or `0` of switches; the words after them)

    Raises:
        WrongUsage: A flag is unknown, or has no value or a wrong one.
    """
    values: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":  # 1
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        flag = flags.get(name)
        if flag is None:
            raise WrongUsage(f"flag provided but not defined: -{name[:40]}")
        if not flag.has_value:
            values[flag.name] = _read_switch(name, value if equals else "true")
        elif equals:
            values[flag.name] = value
        elif rest:
            values[flag.name] = rest.pop(0)
        else:
            raise WrongUsage(f"flag needs an argument: -{name}")
    return values, rest


def _read_switch(name: str, value: str) -> str:
    if value in TRUE:
        return "1"
    if value in FALSE:
        return "0"
    raise WrongUsage(f"invalid boolean value {value[:40]!r} for -{name}: use true or false")


def switches(*spellings: Iterable[str]) -> dict[str, GoFlag]:
    """Return switches, each by its spellings; the last spelling is the name."""
    found: dict[str, GoFlag] = {}
    for words in spellings:
        names = list(words)
        found |= {one: GoFlag(names[-1]) for one in names}
    return found
