"""The base of the sections of the configuration file, and what is said of an invalid key. Pure."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict

SHOWN_KEYS = 12  # of those that are allowed
# Keys whose values may be secrets.
NOT_SHOWN = {"env", "extra_args", "command", "before_load", "after_unload"}


_WORDS = {  # for what pydantic says in the words of Python
    "dict_type": "It must hold keys and their values",
    "model_type": "It must hold keys and their values",
    "tuple_type": "It must be a list",
    "string_type": "It must be a text (a number, true or false in quotes)",
}


class Section(BaseModel):
    """A section of the file: no unknown key, and no change after it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def hint_of(name: str, known: Iterable[str]) -> str:
    """Return which of the known names may be meant by an unknown one, else those that there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    near = near or difflib.get_close_matches(name.upper(), names, n=1, cutoff=0.75)
    near = near or [known_name for known_name in names if name and known_name.startswith(name)]
    if near:
        return f"Did you mean {near[0]}?"
    shown = ", ".join(names[:SHOWN_KEYS]) + (" …" if len(names) > SHOWN_KEYS else "")
    return f"Allowed: {shown}."


def keys_at(model: type[BaseModel], path: Iterable[str | int]) -> set[str]:
    """Return the keys that are allowed where a path of a validation error ends; empty = any."""
    section: type[BaseModel] | None = model
    is_row = False  # the next step is the name or number of a row, each of which is a `section`
    for step in path:
        if is_row or section is None:
            is_row = False
            continue
        field = section.model_fields.get(str(step))
        section, is_row = _section_in(field.annotation) if field is not None else (None, False)
    return set(section.model_fields) if section is not None else set()


def _section_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """Return the section in a type such as `dict[str, Section]`, and whether it is in rows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    is_rows = get_origin(annotation) in {dict, list, tuple}
    for argument in get_args(annotation):
        section, in_rows = _section_in(argument)
        if section is not None:
            return section, is_rows or in_rows
    return None, False


def explain(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """Return a validation error of a section as a sentence, with the value unless that may be a secret."""
    if error["type"] == "missing":
        return "It is missing."
    if error["type"] == "extra_forbidden":
        *path, name = error["loc"]
        return f"Unknown key. {hint_of(str(name), keys_at(model, path))}"
    text = _WORDS.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    value = error.get("input")
    # A whole section or list is not shown: a secret may stand in it under a key of its own.
    is_shown = NOT_SHOWN.isdisjoint(error["loc"]) and not isinstance(value, (Mapping, list, tuple))
    return f"{text[0].upper()}{text[1:]}" + (f", not {str(value)[:80]!r}." if is_shown else ".")
