"""The section `adapters` of the configuration file: adapters that are there from the start.

adapters:
  - {name: style, path: /adapters/style, base_model: small}
"""

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from appliance.base.config_file import ConfigFile
from appliance.base.errors import Invalid
from appliance.base.settings import Problem
from appliance.engines.lora.plan import Adapter
from appliance.engines.lora.rules import MAX_PATH_CHARS, check_name
from appliance.models.table.section import explain


class AdapterEntry(BaseModel):
    """One LoRA adapter, and the model that it belongs to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="The name that clients use")
    path: str = Field(
        min_length=1, max_length=MAX_PATH_CHARS, description="Folder or file, as the engines see it"
    )
    base_model: str = Field(min_length=1, description="The model that it belongs to, by its own name")
    backend: str = Field(
        default="", description="The only backend that is to have it; empty = all of the model"
    )
    pinned: bool = Field(default=False, description="An engine that unloads adapters by itself keeps it")

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str) -> str:
        try:
            return check_name(value)
        except Invalid as error:
            raise ValueError(error.message) from None

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: str) -> str:
        if not value.startswith("/") or ".." in value.split("/") or "," in value or not value.isprintable():
            raise ValueError("the path must be absolute, printable, and without `..` and commas")
        return value


def read_adapter_rows(config: ConfigFile) -> tuple[tuple[Adapter, ...], list[Problem]]:
    """Return the adapters of the file, and what is wrong with them; rows with a problem are left out."""
    rows = config.sections.get("adapters")
    if rows is None:
        return (), []
    if not isinstance(rows, list):
        return (), [config.problem_at("adapters", "It must be a list.")]
    found: list[Adapter] = []
    problems = []
    for number, value in enumerate(rows):
        try:
            row = AdapterEntry.model_validate(value)
        except ValidationError as exc:
            problems += [
                config.problem_at(
                    ".".join(map(str, ("adapters", number, *error["loc"]))), explain(error, AdapterEntry)
                )
                for error in exc.errors()
            ]
            continue
        found.append(
            Adapter(
                row.name,
                row.path,
                row.base_model,
                backend=row.backend,
                is_pinned=row.pinned,
                is_configured=True,
            )
        )
    twice = [name for name, count in Counter(one.name for one in found).items() if count > 1]
    problems += [
        config.problem_at("adapters", f"Two adapters are called {name!r}. Rename one.") for name in twice
    ]
    return tuple(found), problems


def adapter_differences(old: Sequence[Adapter], new: Sequence[Adapter]) -> list[str]:
    """Return a sentence for each adapter that a reload adds, changes or removes."""
    before, after = {one.name: one for one in old}, {one.name: one for one in new}
    return [
        *(f"The adapter {name} is removed." for name in before if name not in after),
        *(f"The adapter {name} is added." for name in after if name not in before),
        *(f"The adapter {name} changes." for name in after if name in before and after[name] != before[name]),
    ]
