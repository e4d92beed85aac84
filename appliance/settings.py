"""All rooms' settings together: read once, every problem at once, described for people."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr

from appliance.base.balancing import STRATEGIES
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
)
from appliance.control.guard import problems as control_problems
from appliance.control.settings import ControlSettings
from appliance.downloads.settings import DownloadSettings
from appliance.engines.settings import EngineSettings
from appliance.engines.specs import FleetSpec, read_fleet
from appliance.front.pipeline.access import is_loopback
from appliance.front.settings import FrontSettings, split_keys
from appliance.host.settings import HostSettings
from appliance.models.settings import ModelSettings
from appliance.models.table.catalogue import Catalogue, read_catalogue


class GeneralSettings(PackageSettings):
    """What belongs to no room."""

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged", json_schema_extra={"reload": True}
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto",
        description="json = one JSON object a line; console = for people; auto = console on a terminal, else json",
    )
    appliance_env_file: Path | None = Field(
        None,
        description="A file of NAME=value lines, read below the environment (which wins) at start and at each reload",
        json_schema_extra={"allowed": "a readable text file"},
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of every room. `environ` is the mapping they were read from, APPLIANCE_ENV_FILE laid under it."""

    general: GeneralSettings
    host: HostSettings
    models: ModelSettings
    downloads: DownloadSettings
    engines: EngineSettings
    front: FrontSettings
    control: ControlSettings
    environ: Mapping[str, str] = field(repr=False)  # it holds every secret
    given: Mapping[str, str] = field(
        repr=False
    )  # the environment itself, without the lines of APPLIANCE_ENV_FILE
    fleet: FleetSpec = field(default_factory=FleetSpec)  # BACKENDS and the configuration file
    catalogue: Catalogue = field(
        default_factory=lambda: Catalogue({})
    )  # the models to be run: the configuration file and MODEL_DIR

    def value_of(self, variable: str) -> Any:
        """Return the value of a variable. Raises KeyError: there is no such variable."""
        name = variable.lower()
        for package, model in ROOMS.items():
            if name in model.model_fields:
                return getattr(getattr(self, package), name)
        raise KeyError(variable)

    @property
    def is_reachable(self) -> bool:
        """Whether the HTTP door listens beyond this machine."""
        return not is_loopback(self.front.proxy_host if self.front.proxy_host != "localhost" else "127.0.0.1")


ROOMS: dict[str, type[PackageSettings]] = {
    "general": GeneralSettings,
    "host": HostSettings,
    "models": ModelSettings,
    "downloads": DownloadSettings,
    "engines": EngineSettings,
    "front": FrontSettings,
    "control": ControlSettings,
}
# Lists of settings (the command line, gRPC) have always shown the variables of downloads under this heading.
SHOWN_UNDER = {"downloads": "models"}


