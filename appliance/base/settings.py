"""The machinery of settings: one pydantic-settings model per room, read from one mapping, all problems at once.

A field's name in upper case is its variable. Every secret may come as NAME or from the file named by
NAME_FILE, not both. An empty variable counts as not set. Nothing here knows a setting by name; rooms declare
theirs in `settings.py`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BeforeValidator, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

HIDDEN = "(hidden)"
TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off"}


def _split(separator: str, value: Any) -> Any:
    if isinstance(value, str):
        return [piece.strip() for piece in value.split(separator) if piece.strip()]
    return value


def _switch(value: Any) -> Any:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in TRUE_WORDS:
            return True
        if word in FALSE_WORDS:
            return False
        raise ValueError("expected 1 or 0 (also true/false, yes/no, on/off)")
    return value


CommaList = Annotated[list[str], BeforeValidator(lambda v: _split(",", v))]
SemicolonList = Annotated[list[str], BeforeValidator(lambda v: _split(";", v))]
Switch = Annotated[bool, BeforeValidator(_switch)]


class PackageSettings(BaseSettings):
    """Base of each room's settings. Values come from the mapping given to `read`, never from os.environ behind our back."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=False, str_strip_whitespace=True
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the room's settings from `environ`; raise BadSettings with every problem."""
        value, problems = read_settings(cls, environ)
        if value is None:
            raise InvalidSettings(problems)
        return value


SettingsT = TypeVar("SettingsT", bound=PackageSettings)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the environment: the variable, its value (hidden for secrets), what is allowed, what to do."""

    variable: str
    value: str
    allowed: str
    remedy: str
    is_fatal: bool = True

    def __str__(self) -> str:
        shown = f"{self.variable}={self.value}" if self.value else self.variable
        return (
            f"{shown}: allowed: {self.allowed}. {self.remedy}" if self.is_fatal else f"{shown}: {self.remedy}"
        )


class InvalidSettings(Exception):
    """The environment cannot be used; `problems` names everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One variable for people: where it belongs, what it is now, what it may be."""

    variable: str
    package: str
    default: str
    value: str
    allowed: str
    help: str
    is_secret: bool
    is_set: bool
    is_reloadable: bool


def variable_name(field_name: str) -> str:
    return field_name.upper()


def is_secret(field: FieldInfo) -> bool:
    return SecretStr in _flat(field.annotation) or bool(_extra(field).get("secret"))


def _flat(annotation: Any) -> set[Any]:
    found = {annotation}
    for arg in get_args(annotation):
        if not isinstance(arg, (str, int)):
            found |= _flat(arg)
    return found


def _extra(field: FieldInfo) -> dict[str, Any]:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


def describe_allowed(field: FieldInfo) -> str:
    """Say in words what a variable accepts: its own `allowed` note, its literals, or its type and bounds."""
    if note := _extra(field).get("allowed"):
        return str(note)
    annotation = field.annotation
    literals = [a for part in _literals(annotation) for a in get_args(part)]
    if literals:
        return ", ".join(str(x) for x in literals)
    kinds = _flat(annotation)
    bounds: dict[str, Any] = {}
    for meta in field.metadata:
        for word in ("ge", "gt", "le", "lt"):
            if isinstance(meta, getattr(annotated_types, word.capitalize())):
                bounds[word] = getattr(meta, word)
    if bool in kinds:
        return "0 or 1"
    if int in kinds or float in kinds:
        noun = "a whole number" if int in kinds else "a number"
        low = bounds.get("ge", bounds.get("gt"))
        high = bounds.get("le", bounds.get("lt"))
        above = "above " if "gt" in bounds else ""
        if low is not None and high is not None:
            return f"{noun} from {above}{low} to {high}"
        if low is not None:
            return f"{noun} {'above' if above else 'of at least'} {low}"
        return noun
    if get_origin(annotation) is list:
        return "a list"
    return "text"


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return [annotation]
    return [found for arg in get_args(annotation) for found in _literals(arg)]


def _show(field: FieldInfo, value: Any) -> str:
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "" or value == []:
        return ""
    if is_secret(field):
        return HIDDEN
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, list):
        return (";" if _extra(field).get("separator") == ";" else ",").join(str(v) for v in value)
    return str(value)


def _raw_values(
    model: type[PackageSettings], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[Problem]]:
    """Gather what the environment says for this room, secrets' files included."""
    raw: dict[str, str] = {}
    problems: list[Problem] = []
    for name, field in model.model_fields.items():
        variable = variable_name(name)
        value = environ.get(variable, "")
        file_value = environ.get(f"{variable}_FILE", "") if is_secret(field) else ""
        if value and file_value:
            problems.append(
                Problem(
                    f"{variable}_FILE",
                    file_value,
                    f"either {variable} or {variable}_FILE",
                    "Both are set; unset one of them.",
                )
            )
        elif file_value:
            try:
                raw[name] = Path(file_value).read_text().strip()
            except (OSError, UnicodeDecodeError) as exc:
                reason = exc.strerror if isinstance(exc, OSError) else "not a text file"
                problems.append(
                    Problem(
                        f"{variable}_FILE",
                        file_value,
                        "a readable text file",
                        f"It cannot be read: {reason}. Mount the secret there, or set {variable}.",
                    )
                )
            else:
                if not raw[name]:
                    problems.append(
                        Problem(
                            f"{variable}_FILE",
                            file_value,
                            "a file that holds the secret",
                            "The file is empty. Write the secret into it.",
                        )
                    )
        elif value.strip():
            raw[name] = value
    return raw, problems


