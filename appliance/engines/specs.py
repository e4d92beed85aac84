"""Which backends and pools there are to be: from BACKENDS, from the configuration file, and from calls at run time. Read and
checked here; nothing is opened.

    {"backends": [{"url": "http://llm-1:8080", "name": "llm-1", "kind": "auto", "weight": 2, "models": ["tiny"],
                   "api_key_env": "LLM_1_KEY", "pool": "default"}],
     "pools": [{"name": "default", "strategy": "least_busy", "overflow": "hosted"}]}
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self
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

from appliance.base import jsons
from appliance.base.balancing import STRATEGIES, compute_vram_weight
from appliance.base.errors import Invalid
from appliance.base.settings import Problem
from appliance.engines.settings import EngineSettings

DEFAULT_POOL = "default"
HOSTED_POOL = "hosted"
# Other top-level keys that the same file may have: they are the model manager's, and an editor's.
OTHER_KEYS = {"api", "system", "models", "$schema"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\[\]-]{0,127}")


class Tls(BaseModel):
    """How the server proves who it is, and how we do: files in PEM."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verify: bool = Field(
        default=True,
        description="false = accept any certificate: whoever sits between can read and change everything",
    )
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("cert_file and key_file go together")
        for name in (self.ca_file, self.cert_file, self.key_file):
            if name and not Path(name).is_file():
                raise ValueError(f"{name} is no readable file")
        return self


class BackendSpec(BaseModel):
    """One backend as the operator wants it. `name` defaults to the address's host and port."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    url: str
    name: str = ""
    kind: Literal["auto", "llamacpp", "vllm", "sglang", "openai"] = "auto"
    pool: str = DEFAULT_POOL
    weight: float | None = Field(default=None, gt=0, le=1000)
    vram_gib: float | None = Field(default=None, ge=0, le=100_000)
    price_per_hour: float | None = Field(default=None, ge=0, le=100_000)
    cost: float = Field(
        default=0.0,
        ge=0,
        description="What it costs to use, in any unit: of equally busy ones the cheaper is taken",
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
            raise ValueError(f"{value!r} is no http(s) address")
        if parts.username or parts.password:
            raise ValueError("put no credentials into an address; use api_key_env or api_key_file")
        if parts.query or parts.fragment:
            raise ValueError("an address ends before ? and #")
        _ = parts.port  # raises ValueError where it is no number
        path = parts.path.rstrip("/").removesuffix("/v1")
        return f"{parts.scheme}://{parts.netloc}{path}"

    @field_validator("name", "pool")
    @classmethod
    def _names(cls, value: str) -> str:
        if value and not _NAME.fullmatch(value):
            raise ValueError("a name has letters, digits and . _ : - [ ], 128 at most")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if sum(map(bool, (self.api_key.get_secret_value(), self.api_key_env, self.api_key_file))) > 1:
            raise ValueError("give one of api_key, api_key_env and api_key_file")
        if not self.name:
            parts = urlsplit(self.url)
            host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
            object.__setattr__(
                self, "name", f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
            )
        return self

    @property
    def share(self) -> float:
        """Its weight: as given, else by its memory and price as system B has it."""
        if self.weight is not None:
            return self.weight
        return compute_vram_weight(self.vram_gib, self.price_per_hour) if self.vram_gib is not None else 1.0

    def with_key(self, environ: Mapping[str, str]) -> "BackendSpec":
        """Give the same with its key read from where it is named.

        Raises  ValueError: the variable is not set, or the file cannot be read
        """
        if self.api_key_env:
            key = environ.get(self.api_key_env, "")
            if not key:
                raise ValueError(f"api_key_env names {self.api_key_env}, which is not set")
        elif self.api_key_file:
            try:
                key = Path(self.api_key_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as exc:
                raise ValueError(f"api_key_file cannot be read: {exc}") from None
        else:
            return self
        return self.model_copy(update={"api_key": SecretStr(key), "api_key_env": "", "api_key_file": ""})


class PoolSpec(BaseModel):
    """One set of backends that stand in for each other."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)

    name: str
    strategy: str = ""
    overflow: str = Field(
        default="", description="The pool that is asked when every backend of this one is full or down"
    )

    @field_validator("strategy")
    @classmethod
    def _strategy(cls, value: str) -> str:
        if value and value not in STRATEGIES:
            raise ValueError(f"strategy is one of {', '.join(STRATEGIES)}")
        return value


class FleetSpec(BaseModel):
    """All backends and pools."""

    model_config = ConfigDict(frozen=True)

    backends: tuple[BackendSpec, ...] = ()
    pools: tuple[PoolSpec, ...] = ()

    def pool(self, name: str) -> PoolSpec:
        return next((pool for pool in self.pools if pool.name == name), PoolSpec(name=name))


