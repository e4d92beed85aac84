"""The definitions of backends and pools: from BACKENDS, from CONFIG_PATH, or added at run time.

They are read and checked here; nothing is opened.

    {"backends": [{"url": "http://llm-1:8080", "name": "llm-1", "kind": "auto", "weight": 2,
                   "models": ["tiny"], "api_key_env": "LLM_1_KEY", "pool": "default"}],
     "pools": [{"name": "default", "strategy": "least_busy", "overflow": "hosted"}]}
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from appliance.base.balancing import STRATEGIES, compute_vram_weight
from appliance.base.config_file import ConfigFile, read_config_file
from appliance.base.errors import Invalid
from appliance.base.files import read_text_file
from appliance.base.plain_text import hide_in_addresses
from appliance.base.setting_types import is_remote_host
from appliance.base.settings import Problem
from appliance.engines.settings import EngineSettings, check_key
from appliance.models.table.section import hint_of

DEFAULT_POOL = "default"
HOSTED_POOL = "hosted"
OWN_KEYS = {"backends", "pools"}
OTHER_KEYS = {
    "api",
    "system",
    "models",
    "groups",
    "settings",
    "adapters",
    "$schema",
}  # in the same file: for other packages, and for editors
Spec = TypeVar("Spec")
# The kinds of the table of dialects, which lies above this module; a test holds them equal.
EngineKind: TypeAlias = Literal["auto", "llamacpp", "vllm", "sglang", "openai"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\[\]-]{0,127}")


class Tls(BaseModel):
    """Certificates of server and client, as PEM files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: bool = Field(
        default=True,
        description="false = accept any certificate: anyone on the network path can read and change all data",
    )
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = Field(
        default="",
        max_length=253,
        description="The name in its certificate, where the address has another one",
    )

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file must both be given")
        for name in (self.ca_file, self.cert_file, self.key_file):
            if name and not Path(name).is_file():
                raise ValueError(f"{name} is not a readable file")
        return self


class BackendSpec(BaseModel):
    """One backend. `name` defaults to host and port of the address."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    url: str
    name: str = ""
    kind: EngineKind = "auto"
    pool: str = DEFAULT_POOL
    weight: float | None = Field(default=None, gt=0, le=1000)
    vram_gib: float | None = Field(default=None, ge=0, le=100_000)
    price_per_hour: float | None = Field(default=None, ge=0, le=100_000)
    cost: float = Field(
        default=0.0,
        ge=0,
        description="Its cost, in any unit: of equally busy backends the cheaper one is chosen",
    )
    max_in_flight: int | None = Field(default=None, ge=1, le=1_000_000)
    models: tuple[str, ...] = ()
    api_key: SecretStr = SecretStr("")
    api_key_env: str = ""
    api_key_file: str = ""
    tls: Tls = Tls()

    @field_validator("url")
    @classmethod
    def _url(cls, value: str) -> str:
        parts = urlsplit(value if "://" in value else f"http://{value}")
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"{hide_in_addresses(value)!r} is not an http(s) address")
        if not is_remote_host(parts.hostname):
            raise ValueError(f"{parts.hostname!r} is no host: it must be a name or an IP address")
        if parts.username or parts.password:
            raise ValueError("an address must not hold credentials; use api_key_env or api_key_file")
        if parts.query or parts.fragment:
            raise ValueError("an address must not hold '?' or '#'")
        _ = parts.port  # raises ValueError where it is not a number
        path = parts.path.rstrip("/").removesuffix("/v1")
        return f"{parts.scheme}://{parts.netloc}{path}"

    @field_validator("name", "pool")
    @classmethod
    def _names(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise ValueError(
                "a name is 1-128 letters, digits and . _ : - [ ], and begins with a letter or digit"
            )
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sum(map(bool, (self.api_key.get_secret_value(), self.api_key_env, self.api_key_file))) > 1:
            raise ValueError("give only one of api_key, api_key_env and api_key_file")
        if not self.name:
            parts = urlsplit(self.url)
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            object.__setattr__(
                self, "name", f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
            )
        return self

    @property
    def effective_weight(self) -> float:
        """Its weight: as given, else computed from GPU memory and price (see compute_vram_weight)."""
        if self.weight is not None:
            return self.weight
        return compute_vram_weight(self.vram_gib, self.price_per_hour) if self.vram_gib is not None else 1.0

    def with_key(self, environ: Mapping[str, str]) -> "BackendSpec":
        """Return the same backend with its key, read from `api_key_env` or `api_key_file`.

        Raises:
            ValueError: The variable is not set, the file cannot be read, or the key cannot be sent.
        """
        if self.api_key_env:
            key = environ.get(self.api_key_env, "")
            if not key:
                raise ValueError(f"api_key_env: the variable {self.api_key_env} is not set")
        elif self.api_key_file:
            try:
                key = read_text_file(Path(self.api_key_file)).strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise ValueError(f"api_key_file: {self.api_key_file} cannot be read: {exc}") from None
        else:
            check_key(self.api_key.get_secret_value())
            return self
        check_key(key)
        return self.model_copy(update={"api_key": SecretStr(key), "api_key_env": "", "api_key_file": ""})


class PoolSpec(BaseModel):
    """A set of backends that can replace each other."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str
    strategy: str = ""
    overflow: str = Field(
        default="", description="The pool that takes requests when every backend of this one is full or down"
    )

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, value: str) -> str:
        if value and value not in STRATEGIES:
            raise ValueError(f"must be one of {', '.join(STRATEGIES)}")
        return value


