"""Engines of any kind that run a model of the table, each started by its own command line.

No shell reads the command line. In each of its words these are replaced:

    ${PORT}         the port on loopback that the engine must listen on
    ${MODEL}        the model's name in the table
    ${MODEL_PATH}   its file, where the table names one
    ${env.NAME}     a variable of the engine's environment
    $${             ${ itself, for a shell that is asked for
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from appliance.models.table.section import Section

EngineWord = Literal["openai", "llamacpp", "vllm", "sglang"]
NO_HEALTH_PATH = "none"
DEFAULT_HEALTH_PATHS = ("/health", "/v1/models")
MAX_WORDS, MAX_WORD_CHARS = 500, 16_384
_NAMES = ("PORT", "MODEL", "MODEL_PATH")
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")
_VARIABLE = re.compile(r"env\.[A-Za-z_][A-Za-z0-9_]*")
_HEALTH_PATH = re.compile(r"/[!-~]{0,999}")


class InvalidReference(ValueError):
    """A word names what the engine does not have. The message names the word and a remedy."""


def split_command(text: str) -> tuple[str, ...]:
    """Split a command line into words as a shell does, without expanding anything.

    A backslash at the end of a line continues it; lines that begin with # are left out.

    Raises:
        ValueError: A quote is not closed.
    """
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    try:
        return tuple(shlex.split("\n".join(lines).replace("\\\n", " ")))
    except ValueError as exc:
        raise ValueError(f"the command line cannot be split into words ({exc})") from None


def _to_words(value: object) -> object:
    return split_command(value) if isinstance(value, str) else value


def _check_words(words: tuple[str, ...]) -> tuple[str, ...]:
    if not words or not words[0]:
        raise ValueError("a command needs a program as its first word")
    if len(words) > MAX_WORDS or any(len(word) > MAX_WORD_CHARS or "\0" in word for word in words):
        raise ValueError(f"a command may have {MAX_WORDS} words of {MAX_WORD_CHARS} characters, without NUL")
    for name in _references(words):
        if name not in _NAMES and not _VARIABLE.fullmatch(name):
            raise ValueError(
                f"${{{name[:40]}}} is not known; known are {', '.join(f'${{{one}}}' for one in _NAMES)} and "
                "${env.NAME}. Write $${ for ${ itself"
            )
    return words


def _references(words: Iterable[str]) -> list[str]:
    return [found[1] for word in words for found in _REFERENCE.finditer(word) if found[1] is not None]


Words = Annotated[
    tuple[str, ...],
    BeforeValidator(_to_words),
    AfterValidator(_check_words),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
    ),
]


def _check_health_path(value: str) -> str:
    if value != NO_HEALTH_PATH and not _HEALTH_PATH.fullmatch(value):
        raise ValueError(f"must be a path that begins with /, or `{NO_HEALTH_PATH}`")
    return value


class EngineKeys(Section):
    """The keys of a model that runs by its own command line."""

    command: Words | None = Field(
        default=None,
        description="Command line of the engine that runs the model, instead of a llama-server; ${PORT} is "
        "the port that it must listen on",
    )
    engine_kind: EngineWord = Field(
        default="openai", description="What kind of engine the command starts; openai = any other"
    )
    health_path: Annotated[str, AfterValidator(_check_health_path)] | None = Field(
        default=None,
        description="Where the engine says that it is ready, by a 2xx; null = /health, else /v1/models; "
        "none = as soon as it accepts connections",
    )
    ready_timeout_sec: int | None = Field(
        default=None,
        ge=1,
        le=86_400,
        description="Longest time for the engine to be ready, in seconds; null = wait_ready_sec",
    )
    served_model: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None, description="The model's name at the engine; null = its name here"
    )
    memory_mb: int = Field(
        default=0, ge=0, le=16_777_216, description="Memory that the engine takes, in MB; 0 = not known"
    )
    context_tokens: int = Field(
        default=0, ge=0, le=1 << 30, description="Tokens of context of one request; 0 = not known"
    )


@dataclass(frozen=True, slots=True)
class EngineCommand:
    """An engine that runs a model by its own command line.

    Attributes:
        words: Program and arguments, with references.
        kind: What its requests and pages look like.
        health_path: "" = /health, else /v1/models; `none` = it is ready when it accepts connections.
        ready_timeout_s: None = wait_ready_sec.
        served_model: The model's name there; "" = its alias.
        memory_bytes: As the operator says; 0 = not known.
        context_tokens: Of one request; 0 = not known.
    """

    words: tuple[str, ...]
    kind: EngineWord = "openai"
    health_path: str = ""
    ready_timeout_s: float | None = None
    served_model: str = ""
    memory_bytes: int = 0
    context_tokens: int = 0

    @property
    def health_paths(self) -> tuple[str, ...]:
        """Where it is asked whether it is ready, one after the other; none = a connection suffices."""
        if self.health_path == NO_HEALTH_PATH:
            return ()
        return (self.health_path,) if self.health_path else DEFAULT_HEALTH_PATHS

    @property
    def program(self) -> str:
        """Its first word; "" = it is known only when it is started."""
        return program_of(self.words)

    @property
    def names_port(self) -> bool:
        """Whether its words name the port; else it must read the variable PORT."""
        return "PORT" in _references(self.words) or any("$PORT" in word for word in self.words)


def program_of(words: tuple[str, ...]) -> str:
    """Return the program of a command; "" = it is known only when it is started."""
    return "" if _references(words[:1]) else words[0]


def has_reference(name: str, words: Iterable[str] | None) -> bool:
    """Whether a command refers to a value such as MODEL_PATH."""
    return name in _references(words or ())


def engine_of(keys: EngineKeys) -> EngineCommand | None:
    """Return the engine of a row of the table; None = a llama-server runs it."""
    if keys.command is None:
        return None
    return EngineCommand(
        keys.command,
        keys.engine_kind,
        keys.health_path or "",
        float(keys.ready_timeout_sec) if keys.ready_timeout_sec else None,
        keys.served_model or "",
        keys.memory_mb << 20,
        keys.context_tokens,
    )


def fill_words(
    words: Iterable[str], *, port: int | None, alias: str, path: Path | None, environ: Mapping[str, str]
) -> list[str]:
    """Replace the references in words.

    Args:
        words: Of a command.
        port: None = there is none.
        alias: The model's name.
        path: Its file, None = it has none.
        environ: The environment that the process gets.

    Raises:
        InvalidReference: A word names what there is not.
    """
    values = {"PORT": str(port) if port else None, "MODEL": alias, "MODEL_PATH": str(path) if path else None}

    def fill(found: re.Match[str]) -> str:
        name = found[1]
        if name is None:
            return "${"
        value = environ.get(name.removeprefix("env.")) if name.startswith("env.") else values.get(name)
        if value is None:
            raise InvalidReference(_missing(name))
        return value

    return [_REFERENCE.sub(fill, word) for word in words]


def _missing(name: str) -> str:
    if name == "MODEL_PATH":
        return "the command names ${MODEL_PATH}, but the model has no `model_path`"
    if name == "PORT":
        return "the command names ${PORT}, which is chosen only after `before_load`"
    return f"the command names ${{{name}}}, which is not in the environment of the engine"