def read_fleet(settings: EngineSettings, environ: Mapping[str, str]) -> tuple[FleetSpec, list[Problem]]:
    """Read BACKENDS and the configuration file.

    Gives   (what could be read, problems): fatal ones mean that it must not be used
    """
    problems: list[Problem] = []
    backends: list[BackendSpec] = []
    for address in settings.backends:
        name, equals, url = address.partition("=")
        try:
            backends.append(
                BackendSpec(url=url, name=name) if equals and "/" not in name else BackendSpec(url=address)
            )
        except ValidationError as exc:
            problems.append(
                Problem(
                    "BACKENDS",
                    address,
                    "addresses separated by commas, each `http://host:port` or `name=http://host:port`",
                    _said(exc),
                )
            )
    rows, pools, found = _read_file(settings, environ)
    problems += found
    backends += rows
    names = [spec.name for spec in backends]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(
            Problem(
                "BACKENDS", name, "each backend once", f"Two backends are called {name}; give them a `name`."
            )
        )
    if settings.lb_overflow and not any(pool.name == DEFAULT_POOL and pool.overflow for pool in pools):
        former = next((pool for pool in pools if pool.name == DEFAULT_POOL), PoolSpec(name=DEFAULT_POOL))
        pools = [pool for pool in pools if pool.name != DEFAULT_POOL] + [
            former.model_copy(update={"overflow": settings.lb_overflow})
        ]
    fleet = FleetSpec(backends=tuple(backends), pools=tuple(pools))
    return fleet, problems + _chains(fleet, settings)


def parse_backend(value: dict[str, Any], environ: Mapping[str, str]) -> BackendSpec:
    """Read one backend given at run time.

    Raises  Invalid: says which field, and what it takes
    """
    try:
        return BackendSpec.model_validate(value).with_key(environ)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise Invalid(
            f"The backend cannot be used: {_said(exc)}", param=".".join(map(str, first["loc"])) or None
        ) from None
    except ValueError as exc:
        raise Invalid(f"The backend cannot be used: {exc}.", param="api_key") from None


def _read_file(
    settings: EngineSettings, environ: Mapping[str, str]
) -> tuple[list[BackendSpec], list[PoolSpec], list[Problem]]:
    path = settings.config_path
    if path is None:
        return [], [], []

    def problem(remedy: str) -> Problem:
        return Problem("CONFIG_PATH", str(path), "a JSON file with `backends` and `pools`", remedy)

    try:
        value = jsons.loads(Path(path).read_bytes())
    except OSError as exc:
        return [], [], [problem(f"It cannot be read: {exc.strerror or exc}.")]
    except jsons.InvalidJson as exc:
        return [], [], [problem(f"It is no JSON: {exc}.")]
    if not isinstance(value, dict):
        return [], [], [problem("It must hold one JSON object.")]
    problems = [
        problem(f"It has the key {key!r}, which is not known.")
        for key in value
        if key not in OTHER_KEYS | {"backends", "pools"}
    ]
    backends: list[BackendSpec] = []
    pools: list[PoolSpec] = []
    for section, model in (("backends", BackendSpec), ("pools", PoolSpec)):
        rows = value.get(section, [])
        if not isinstance(rows, list):
            problems.append(problem(f"`{section}` must be a list."))
            continue
        for number, row in enumerate(rows):
            try:
                made = model.model_validate(row)
                if isinstance(made, BackendSpec):
                    backends.append(made.with_key(environ))
                else:
                    pools.append(made)
            except ValidationError as exc:
                problems.append(problem(f"{section}[{number}]: {_said(exc)}"))
            except ValueError as exc:
                problems.append(problem(f"{section}[{number}]: {exc}."))
    return backends, pools, problems


def _chains(fleet: FleetSpec, settings: EngineSettings) -> list[Problem]:
    """Overflows that lead nowhere, or round in a circle."""
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
        seen, at = {pool.name}, pool.overflow
        while at:
            if at in seen:
                problems.append(
                    Problem(
                        "CONFIG_PATH",
                        pool.name,
                        "overflows without a circle",
                        f"The overflow of {pool.name} leads back to {at}.",
                    )
                )
                break
            seen.add(at)
            at = fleet.pool(at).overflow
    if (
        any(pool.overflow == HOSTED_POOL for pool in fleet.pools)
        and not settings.novita_api_key.get_secret_value()
    ):
        problems.append(
            Problem(
                "NOVITA_API_KEY",
                "",
                "a key",
                "A pool overflows into the hosted API, which has no key. Set NOVITA_API_KEY, or "
                "take the overflow away.",
            )
        )
    return problems


def _said(exc: ValidationError) -> str:
    """Say what is wrong in one line, without the values (one of them may be a key)."""
    rows = [
        (".".join(map(str, e["loc"])) or "it", e["msg"].removeprefix("Value error, "))
        for e in exc.errors(include_input=False)
    ]
    return "; ".join(f"{where}: {what}" for where, what in rows) + "."
