"""The machinery of settings: one pydantic-settings model per package, all problems reported at once.

A field's name in upper case is its variable. Every secret may be given as NAME or in the file named by
NAME_FILE, not both. An empty variable counts as not set. Nothing here knows a setting by name: each package
declares its own in its `settings.py`.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args, get_origin

import annotated_types
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from appliance.base.files import read_text_file
from appliance.base.plain_text import hide_in_addresses, one_line

HIDDEN = "(hidden)"


class PackageSettings(BaseSettings):
    """The base of each package's settings; values come from the given mapping, never from os.environ."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", validate_default=False, str_strip_whitespace=True
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take values from the constructor alone."""
        return (init_settings,)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read the package's settings.

        Args:
            environ: Variable → text, as os.environ.

        Raises:
            InvalidSettings: With every problem.
        """
        value, problems = read_settings(cls, environ)
        if value is None:
            raise InvalidSettings(problems)
        return value


SettingsT = TypeVar("SettingsT", bound=PackageSettings)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with the environment.

    Attributes:
        variable: Its name.
        value: Hidden for secrets.
        allowed: What it may be; "" = the remedy says it.
        remedy: What to do, a sentence.
        is_fatal: False = a warning only.

    Value and remedy are shown to people and logged: credentials in addresses are blanked, and what controls a
    terminal is escaped.
    """

    variable: str
    value: str
    allowed: str
    remedy: str
    is_fatal: bool = True

    def __post_init__(self) -> None:
        for name in ("variable", "value", "remedy"):
            object.__setattr__(self, name, one_line(hide_in_addresses(getattr(self, name))))

    def __str__(self) -> str:
        shown = f"{self.variable}={self.value}" if self.value else self.variable
        allowed = f"allowed: {self.allowed}. " if self.is_fatal and self.allowed else ""
        return f"{shown}: {allowed}{self.remedy}"


class InvalidSettings(Exception):
    """The environment is not valid; `problems` lists everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """One variable, described for people: what it is now, and what it may be."""

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
    """Return the variable of a field."""
    return field_name.upper()


def is_secret(field: FieldInfo) -> bool:
    """Say whether a field's value must be hidden."""
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
    """Say in words what a variable accepts.

    1. its own note, `allowed`    → that
    2. literals                   → their list
    3. a switch                   → 0 or 1
    4. a number                   → its kind and bounds
    5. a list, anything else      → a list; text
    """
    if note := _extra(field).get("allowed"):  # 1
        return str(note)
    annotation = field.annotation
    literals = [a for part in _literals(annotation) for a in get_args(part)]
    if literals:  # 2
        return ", ".join(str(x) for x in literals)
    kinds = _flat(annotation)
    bounds: dict[str, Any] = {}
    for meta in field.metadata:
        for word in ("ge", "gt", "le", "lt"):
            if isinstance(meta, getattr(annotated_types, word.capitalize())):
                bounds[word] = getattr(meta, word)
    if bool in kinds:  # 3
        return "0 or 1"
    if int in kinds or float in kinds:  # 4
        noun = "a whole number" if int in kinds else "a number"
        low = bounds.get("ge", bounds.get("gt"))
        high = bounds.get("le", bounds.get("lt"))
        above = "above " if "gt" in bounds else ""
        if low is not None and high is not None:
            return f"{noun} from {above}{low} to {high}"
        if low is not None:
            return f"{noun} {'above' if above else 'of at least'} {low}"
        return noun
    return "a list" if get_origin(annotation) is list else "text"  # 5


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
        value = (";" if _extra(field).get("separator") == ";" else ",").join(str(v) for v in value)
    return hide_in_addresses(str(value))