def read_settings(
    model: type[SettingsT], environ: Mapping[str, str]
) -> tuple[SettingsT | None, list[Problem]]:
    """Read one room's settings.

    Takes   environ: variable → text, as os.environ
    Gives   (settings, []) or (None, every problem found)
    """
    raw, problems = _raw_values(model, environ)
    try:
        value = model(**raw)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        problems += [_problem_of(model, raw, error) for error in errors]
        bad = {str(error["loc"][0]) for error in errors if error["loc"]}
        if bad:  # checks over several fields run only when each field is fine: ask again without the bad ones
            try:
                model(**{name: value for name, value in raw.items() if name not in bad})
            except ValidationError as again:
                problems += [
                    _problem_of(model, raw, error)
                    for error in again.errors(include_url=False)
                    if not error["loc"]
                ]
        return None, problems
    return (None, problems) if problems else (value, [])


def _problem_of(model: type[PackageSettings], raw: Mapping[str, str], error: Any) -> Problem:
    name = str(error["loc"][0]) if error["loc"] else ""
    field = model.model_fields.get(name)
    reason = str(error["msg"]).removeprefix("Value error, ")
    if field is None:  # a check over several fields names its variable itself: "NAME: what to do"
        variable, _, remedy = reason.partition(": ")
        return Problem(variable, "", "see the remedy", remedy or reason)
    given = raw.get(name, "")
    shown = HIDDEN if given and is_secret(field) else given
    remedy = _extra(field).get("remedy") or (
        f"{reason[:1].upper()}{reason[1:]}."
        if error["type"] == "value_error"
        else f"Set {variable_name(name)} to an allowed value, or unset it to use {_show(field, field.get_default()) or 'the default'}."
    )
    return Problem(variable_name(name), shown, describe_allowed(field), str(remedy))


def describe_settings(
    package: str, model: type[PackageSettings], current: PackageSettings | None, environ: Mapping[str, str]
) -> list[SettingDescription]:
    """Say everything about a room's variables: for `settings`, the example file and the README table."""
    rows = []
    for name, field in model.model_fields.items():
        variable = variable_name(name)
        default = field.get_default(call_default_factory=True)
        value = getattr(current, name) if current is not None else default
        rows.append(
            SettingDescription(
                variable=variable,
                package=package,
                default=str(_extra(field).get("default_text") or _show(field, default)),
                value=_show(field, value),
                allowed=describe_allowed(field),
                help=field.description or "",
                is_secret=is_secret(field),
                is_set=bool(environ.get(variable) or environ.get(f"{variable}_FILE")),
                is_reloadable=bool(_extra(field).get("reload")),
            )
        )
    return rows


def find_unknown_variables(
    known: Iterable[str], environ: Mapping[str, str], *, prefix: str = "APPLIANCE_"
) -> list[Problem]:
    """Find variables that were surely, or probably, meant for us.

    1. NAME begins with our prefix and is unknown          → a problem
    2. NAME is one slip away from a name of ours           → a warning with "did you mean"
    """
    names = set(known)
    found = []
    for variable in sorted(environ):
        if variable in names or variable.removesuffix("_FILE") in names or not environ[variable]:
            continue
        near = difflib.get_close_matches(variable, names, n=1, cutoff=0.85)
        hint = f"Did you mean {near[0]}?" if near else "See `appliance settings` for the list."
        if variable.startswith(prefix):  # 1
            near = near or difflib.get_close_matches(variable, names, n=1, cutoff=0.75)
            hint = f"Did you mean {near[0]}?" if near else hint
            found.append(
                Problem(variable, HIDDEN, "a variable that exists", f"There is no such variable. {hint}")
            )
        elif near and len(variable) >= 5 and not variable.startswith("_"):  # 2
            found.append(
                Problem(variable, HIDDEN, "a variable that exists", f"It is not used. {hint}", is_fatal=False)
            )
    return found
