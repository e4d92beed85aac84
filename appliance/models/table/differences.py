"""The changes of a reload of the table, as sentences for the log and the caller. Pure."""

from dataclasses import fields
from typing import Any

from appliance.base import jsons
from appliance.models.table.catalogue import Catalogue, Model
from appliance.models.table.engine import EngineCommand
from appliance.models.table.hooks import Hooks
from appliance.models.table.sampling import RequestSettings

# Variables may be secrets, commands may have them, and a prompt is long.
NOT_SHOWN = {"env", "system_prompt", "command", "before_load", "after_unload"}


def differences(old: Catalogue, new: Catalogue) -> list[str]:
    """Return a sentence for each model added, changed or removed, and for each changed key of the system.

    `api` is left out: the appliance does not use it.
    """
    sentences = [f"The model {alias} is removed." for alias in old.models if alias not in new.models]
    for alias, model in new.models.items():
        if alias not in old.models:
            sentences.append(f"The model {alias} is added.")
        elif model != old.models[alias]:
            sentences.append(
                f"The model {alias} changes: {', '.join(_changed(_flat(old.models[alias]), _flat(model)))}."
            )
    before, after = old.system.model_dump(), new.system.model_dump()
    del before["llama_server_path"], after["llama_server_path"]  # the one in force is Catalogue.llama_server
    sentences += [f"The system changes: {change}." for change in _changed(before, after)]
    names = dict.fromkeys([*old.groups, *new.groups])
    sentences += [
        f"The group {name} changes." for name in names if old.groups.get(name) != new.groups.get(name)
    ]
    if old.llama_server != new.llama_server:
        sentences.append(
            f"The llama-server changes: {_shown(old.llama_server)} → {_shown(new.llama_server)}."
        )
    return sentences


def _flat(model: Model) -> dict[str, Any]:
    values = {
        field.name: getattr(model, field.name)
        for field in fields(model)
        if field.name not in {"params", "engine"}
    }
    engine = model.engine or EngineCommand(())
    values |= {"command": engine.words} | {
        f"engine.{field.name}": getattr(engine, field.name) for field in fields(engine)[1:]
    }
    hooks: Hooks = values.pop("hooks")
    values |= {
        "before_load": hooks.before_load,
        "after_unload": hooks.after_unload,
        "hook_timeout_sec": hooks.timeout_s,
    }
    values["lora"] = [f"{one.path} × {one.scale:g}" for one in model.lora]
    requests: RequestSettings = values.pop("requests")
    for name, fields_set in (("defaults", requests.defaults), ("force", requests.force)):
        values[name] = jsons.dumps_text(fields_set)
    values["system_prompt"] = requests.system_prompt
    return values | {f"params.{key}": value for key, value in model.params.model_dump().items()}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [
        key if key in NOT_SHOWN else f"{key} {_shown(before[key])} → {_shown(value)}"
        for key, value in after.items()
        if before[key] != value
    ]


def _shown(value: Any) -> str:
    return jsons.dumps_text(
        value if isinstance(value, (bool, int, float, str, list, tuple, type(None))) else str(value)
    )