def _raw_values(
    model: type[PackageSettings], environ: Mapping[str, str]
) -> tuple[dict[str, str], list[Problem]]:
    """Collect what the environment says for this package, the files of secrets included."""
    raw: dict[str, str] = {}
    problems: list[Problem] = []
    for name, field in model.model_fields.items():
        variable = variable_name(name)
        value = environ.get(variable, "")
        file = environ.get(f"{variable}_FILE", "") if is_secret(field) else ""
        if value and file:
            allowed = f"either {variable} or {variable}_FILE"
            problems.append(Problem(f"{variable}_FILE", file, allowed, "Both are set; unset one of them."))
        elif file:
            secret, problem = _read_secret_file(variable, file)
            if problem is not None:
                problems.append(problem)
            if secret is not None:
                raw[name] = secret
        elif value.strip():
            raw[name] = value
    return raw, problems


def _read_secret_file(variable: str, file: str) -> tuple[str | None, Problem | None]:
    """Return the secret in a file (None = unreadable) and what is wrong with the file (None = nothing)."""
    try:
        secret = read_text_file(Path(file)).strip()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a text file"
        remedy = f"It cannot be read: {reason}. Mount the secret there, or set {variable}."
        return None, Problem(f"{variable}_FILE", file, "a readable text file", remedy)
    if secret:
        return secret, None
    remedy = "The file is empty. Write the secret into it."
    return secret, Problem(f"{variable}_FILE", file, "a file that holds the secret", remedy)


def read_settings(
    model: type[SettingsT], environ: Mapping[str, str]
) -> tuple[SettingsT | None, list[Problem]]:
    """Read one package's settings.

    Args:
        model: The package's settings class.
        environ: Variable → text, as os.environ.

    Returns:
        (settings, []) or (None, every problem found).
    """
    raw, problems = _raw_values(model, environ)
    try:
        value = model(**raw)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        problems += [_problem_of(model, raw, error) for error in errors]
        bad = {str(error["loc"][0]) for error in errors if error["loc"]}
        if bad:  # checks over several fields run only when each field is valid: repeat without the others
            try:
                model(**{name: value for name, value in raw.items() if name not in bad})
            except ValidationError as again:
                over_several = [
                    _problem_of(model, raw, error)
                    for error in again.errors(include_url=False)
                    if not error["loc"]
                ]  # such as that a secret is missing, which is there and not valid: told already
                problems += [one for one in over_several if one.variable.lower() not in bad]
        return None, problems
    return (None, problems) if problems else (value, [])


def _problem_of(model: type[PackageSettings], raw: Mapping[str, str], error: Any) -> Problem:
    name = str(error["loc"][0]) if error["loc"] else ""
    field = model.model_fields.get(name)
    reason = str(error["msg"]).removeprefix("Value error, ")
    if field is None:  # a check over several fields names the variable itself: "NAME: what to do"
        variable, _, remedy = reason.partition(": ")
        return Problem(variable, "", "", remedy or reason)
    given = raw.get(name, "")
    shown = HIDDEN if given and is_secret(field) else hide_in_addresses(given)
    if error["type"] == "value_error":
        reason = f"{reason[:1].upper()}{reason[1:]}."
    else:
        default = _show(field, field.get_default()) or "the default"
        reason = f"Set {variable_name(name)} to an allowed value, or unset it to use {default}."
    return Problem(
        variable_name(name), shown, describe_allowed(field), str(_extra(field).get("remedy") or reason)
    )


def describe_settings(
    package: str, model: type[PackageSettings], current: PackageSettings | None, environ: Mapping[str, str]
) -> list[SettingDescription]:
    """Describe a package's variables: for the verb `settings`, the example file and the documentation.

    Args:
        package: Its name.
        model: Its settings class.
        current: Its settings now; None = the defaults.
        environ: What is set.
    """
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
    """Find variables that were surely, or probably, meant for the appliance.

    1. it has our prefix and is unknown                 → a problem
    2. it differs from one of our names by a typo       → a warning with "did you mean"

    Args:
        known: All names that exist.
        environ: What is set.
        prefix: What every name with it is meant for us.
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
