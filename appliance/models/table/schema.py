"""The JSON schema of the models in the configuration file, for editors.

`appliance/config_schema.py` makes the schema of the whole file of it. It has the limits of each key. Errors
in the combination of keys, or in the files that they name, are found by `appliance check` and `appliance
models check`.
"""

from typing import Any

from appliance.models.table.entries import Table


def build_schema() -> dict[str, Any]:
    """Return the schema (draft 2020-12) of the file of CONFIG_PATH, without rows of other packages."""
    made = Table.model_json_schema()
    made["properties"]["models"]["minProperties"] = 1
    others = {
        "$schema": {"type": "string", "description": "Where this schema is, for editors"},
        "backends": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Engines that are already running (docs/backends.md)",
        },
        "pools": {
            "type": "array",
            "items": {"type": "object"},
            "description": "Sets of backends that stand in for each other",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "Configuration file of the appliance (CONFIG_PATH)",
        "description": "Which models there are, and how they are run.",
        "properties": others | made["properties"],
    }