class FleetSpec(BaseModel):
    """All backends and pools."""

    model_config = ConfigDict(frozen=True)

    backends: tuple[BackendSpec, ...] = ()
    pools: tuple[PoolSpec, ...] = ()

    def pool(self, name: str) -> PoolSpec:
        """Return the pool of that name; one that is not configured has the defaults."""
        return next((pool for pool in self.pools if pool.name == name), PoolSpec(name=name))


def read_fleet(
    settings: EngineSettings, environ: Mapping[str, str], config: ConfigFile | None = None
) -> tuple[FleetSpec, list[Problem]]:
    """Read BACKENDS and the configuration file.

    Args:
        settings: The package's.
        environ: Where `api_key_env` is looked up.
        config: The file of CONFIG_PATH; None = it is read.

    Returns:
        (fleet, problems). If a problem is fatal, the fleet must not be used.
    """
    addresses, problems = _read_addresses(settings)
    file, file_problems = _read_file(
        config if config is not None else read_config_file(settings.config_path), environ
    )
    backends = (*addresses, *file.backends)
    fleet = FleetSpec(backends=backends, pools=_with_overflow(file.pools, settings.lb_overflow))
    problems += [*file_problems, *_duplicates(backends), *_overflow_problems(fleet, settings)]
    return fleet, problems


def parse_backend(value: dict[str, Any], environ: Mapping[str, str]) -> BackendSpec:
    """Read one backend that is added at run time.

    Args:
        value: The fields of BackendSpec.
        environ: Where `api_key_env` is looked up.

    Raises:
        Invalid: A field is wrong; `param` names it.
    """
    try:
        return BackendSpec.model_validate(value).with_key(environ)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise Invalid(
            f"The backend is not valid: {_describe(exc)}", param=".".join(map(str, first["loc"])) or None
        ) from None
    except ValueError as exc:
        raise Invalid(f"The backend is not valid: {exc}.", param="api_key") from None


def _read_addresses(settings: EngineSettings) -> tuple[list[BackendSpec], list[Problem]]:
    """Read BACKENDS: each entry is an address, or `name=address`."""
    backends: list[BackendSpec] = []
    problems: list[Problem] = []
    for entry in settings.backends:
        name, equals, address = entry.partition("=")
        is_named = bool(equals) and "/" not in name
        try:
            backends.append(BackendSpec(url=address, name=name) if is_named else BackendSpec(url=entry))
        except ValidationError as exc:
            allowed = "addresses separated by commas, each `http://host:port` or `name=http://host:port`"
            problems.append(Problem("BACKENDS", hide_in_addresses(entry), allowed, _describe(exc)))
    return backends, problems