def effective_environ(environ: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Lay the environment over the lines of APPLIANCE_ENV_FILE."""
    name = environ.get("APPLIANCE_ENV_FILE", "")
    if not name:
        return dict(environ), []
    try:
        text = Path(name).read_text()
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


def load(environ: Mapping[str, str] | None = None) -> tuple[Settings | None, list[Problem]]:
    """Read every room's settings.

    Takes   environ: default os.environ
    Gives   (settings or None, problems); those with is_fatal=False are warnings and do not stop anything
    """
    own = dict(os.environ if environ is None else environ)
    given, problems = effective_environ(own)
    is_port = bool(given.get("PORT")) and not given.get(
        "PROXY_PORT"
    )  # system C's name for it, and many hosts'
    if is_port:
        given["PROXY_PORT"] = given["PORT"]
    rooms: dict[str, PackageSettings] = {}
    for name, model in ROOMS.items():
        value, found = read_settings(model, given)
        problems += [
            replace(p, variable="PORT") if is_port and p.variable == "PROXY_PORT" else p for p in found
        ]
        if value is not None:
            rooms[name] = value
    problems += find_unknown_variables(known_variables(), given)
    fleet, catalogue, found = _tables(rooms, given)
    problems += found
    if len(rooms) < len(ROOMS):
        return None, problems
    settings = Settings(**rooms, environ=given, given=own, fleet=fleet, catalogue=catalogue)  # type: ignore[arg-type]
    problems += _across_rooms(settings)
    return (None if any(p.is_fatal for p in problems) else settings), problems


def _tables(
    rooms: Mapping[str, PackageSettings], environ: Mapping[str, str]
) -> tuple[FleetSpec, Catalogue, list[Problem]]:
    """Read the backends and the models, where the settings that name their files could be read."""
    engines, models = rooms.get("engines"), rooms.get("models")
    if not isinstance(engines, EngineSettings) or not isinstance(models, ModelSettings):
        return FleetSpec(), Catalogue({}), []
    fleet, problems = read_fleet(engines, environ)
    downloads, host = rooms.get("downloads"), rooms.get("host")
    folder: Path | None = None
    if isinstance(downloads, DownloadSettings) and isinstance(host, HostSettings):
        folder = download_dir(downloads, host)
    catalogue, found = read_catalogue(models, engines.config_path, folder)
    # Both read the configuration file: that it cannot be read is said once.
    told = {(problem.value, problem.remedy) for problem in problems}
    return (
        fleet,
        catalogue,
        problems + [problem for problem in found if (problem.value, problem.remedy) not in told],
    )


def download_dir(downloads: DownloadSettings, host: HostSettings) -> Path:
    """Give the folder of downloads: DOWNLOAD_DIR, else one in STATE_DIR."""
    return (downloads.download_dir or host.state_dir / "models").absolute()


def load_or_raise(environ: Mapping[str, str] | None = None) -> tuple[Settings, list[Problem]]:
    """Read every room's settings; raise BadSettings when they cannot be used."""
    settings, problems = load(environ)
    if settings is None:
        raise InvalidSettings([p for p in problems if p.is_fatal])
    return settings, problems


def known_variables() -> set[str]:
    """Every variable of every room, and those read by the shim and the entrypoint alone."""
    return {name.upper() for model in ROOMS.values() for name in model.model_fields} | {
        "APPLIANCE_HOME",
        "CONTROL_ADDRESS",
    }


def _across_rooms(settings: Settings) -> list[Problem]:
    """What only shows when two rooms are seen together."""
    front, control = settings.front, settings.control
    problems = list(control_problems(control))
    if settings.engines.lb_strategy not in STRATEGIES:
        problems.append(
            Problem(
                "LB_STRATEGY",
                settings.engines.lb_strategy,
                ", ".join(STRATEGIES),
                f"There is no such strategy; round_robin is used. Known: {', '.join(STRATEGIES)}.",
                is_fatal=False,
            )
        )
    if control.control and control.control_port == front.proxy_port:
        problems.append(
            Problem(
                "CONTROL_PORT",
                str(control.control_port),
                "another port than PROXY_PORT",
                "Both doors cannot listen on one port; change one of them.",
            )
        )
    problems += _status_port(settings) + _sidecar_port(settings)
    has_worker = bool(settings.host.worker or settings.host.worker_command)
    if (
        has_worker
        and control.control
        and control.control_port
        and not control.control_token.get_secret_value()
    ):
        problems.append(
            Problem(
                "CONTROL_TOKEN",
                "",
                "a secret",
                "A worker runs beside a control API without a token: whatever it runs could steer the appliance, "
                "and send the hosted key elsewhere by a reload. Set CONTROL_TOKEN or CONTROL_TOKEN_FILE, or CONTROL=0.",
                is_fatal=False,
            )
        )
    if settings.is_reachable and not split_keys(front.appliance_api_keys):
        problems.append(
            Problem(
                "PROXY_HOST",
                front.proxy_host,
                "any address",
                f"Port {front.proxy_port} is open: everybody who reaches it can use the models and spend the hosted key's credit. "
                "Set APPLIANCE_API_KEYS, or publish the port on 127.0.0.1 only.",
                is_fatal=False,
            )
        )
    return problems


def _sidecar_port(settings: Settings) -> list[Problem]:
    """The sidecar's addresses beside the doors: 1. a port that one of them has   2. open to other machines without a key."""
    front, control = settings.front, settings.control
    if front.sidecar_port is None:
        return []
    problems = []
    doors = {
        "PROXY_PORT": front.proxy_port,
        "CONTROL_PORT": control.control_port if control.control else None,
        "STATUS_PORT": settings.models.status_port,
    }
    for variable, taken in doors.items():
        if taken == front.sidecar_port:  # 1
            problems.append(
                Problem(
                    "SIDECAR_PORT",
                    str(taken),
                    f"another port than {variable}",
                    f"{variable} is {taken}, too; change one of them.",
                )
            )
    host = "127.0.0.1" if front.sidecar_host == "localhost" else front.sidecar_host
    if not is_loopback(host) and not split_keys(front.appliance_api_keys):  # 2
        problems.append(
            Problem(
                "SIDECAR_HOST",
                front.sidecar_host,
                "any address",
                f"Port {front.sidecar_port} is open without a key: everybody who "
                "reaches it can read the engine's metrics. Changes are for callers on this machine. Set APPLIANCE_API_KEYS.",
                is_fatal=False,
            )
        )
    return problems


def _status_port(settings: Settings) -> list[Problem]:
    """The status listener beside the doors: 1. a port that one of them has   2. readings without a key for other machines."""
    port, host = settings.models.status_port, settings.models.status_host
    if port is None:
        return []
    problems = []
    doors = {
        "PROXY_PORT": settings.front.proxy_port,
        "CONTROL_PORT": settings.control.control_port if settings.control.control else None,
    }
    for variable, taken in doors.items():
        if taken == port:  # 1
            problems.append(
                Problem(
                    "STATUS_PORT",
                    str(port),
                    f"another port than {variable}",
                    "Both cannot listen on one port; change one of them.",
                )
            )
    if not is_loopback(host if host != "localhost" else "127.0.0.1"):  # 2
        problems.append(
            Problem(
                "STATUS_HOST",
                host,
                "any address",
                f"Port {port} is open: everybody who reaches it sees which models there "
                "are and how busy they are. Set STATUS_HOST=127.0.0.1, or publish the port on 127.0.0.1 only.",
                is_fatal=False,
            )
        )
    return problems


def described(settings: Settings | None, environ: Mapping[str, str]) -> list[SettingDescription]:
    """Say everything about every variable, room by room."""
    return [
        row
        for name, model in ROOMS.items()
        for row in describe_settings(
            SHOWN_UNDER.get(name, name), model, getattr(settings, name) if settings else None, environ
        )
    ]


def learn_secrets(settings: Settings) -> None:
    """Teach the log every secret of these settings, so that it can blank them."""
    SECRETS.learn(Proxies.from_environ(settings.environ).secrets)
    for room in fields(settings):
        value = getattr(settings, room.name)
        if isinstance(value, PackageSettings):
            for name in type(value).model_fields:
                secret = getattr(value, name)
                if isinstance(secret, SecretStr):
                    SECRETS.learn([secret.get_secret_value(), *split_keys(secret)])
