"""The settings of all packages: read together, with all problems reported at once, and described."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo

from appliance.accounts.settings import AccountSettings
from appliance.base.config_file import ConfigFile, Signature, find_signature, read_config_file
from appliance.base.files import read_text_file
from appliance.base.logs import SECRETS
from appliance.base.proxies import Proxies
from appliance.base.settings import (
    InvalidSettings,
    PackageSettings,
    Problem,
    SettingDescription,
    describe_settings,
    find_unknown_variables,
    read_settings,
    variable_name,
)
from appliance.control.settings import ControlSettings
from appliance.downloads.settings import DownloadSettings
from appliance.engines.lora.config_section import read_adapter_rows
from appliance.engines.lora.plan import Adapter
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import FleetSpec, read_fleet
from appliance.front.settings import FrontSettings, split_keys
from appliance.host.settings import HostSettings
from appliance.market.settings import MarketSettings
from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import Catalogue
from appliance.models.table.catalogue_reader import read_catalogue
from appliance.settings_accounts import check_accounts
from appliance.settings_addresses import check_own_addresses, check_proxies
from appliance.settings_checks import check_adapter_names, check_aliases, check_default_model, check_together
from appliance.settings_file import below, check_api, read_section, tell_place
from appliance.settings_folders import check_folders
from appliance.settings_market import check_market
from appliance.settings_prices import read_prices
from appliance.storage.settings import StorageSettings

if TYPE_CHECKING:  # loaded only with ACCOUNTS=1
    from appliance.accounts.prices import Price


class GeneralSettings(PackageSettings):
    """Settings that belong to no package."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged", json_schema_extra={"reload": True}
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="json = one JSON object a line; console = for people; auto = console on a terminal, else "
        "json",
    )
    appliance_env_file: Path | None = Field(
        None,
        description="A file of NAME=value lines, read at start and at each reload; variables of the "
        "environment win",
        json_schema_extra={"allowed": "a readable text file"},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of every package.

    Attributes:
        environ: The environment, with defaults from APPLIANCE_ENV_FILE and the configuration file. It
            contains every secret.
        given: The environment alone.
        fleet: The backends, from BACKENDS and the configuration file.
        catalogue: The models to run, from the configuration file and MODEL_DIR.
        config: The configuration file.
        adapters: The LoRA adapters of the configuration file.
        prices: Of PRICES_FILE; none without accounts.
        env_signature: Of the file of APPLIANCE_ENV_FILE, as it was before it was read at the start.
    """

    general: GeneralSettings
    host: HostSettings
    models: ModelSettings
    downloads: DownloadSettings
    engines: EngineSettings
    front: FrontSettings
    control: ControlSettings
    storage: StorageSettings
    accounts: AccountSettings
    market: MarketSettings
    environ: Mapping[str, str] = field(repr=False)
    given: Mapping[str, str] = field(repr=False)
    fleet: FleetSpec = field(default_factory=FleetSpec)
    catalogue: Catalogue = field(default_factory=lambda: Catalogue({}))
    config: ConfigFile = field(default_factory=ConfigFile)
    adapters: tuple[Adapter, ...] = ()
    prices: tuple["Price", ...] = ()
    env_signature: Signature | None = None

    @property
    def files(self) -> list[Path]:
        """The files that the settings are read from."""
        prices_file = self.accounts.prices_file if self.accounts.accounts else None
        files = (self.engines.config_path, self.general.appliance_env_file, prices_file)
        return [path for path in files if path]

    @property
    def signatures(self) -> dict[Path, Signature | None]:
        """The signatures of these files as they were read at the start, by path."""
        env_file = self.general.appliance_env_file
        return {**self.config.signatures, **({env_file: self.env_signature} if env_file else {})}

    def value_of(self, variable: str) -> Any:
        """Return the value of a variable. Raises KeyError: there is no such variable."""
        name = variable.lower()
        for package, model in PACKAGES.items():
            if name in model.model_fields:
                return getattr(getattr(self, package), name)
        raise KeyError(variable)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What a part of the appliance does not read, wherever it stands.

    Attributes:
        variables: In the environment, and in both files.
        sections: Of the configuration file.
    """

    variables: frozenset[str] = frozenset()
    sections: frozenset[str] = frozenset()

    def of(self, config: ConfigFile) -> ConfigFile:
        """Return the configuration file without them."""
        sections = {name: value for name, value in config.sections.items() if name not in self.sections}
        if isinstance(settings := sections.get("settings"), dict):
            sections["settings"] = self.of_variables(settings)
        return replace(config, sections=sections)

    def of_variables(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return variables without them."""
        return {name: value for name, value in values.items() if name not in self.variables}


NOTHING = LeftOut()
PACKAGES: dict[str, type[PackageSettings]] = {
    "general": GeneralSettings,
    "host": HostSettings,
    "models": ModelSettings,
    "downloads": DownloadSettings,
    "engines": EngineSettings,
    "front": FrontSettings,
    "control": ControlSettings,
    "storage": StorageSettings,
    "accounts": AccountSettings,
    "market": MarketSettings,
}
# Lists of settings (the command line, gRPC) have always shown the variables of downloads under this heading.
SHOWN_UNDER = {"downloads": "models"}


def effective_environ(environ: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Return the environment, with what APPLIANCE_ENV_FILE and the file of CONFIG_PATH set besides.

    Returns:
        (the result, problems of the files)
    """
    lines, problems = _with_env_file(environ)
    merged, _, found = _with_config_file(lines)
    return merged, problems + found


def _with_config_file(
    environ: Mapping[str, str], left_out: LeftOut = NOTHING
) -> tuple[dict[str, str], ConfigFile, list[Problem]]:
    """Merge the environment with the settings in the file of CONFIG_PATH; the environment wins."""
    path = environ.get("CONFIG_PATH", "").strip()
    config = left_out.of(read_config_file(Path(path) if path else None))
    values, problems = read_section(config, setting_fields())
    problems += [config.problem_at("", warning, is_fatal=False) for warning in config.warnings]
    return below(values, environ), config, problems


def setting_fields() -> dict[str, FieldInfo]:
    """Return the settings of all packages, by their variable."""
    return {
        variable_name(name): field
        for model in PACKAGES.values()
        for name, field in model.model_fields.items()
    }


def _with_env_file(environ: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Merge the environment with the lines of APPLIANCE_ENV_FILE; the environment wins."""
    name = environ.get("APPLIANCE_ENV_FILE", "")
    if not name:
        return dict(environ), []
    try:
        text = read_text_file(Path(name))
    except (OSError, UnicodeDecodeError) as exc:
        return dict(environ), [
            Problem("APPLIANCE_ENV_FILE", name, "a readable text file", f"It cannot be read: {exc}.")
        ]
    values: dict[str, str] = {}
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ")
        if not line or line.startswith("#"):
            continue
        variable, equals, value = line.partition("=")
        if not equals or not variable.strip().isidentifier():
            problems.append(
                Problem(
                    "APPLIANCE_ENV_FILE",
                    name,
                    "NAME=value lines, and comments that begin with #",
                    f"Line {number} is neither.",
                )
            )
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[variable.strip()] = value
    return {**values, **{k: v for k, v in environ.items() if v or k not in values}}, problems


def load(
    environ: Mapping[str, str] | None = None, *, left_out: LeftOut = NOTHING
) -> tuple[Settings | None, list[Problem]]:
    """Read the settings of every package.

    Args:
        environ: None = os.environ.
        left_out: What is not read.

    Returns:
        (settings, or None where they cannot be used; problems: those that are not fatal are warnings)
    """
    given = dict(os.environ if environ is None else environ)
    env_signature = find_signature(Path(given.get("APPLIANCE_ENV_FILE", "")))
    lines, problems = _with_env_file(given)
    lines = left_out.of_variables(lines)
    merged, config, of_file = _with_config_file(lines, left_out)
    problems += of_file
    settings, found = _load(given, merged, config)
    if any(problem.is_fatal for problem in problems):
        settings = None
    if settings is not None:
        settings = replace(settings, env_signature=env_signature)
    return settings, [*problems, *(tell_place(problem, config, lines) for problem in found)]


def _load(
    given: Mapping[str, str], merged: dict[str, str], config: ConfigFile
) -> tuple[Settings | None, list[Problem]]:
    problems: list[Problem] = []
    is_port = bool(merged.get("PORT")) and not merged.get("PROXY_PORT")  # hosting platforms set PORT
    if is_port:
        merged["PROXY_PORT"] = merged["PORT"]
    packages: dict[str, PackageSettings] = {}
    for name, model in PACKAGES.items():
        value, found = read_settings(model, merged)
        problems += [
            replace(p, variable="PORT") if is_port and p.variable == "PROXY_PORT" else p for p in found
        ]
        if value is not None:
            packages[name] = value
    problems += find_unknown_variables(known_variables(), merged)
    fleet, catalogue, found = _tables(packages, merged, config)
    problems += found
    adapters, found = read_adapter_rows(config)
    problems += [*found, *check_adapter_names(config, adapters, catalogue)]
    if len(packages) < len(PACKAGES):
        return None, problems
    packages["front"] = _quiet_front(packages, merged)
    accounts = packages["accounts"]
    assert isinstance(accounts, AccountSettings)
    prices, found = read_prices(accounts)
    problems += found
    settings = Settings(
        **packages,  # type: ignore[arg-type]
        environ=merged,
        given=given,
        fleet=fleet,
        catalogue=catalogue,
        config=config,
        adapters=adapters,
        prices=prices,
    )
    problems += check_together(
        settings.host,
        settings.models,
        settings.engines,
        settings.front,
        settings.control,
        has_accounts=settings.accounts.accounts,
    )
    problems += check_accounts(settings.accounts, settings.storage, settings.front)
    problems += check_market(settings.market, settings.accounts)
    problems += check_default_model(settings.engines, fleet, catalogue)
    problems += check_aliases(settings.engines, fleet, catalogue)
    problems += check_api(config, catalogue.api, settings.front)
    problems += _check_places(settings)
    return (None if any(p.is_fatal for p in problems) else settings), problems


def _quiet_front(packages: Mapping[str, PackageSettings], environ: Mapping[str, str]) -> PackageSettings:
    """Return the settings of `front`, without the access log where LOG_LEVEL leaves out what is no fault."""
    general = packages["general"]
    assert isinstance(general, GeneralSettings)
    if environ.get("ACCESS_LOG") or general.log_level not in ("warning", "error"):
        return packages["front"]
    return packages["front"].model_copy(update={"access_log": False})


def _check_places(settings: Settings) -> list[Problem]:
    """Check addresses and folders that settings name."""
    engines, front = settings.engines, settings.front
    has_hosted = bool(engines.novita_api_key.get_secret_value())
    return [
        *check_own_addresses(
            settings.fleet,
            engines.novita_openai_endpoints if has_hosted else [],
            proxy_host=front.proxy_host,
            proxy_port=front.proxy_port,
        ),
        *check_proxies(settings.environ),
        *check_folders(
            {
                "STATE_DIR": settings.host.state_dir,
                "DOWNLOAD_DIR": settings.downloads.download_dir,
                "MODEL_LOG_DIR": settings.models.model_log_dir,
            }
        ),
    ]


def _tables(
    packages: Mapping[str, PackageSettings], environ: Mapping[str, str], config: ConfigFile
) -> tuple[FleetSpec, Catalogue, list[Problem]]:
    """Read the backends and the models, where the settings that name their files could be read."""
    engines, models = packages.get("engines"), packages.get("models")
    if not isinstance(engines, EngineSettings) or not isinstance(models, ModelSettings):
        return FleetSpec(), Catalogue({}), []
    fleet, problems = read_fleet(engines, environ, config)
    downloads, host = packages.get("downloads"), packages.get("host")
    folder: Path | None = None
    if isinstance(downloads, DownloadSettings) and isinstance(host, HostSettings):
        folder = download_dir(downloads, host)
    catalogue, found = read_catalogue(
        models, engines.config_path, folder, config=config, has_backends=bool(fleet.backends)
    )
    # Both read the configuration file: if it is unreadable, that is reported once.
    reported = {(problem.value, problem.remedy) for problem in problems}
    problems += [problem for problem in found if (problem.value, problem.remedy) not in reported]
    return fleet, catalogue, problems


def download_dir(downloads: DownloadSettings, host: HostSettings) -> Path:
    """Return the folder of downloads: DOWNLOAD_DIR, else one in STATE_DIR."""
    return (downloads.download_dir or host.state_dir / "models").absolute()


def load_or_raise(
    environ: Mapping[str, str] | None = None, *, left_out: LeftOut = NOTHING
) -> tuple[Settings, list[Problem]]:
    """Read the settings of every package; arguments as those of `load`.

    Returns:
        (settings, warnings)

    Raises:
        InvalidSettings: They cannot be used; it lists every problem.
    """
    settings, problems = load(environ, left_out=left_out)
    if settings is None:
        raise InvalidSettings([p for p in problems if p.is_fatal])
    return settings, problems


def known_variables() -> set[str]:
    """Return every variable that exists, including those that only the shim and the entrypoint read."""
    return {name.upper() for model in PACKAGES.values() for name in model.model_fields} | {
        "APPLIANCE_HOME",
        "CONTROL_ADDRESS",
    }


def described(settings: Settings | None, environ: Mapping[str, str]) -> list[SettingDescription]:
    """Describe every variable, package by package; `settings` None = the defaults."""
    return [
        row
        for name, model in PACKAGES.items()
        for row in describe_settings(
            SHOWN_UNDER.get(name, name), model, getattr(settings, name) if settings else None, environ
        )
    ]


def learn_secrets(settings: Settings) -> None:
    """Register every secret of these settings, so that the log can hide it."""
    SECRETS.learn(Proxies.from_environ(settings.environ).secrets)
    SECRETS.learn(settings.catalogue.secrets())
    for package in fields(settings):
        value = getattr(settings, package.name)
        if isinstance(value, PackageSettings):
            for name in type(value).model_fields:
                secret = getattr(value, name)
                if isinstance(secret, SecretStr):
                    SECRETS.learn([secret.get_secret_value(), *split_keys(secret)])