def _read_file(config: ConfigFile, environ: Mapping[str, str]) -> tuple[FleetSpec, list[Problem]]:
    """Read the backends and pools of the configuration file; rows with a problem are left out."""
    if config.problem:
        return FleetSpec(), [config.problem_at("", config.problem)]
    known = OTHER_KEYS | OWN_KEYS
    remedies = [
        f"The key {key!r} is unknown. {hint_of(key, known)}" for key in config.sections if key not in known
    ]
    value = dict(config.sections)
    backends = _read_rows(
        "backends", value, lambda row: BackendSpec.model_validate(row).with_key(environ), remedies
    )
    pools = _read_rows("pools", value, PoolSpec.model_validate, remedies)
    problems = [config.problem_at("", remedy) for remedy in remedies]
    return FleetSpec(backends=tuple(backends), pools=tuple(pools)), problems


def _read_rows(
    section: str, value: dict[str, Any], parse: Callable[[Any], Spec], remedies: list[str]
) -> list[Spec]:
    """Read one list of the file; what is wrong is added to `remedies`."""
    rows = value.get(section, [])
    if not isinstance(rows, list):
        remedies.append(f"`{section}` must be a list.")
        return []
    found = []
    for number, row in enumerate(rows):
        try:
            found.append(parse(row))
        except ValidationError as exc:
            remedies.append(f"{section}[{number}]: {_describe(exc)}")
        except ValueError as exc:
            remedies.append(f"{section}[{number}]: {exc}.")
    return found


def _with_overflow(pools: tuple[PoolSpec, ...], overflow: str) -> tuple[PoolSpec, ...]:
    """Give the default pool the overflow of LB_OVERFLOW, unless the file gives it one."""
    default = next((pool for pool in pools if pool.name == DEFAULT_POOL), PoolSpec(name=DEFAULT_POOL))
    if not overflow or default.overflow:
        return pools
    others = (pool for pool in pools if pool.name != DEFAULT_POOL)
    return (*others, default.model_copy(update={"overflow": overflow}))


def _duplicates(backends: Sequence[BackendSpec]) -> list[Problem]:
    counts = Counter(spec.name for spec in backends)
    return [
        Problem(
            "BACKENDS",
            name,
            "each backend once",
            f"Two backends are called {name}; give each its own `name`.",
        )
        for name in sorted(name for name, count in counts.items() if count > 1)
    ]


def _overflow_problems(fleet: FleetSpec, settings: EngineSettings) -> list[Problem]:
    """Return the problems of overflows: an unknown pool, a circle, a hosted API without a key."""
    known = {spec.pool for spec in fleet.backends} | {pool.name for pool in fleet.pools} | {HOSTED_POOL}
    problems = []
    for pool in fleet.pools:
        if pool.overflow and pool.overflow not in known:
            problems.append(
                Problem(
                    "CONFIG_PATH" if settings.config_path else "LB_OVERFLOW",
                    pool.overflow,
                    f"one of {', '.join(sorted(known))}",
                    f"The pool {pool.name} overflows into a pool that does not exist.",
                )
            )
        if circle := _circle(fleet, pool):
            problems.append(
                Problem(
                    "CONFIG_PATH",
                    pool.name,
                    "overflows without a circle",
                    f"The overflow of {pool.name} leads back to {circle}.",
                )
            )
    is_hosted_needed = any(pool.overflow == HOSTED_POOL for pool in fleet.pools)
    if is_hosted_needed and not settings.novita_api_key.get_secret_value():
        problems.append(
            Problem(
                "NOVITA_API_KEY",
                "",
                "a key",
                "A pool overflows into the hosted API, which has no key. "
                "Set NOVITA_API_KEY, or remove the overflow.",
            )
        )
    return problems


def _circle(fleet: FleetSpec, pool: PoolSpec) -> str:
    """Return the pool that a pool's overflows lead to twice; "" = there is no circle."""
    seen, name = {pool.name}, pool.overflow
    while name and name not in seen:
        seen.add(name)
        name = fleet.pool(name).overflow
    return name


def _describe(exc: ValidationError) -> str:
    """Describe the error in one line, without values (one of them may be a key)."""
    rows = [(".".join(map(str, error["loc"])), _message(error)) for error in exc.errors(include_input=False)]
    text = "; ".join(f"{field}: {message}" if field else message for field, message in rows)
    return text if text.endswith("?") else f"{text}."


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        known = (
            Tls.model_fields if len(error["loc"]) > 1 else BackendSpec.model_fields | PoolSpec.model_fields
        )
        return f"unknown key. {hint_of(str(error['loc'][-1]), known)}".rstrip(".")
    return str(error["msg"]).removeprefix("Value error, ")
