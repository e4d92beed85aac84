"""The JSON schema of the whole configuration file, for editors; shipped as etc/models.schema.json.

The part of the models is models/table/schema.py. For YAML, editors take it by a first line `#
yaml-language-server: $schema=models.schema.json`.
"""

from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from appliance.base.settings import describe_allowed, is_secret
from appliance.engines.lora.config_section import AdapterEntry
from appliance.engines.specs import BackendSpec, PoolSpec
from appliance.models.table.schema import build_schema
from appliance.settings import setting_fields
from appliance.settings_file import ENVIRONMENT_ONLY, PROXIES

TEXT: dict[str, Any] = {"type": ["string", "number", "null"]}


def build_config_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of the file of CONFIG_PATH."""
    schema = build_schema()
    definitions: dict[str, Any] = schema["$defs"]
    schema["properties"]["adapters"] = {
        "type": "array",
        "description": "LoRA adapters that are there from the start (docs/lora.md)",
    }
    for name, model in (("backends", BackendSpec), ("pools", PoolSpec), ("adapters", AdapterEntry)):
        row, more = _definition(model)
        definitions |= more
        schema["properties"][name]["items"] = row
    schema["properties"] = {
        "$schema": schema["properties"]["$schema"],
        "settings": _settings(),
    } | schema["properties"]
    schema["description"] = "Settings, models and how they are run, and engines that are already running."
    return schema


def _definition(model: type[BaseModel]) -> tuple[dict[str, Any], dict[str, Any]]:
    made = model.model_json_schema()
    return {"$ref": f"#/$defs/{model.__name__}"}, made.pop("$defs", {}) | {model.__name__: made}


def _settings() -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for variable, field in setting_fields().items():
        if variable in ENVIRONMENT_ONLY:
            continue
        rows[variable] = _value(field) | {"description": field.description or variable}
        if is_secret(field):
            rows[f"{variable}_FILE"] = {"type": "string", "description": f"The file that holds {variable}"}
    for variable in PROXIES:
        rows[variable] = {"type": "string", "description": "Proxy of downloads, as other programs have it"}
    return {
        "type": "object",
        "description": "All settings of docs/configuration.md by their names; the environment wins",
        "properties": rows,
        "additionalProperties": False,
    }


def _value(field: FieldInfo) -> dict[str, Any]:
    """Return the schema of a setting's value: its own type, or the text that the environment would have."""
    annotation = field.annotation
    kinds = {annotation, *get_args(annotation)}
    if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("is_text"):
        return TEXT | {"$comment": describe_allowed(field)}
    if get_origin(annotation) is Literal:
        return {"enum": [*get_args(annotation), None]}
    if get_origin(annotation) is list:
        return {"type": ["array", "string", "null"], "items": {"type": ["string", "number"]}}
    if bool in kinds:
        return {"enum": [True, False, 0, 1, "true", "false", "yes", "no", "on", "off", None]}
    number: dict[str, Any] = {}
    for word, key in (
        ("ge", "minimum"),
        ("le", "maximum"),
        ("gt", "exclusiveMinimum"),
        ("lt", "exclusiveMaximum"),
    ):
        bound = next((getattr(meta, word) for meta in field.metadata if hasattr(meta, word)), None)
        number |= {key: bound} if bound is not None else {}
    if int in kinds or float in kinds:
        return {"type": ["integer" if int in kinds else "number", "null"]} | number
    return TEXT | {"$comment": describe_allowed(field)}
