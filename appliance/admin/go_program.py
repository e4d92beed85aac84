"""A program of commands, as those of aiserve-gpuproxyd are: flags, one command, its flags and words, a usage.

Exit codes: 0 done · 1 refused · 2 wrong usage · 130 Ctrl-C; a program has others besides.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from appliance.admin.flags import GoFlag, WrongUsage, parse_flags
from appliance.admin.passwords import hide_argument

FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
SECRET_PLACES: Final = frozenset(("<pass>", "[password|-]"))
RunT = TypeVar("RunT", bound="GoRun")


class GoRun:
    """The words and flags of one run of a command."""

    def __init__(self, words: list[str], flags: dict[str, str]) -> None:
        self.words, self.flags = words, flags

    def word(self, place: int, default: str = "") -> str:
        """Return a word of the command line, or `default` where it was left out."""
        return self.words[place] if place < len(self.words) else default

    def flag(self, name: str) -> str:
        """Return a flag's value; "" = it was left out."""
        return self.flags.get(name, "")


@dataclass(frozen=True)
class GoCommand(Generic[RunT]):
    """One command.

    Attributes:
        words: As the usage has them: <needed>, [left out or not], -flag; SECRET_PLACES are passwords.
        summary: What it does.
        run: Does it; returns an exit code, or None = 0.
        flags: Which it has beside those of all.
    """

    words: str
    summary: str
    run: Callable[[RunT], int | None]
    flags: dict[str, GoFlag] = field(default_factory=dict)

    @property
    def places(self) -> list[str]:
        """Its words, without flags."""
        return [word for word in self.words.split() if not word.startswith("[-")]


@dataclass(frozen=True)
class GoProgram(Generic[RunT]):
    """A program.

    Attributes:
        name: As it is called.
        commands: By name.
        flags: Those of all commands.
        usage: Returns the usage.
        too_many: What is said where there are too many words.
        run: Runs a command whose command line is right; returns the exit code.
    """

    name: str
    commands: Mapping[str, GoCommand[RunT]]
    flags: Mapping[str, GoFlag]
    usage: Callable[[], str]
    too_many: str
    run: Callable[[GoCommand[RunT], list[str], dict[str, str]], int]

    def main(self, words: Sequence[str]) -> int:
        """Run one command; return the exit code.

        Args:
            words: The command line without the program.
        """
        try:
            flags, rest = parse_flags(words, self.flags)
            if flags.get("help") == "1" or rest[:1] == ["help"]:
                print(self.usage(), end="")
                return 0
            if not rest:
                print(self.usage(), end="", file=sys.stderr)
                return WRONG_USAGE
            name = rest[0]
            command = self.commands.get(name)
            if command is None:
                raise WrongUsage(f"Unknown command: {name[:40]}\n{self.usage()}".rstrip("\n"))
            more, rest = parse_flags(rest[1:], {**self.flags, **command.flags})
            for word, place in zip(rest, command.places, strict=False):
                if place in SECRET_PLACES:
                    hide_argument(word)
            if more.get("help") == "1":
                print(f"{self._usage_of(name, command)}\n{command.summary}")
                return 0
            self._check(name, command, rest)
            return self._run(command, rest, flags | more)
        except WrongUsage as fault:
            return fail(str(fault), WRONG_USAGE)

    def _usage_of(self, name: str, command: GoCommand[RunT]) -> str:
        return f"Usage: {self.name} {name} {command.words}".rstrip()

    def _check(self, name: str, command: GoCommand[RunT], given: Sequence[str]) -> None:
        """Check how many words there are.

        Raises:
            WrongUsage: Too few, or too many.
        """
        places = command.places
        least = sum(word.startswith("<") for word in places)
        if not least <= len(given) <= len(places):
            fault = "words are missing" if len(given) < least else self.too_many
            raise WrongUsage(f"{fault}\n{self._usage_of(name, command)}")

    def _run(self, command: GoCommand[RunT], words: list[str], flags: dict[str, str]) -> int:
        """Run a command; say in one sentence what fails."""
        try:
            return self.run(command, words, flags)
        except WrongUsage:
            raise
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            if flags.get("developer-mode") == "1":
                raise
            return fail(f"error: {type(error).__name__}: {error} (-dv shows where)", FAILED)


def usage_rows(commands: Mapping[str, GoCommand[RunT]], *, width: int) -> list[str]:
    """Return the lines of a usage about commands; `width` is that of their words."""
    return [f"  {f'{name} {one.words}'.rstrip():<{width}}  {one.summary}" for name, one in commands.items()]


def fail(text: str, code: int) -> int:
    """Say what was wrong; return the exit code."""
    from appliance.cli.screen import clean

    print(clean(text), file=sys.stderr)
    return code
