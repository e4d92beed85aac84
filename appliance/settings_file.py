"""The sections `settings` and `api` of the configuration file, below the environment.

settings:                           # every variable by its name
  LOG_LEVEL: debug
  CORS_ORIGINS: [https://app.example, https://other.example]
  NOVITA_API_KEY_FILE: /run/secrets/novita
api:                                # three of them by names of their own; `settings` wins
  host: 127.0.0.1
  port: 8000
  cors_origins: [http://localhost:3000]
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from appliance.base.config_file import ConfigFile
from appliance.base.settings import Problem, is_secret
from appliance.front.settings import FrontSettings
from appliance.models.table.entries import Api
from appliance.models.table.section import hint_of

# Read before the file, or by programs that do not read it.
ENVIRONMENT_ONLY = {"CONFIG_PATH", "APPLIANCE_ENV_FILE", "APPLIANCE_HOME", "CONTROL_ADDRESS"}
IN_FILE = "(of the file)"
PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
# Keys of `api`, and the variable that each sets.
API_KEYS = {"host": "PROXY_HOST", "port": "PROXY_PORT", "cors_origins": "CORS_ORIGINS"}


def read_section(config: ConfigFile, fields: Mapping[str, FieldInfo]) -> tuple[dict[str, str], list[Problem]]:
    """Return the variables in the file, as text, and what is wrong with them.

    Args:
        config: The file.
        fields: The settings by their variable.
    """
    values, problems = _read_settings(config, fields)
    return {**_read_api(config), **{name: text for name, text in values.items() if text}}, problems


def _read_api(config: ConfigFile) -> dict[str, str]:
    """Return what `api` sets. What is wrong in it is told where the model table is read."""
    section = config.sections.get("api")
    if not isinstance(section, dict):
        return {}
    try:
        api = Api.model_validate(section)
    except ValidationError:
        return {}
    texts = {"host": api.host, "port": str(api.port), "cors_origins": ",".join(api.cors_origins)}
    return {API_KEYS[key]: texts[key] for key in API_KEYS if key in api.model_fields_set}


def _read_settings(
    config: ConfigFile, fields: Mapping[str, FieldInfo]
) -> tuple[dict[str, str], list[Problem]]:
    section = config.sections.get("settings")
    if section is None:
        return {}, []
    if not isinstance(section, dict):
        return {}, [config.problem_at("settings", "It must hold variables and their values: NAME: value.")]
    secrets = {name for name, field in fields.items() if is_secret(field)}
    known = {*fields, *PROXIES, *(f"{name}_FILE" for name in secrets)} - ENVIRONMENT_ONLY
    values: dict[str, str] = {}
    problems = []
    for name, value in section.items():
        if name in ENVIRONMENT_ONLY:
            remedy = "Set it in the environment: it is needed before this file is read."
            problems.append(config.problem_at(f"settings.{name}", remedy))
        elif name not in known:
            remedy = f"There is no such variable. {hint_of(str(name), known)}"
            problems.append(config.problem_at(f"settings.{name}", remedy))
        elif (text := _as_text(value, fields.get(name))) is None:
            remedy = "The value must be a text, a number, true or false, or a list of these."
            problems.append(config.problem_at(f"settings.{name}", remedy))
        else:
            values[name] = text
    if config.is_open and (found := _secrets_in(config, values, secrets)):
        problems.append(_open_file(config, found))
    return values, problems


def _as_text(value: Any, field: FieldInfo | None) -> str | None:
    """Return a value as the environment would hold it; "" = not set, None = it cannot be one."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (str, int, float)):
        return str(value)
    if not isinstance(value, list):
        return None
    extra = field.json_schema_extra if field is not None else None
    separator = ";" if isinstance(extra, dict) and extra.get("separator") == ";" else ","
    texts = [_as_text(one, None) for one in value if not isinstance(one, list)]
    if len(texts) < len(value) or any(not text or separator in text for text in texts):
        return None
    return separator.join(text for text in texts if text)


def _secrets_in(config: ConfigFile, values: Mapping[str, str], secrets: set[str]) -> list[str]:
    """Name the keys of the file that hold a secret itself."""
    backends = config.sections.get("backends")
    rows = backends if isinstance(backends, list) else []
    return [
        *(f"settings.{name}" for name in sorted(secrets) if values.get(name)),
        *(
            f"backends[{number}].api_key"
            for number, row in enumerate(rows)
            if isinstance(row, dict) and row.get("api_key")
        ),
    ]


def _open_file(config: ConfigFile, keys: list[str]) -> Problem:
    remedy = (
        f"The file holds secrets ({', '.join(keys)}), and every user of this machine may read it. "
        "`chmod o-r` it, or give NAME_FILE instead of NAME, and api_key_file instead of api_key."
    )
    return config.problem_at("", remedy, is_fatal=False)


def below(values: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, with values of the file for what it does not set.

    A secret counts as set by NAME and by NAME_FILE, and PROXY_PORT by PORT.
    """

    def is_set(name: str) -> bool:
        others = [name, f"{name}_FILE", name.removesuffix("_FILE")]
        return any(environ.get(other) for other in (*others, *(["PORT"] if name == "PROXY_PORT" else [])))

    given = {name: text for name, text in environ.items() if text or name not in values}
    return {name: text for name, text in values.items() if not is_set(name)} | given


def tell_place(problem: Problem, config: ConfigFile, environ: Mapping[str, str]) -> Problem:
    """Return a problem of a setting with the words that the file sets it, where that is so.

    Args:
        problem: Of any variable.
        config: The file.
        environ: The settings without those of the file.
    """
    sections = [config.sections.get(name) for name in ("settings", "api")]
    settings, api = (section if isinstance(section, dict) else {} for section in sections)
    is_there = settings.get(problem.variable) is not None or any(
        API_KEYS[key] == problem.variable for key in API_KEYS if key in api
    )
    if not is_there or below({problem.variable: IN_FILE}, environ).get(problem.variable) != IN_FILE:
        return problem
    return replace(problem, remedy=f"{problem.remedy} It is set in {config.path}.")


def check_api(config: ConfigFile, api: Api, front: FrontSettings) -> list[Problem]:
    """Warn of keys of `api` that say something else than the variable of the same meaning, which wins."""
    used: dict[str, tuple[Any, Any]] = {
        "host": (api.host, front.proxy_host),
        "port": (api.port, front.proxy_port),
        "cors_origins": (set(api.cors_origins), set(front.cors_origins)),
    }
    problems = []
    for key, (wanted, now) in used.items():
        if key in api.model_fields_set and wanted != now:
            shown = ",".join(front.cors_origins) if key == "cors_origins" else now
            remedy = f"{API_KEYS[key]}={shown} wins. Remove one of the two."
            problems.append(config.problem_at(f"api.{key}", remedy, is_fatal=False))
    return problems
