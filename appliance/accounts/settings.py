"""Settings of accounts and money. This module is always imported, and imports nothing of the rest."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from appliance.base.setting_types import DurationS, Switch, duration
from appliance.base.settings import PackageSettings

MIN_SECRET_CHARS = 32
EXAMPLE = re.compile(r"(change|replace)[-_ ]?(me|this)|your[-_ ]|example")  # as files to copy have them
WELL_KNOWN = re.compile(r"changeme|secret|password|jwt|[-_. 0-9]")  # repeated until they are long enough
MAX_USD = Decimal(1_000_000_000)
USD: dict[str, Any] = {"allowed": "dollars with up to 6 decimals", "is_text": True}
# Minutes of the spending windows; two more are 48 and 72 hours.
WINDOW_MINUTES = (5, 15, 30, 60, 90, 120, 240, 300, 360, 400, 460, 520, 640, 700, 1440)


def _decimal(value: object) -> object:
    """Take a number as it is written: 0.1 is a tenth."""
    return Decimal(str(value)) if isinstance(value, float) else value


Usd = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=0, le=MAX_USD, decimal_places=6)]


def _limit(window: str) -> Any:
    """Return the field of one spending window."""
    return Field(
        Decimal(0),
        description=f"Most dollars that a user can spend in {window}; 0 = no limit",
        json_schema_extra=USD,
    )


class AccountSettings(PackageSettings):
    """Users, their keys and sessions, prices, and what a user can spend."""

    accounts: Switch = Field(
        False,
        description="1 = users with API keys, sessions and credits (docs/accounts.md); 0 = nothing of that "
        "is loaded, and no database is opened",
    )
    registration: Literal["off", "open"] = Field(
        "off", description="open = anyone can register; off = an administrator creates users"
    )
    signup_credits_usd: Usd = Field(
        Decimal(0), description="Dollars of credit that a new user gets", json_schema_extra=USD
    )
    jwt_secret: SecretStr = Field(
        SecretStr(""),
        description="Signs access tokens, refresh tokens and the snapshot of accounts; needed with "
        "ACCOUNTS=1, the same on all replicas. `openssl rand -base64 48` makes one",
        json_schema_extra={"allowed": f"at least {MIN_SECRET_CHARS} characters, no well-known word"},
    )
    jwt_secret_previous: SecretStr = Field(
        SecretStr(""),
        description="The former JWT_SECRET: tokens signed with it are valid until they expire",
        json_schema_extra={"allowed": "text"},
    )
    jwt_expiration: DurationS = Field(
        86_400.0,
        ge=60,
        le=2_592_000,
        description="How long an access token is valid; 15m is recommended",
        json_schema_extra=duration("24h"),
    )
    refresh_expiration: DurationS = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="How long a session lasts without being used",
        json_schema_extra=duration("168h"),
    )
    refresh_grace_s: float = Field(
        20.0,
        ge=0,
        le=600,
        description="Seconds in which a used refresh token gets the same successor once more (two tabs, a "
        "lost answer); later its use ends the session",
    )
    session_mode: Literal["balanced", "sql", "redis"] = Field(
        "balanced",
        description="Where sessions are kept: balanced = in the database and, for speed, in Redis (as sql "
        "where REDIS_HOST is not set); sql = in the database; redis = in Redis alone",
    )
    api_key_length: int = Field(32, ge=16, le=128, description="Random bytes of a new API key")
    password_min: int = Field(10, ge=6, le=1024, description="Fewest characters of a password")
    key_snapshot_max: int = Field(
        200_000,
        ge=100,
        le=10_000_000,
        description="Most API keys that are kept in memory, about a kilobyte each; others are looked up",
    )
    static_keys_user: str = Field(
        "",
        max_length=254,
        description="E-mail of the user who pays for requests with keys of APPLIANCE_API_KEYS; empty = they "
        "are not billed",
        json_schema_extra={"allowed": "an e-mail address"},
    )
    prices_file: Path | None = Field(
        None,
        description="A JSON file of prices, read at start and at each reload",
        json_schema_extra={"allowed": "a readable file", "reload": True},
    )
    unpriced: Literal["refuse", "free", "flat"] = Field(
        "refuse",
        description="What a model costs for which neither it nor `*` has a price: refuse = users get 402; "
        "free = nothing; flat = as refuse, `*` is to have the price",
    )
    hold_slice_tokens: int = Field(
        256, ge=1, le=100_000, description="A running response is paid for in pieces of so many tokens"
    )
    wallet_lease_max_usd: Usd = Field(
        Decimal("0.25"),
        description="Most dollars of one user's credit that a replica sets aside at a time, to spend without "
        "asking the database",
        json_schema_extra=USD,
    )
    snapshot_max_age_s: float = Field(
        3600.0,
        ge=10,
        le=604_800,
        description="Seconds for which known API keys stay valid while the database is down",
    )
    journal_max_mb: int = Field(
        64,
        ge=16,
        le=65_536,
        description="Most megabytes of charges that wait for the database; then users' requests get 503",
    )
    bill_unanswered: Literal["supply", "none"] = Field(
        "supply",
        description="A client that leaves before the first event pays: supply = for its prompt where a "
        "hosted API bills it; none = nothing",
    )
    bill_broken: Literal["counted", "none"] = Field(
        "counted",
        description="A response that the backend broke off costs: counted = what came; none = nothing",
    )
    rate_limit_requests_per_minute: int = Field(
        100, ge=0, le=10_000_000, description="Most requests of a user in a minute; 0 = no limit"
    )
    rate_limit_requests_per_day: int = Field(
        0, ge=0, le=1_000_000_000, description="Most requests of a user in a day; 0 = no limit"
    )
    rate_limit_tokens_per_minute: int = Field(
        0, ge=0, le=10_000_000_000, description="Most tokens of a user in a minute; 0 = no limit"
    )
    rate_limit_tokens_per_day: int = Field(
        0, ge=0, le=1_000_000_000_000, description="Most tokens of a user in a day; 0 = no limit"
    )
    rate_limit_concurrent: int = Field(
        0, ge=0, le=1_000_000, description="Most requests of a user at a time; 0 = no limit"
    )
    quota_max_requests: int = Field(
        10_000,
        ge=0,
        le=1_000_000_000_000,
        description="Requests that a new user can make in a month; 0 = no limit",
    )
    quota_max_gpu_hours: Annotated[Decimal, BeforeValidator(_decimal)] = Field(
        Decimal("100.00"),
        ge=0,
        le=1_000_000,
        description="Hours of rented GPUs that a new user can use in a month; 0 = no limit",
        json_schema_extra={"allowed": "a number from 0 to 1000000", "is_text": True},
    )
    guardrails_enabled: Switch = Field(
        False, description="1 = the limits below hold for what each user spends in a span of time"
    )
    guardrails_user_reset: Switch = Field(
        False, description="1 = users can let their own spans of spending begin anew; 0 = operators alone can"
    )
    guardrails_max_5min_rate: Usd = _limit("5 minutes")
    guardrails_max_15min_rate: Usd = _limit("15 minutes")
    guardrails_max_30min_rate: Usd = _limit("30 minutes")
    guardrails_max_60min_rate: Usd = _limit("60 minutes")
    guardrails_max_90min_rate: Usd = _limit("90 minutes")
    guardrails_max_120min_rate: Usd = _limit("120 minutes")
    guardrails_max_240min_rate: Usd = _limit("240 minutes")
    guardrails_max_300min_rate: Usd = _limit("300 minutes")
    guardrails_max_360min_rate: Usd = _limit("360 minutes")
    guardrails_max_400min_rate: Usd = _limit("400 minutes")
    guardrails_max_460min_rate: Usd = _limit("460 minutes")
    guardrails_max_520min_rate: Usd = _limit("520 minutes")
    guardrails_max_640min_rate: Usd = _limit("640 minutes")
    guardrails_max_700min_rate: Usd = _limit("700 minutes")
    guardrails_max_1440min_rate: Usd = _limit("1440 minutes")
    guardrails_max_48h_rate: Usd = _limit("48 hours")
    guardrails_max_72h_rate: Usd = _limit("72 hours")

    @field_validator("jwt_secret", "jwt_secret_previous")
    @classmethod
    def _secret(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not text:
            return value
        if len(text) < MIN_SECRET_CHARS:
            raise ValueError(f"it has {len(text)} characters, and needs {MIN_SECRET_CHARS}")
        if not WELL_KNOWN.sub("", text.lower()):
            raise ValueError("it is a well-known word, or one repeated; make a random one")
        if EXAMPLE.match(text.lower()):
            raise ValueError("it is the one of an example, which others know, too; make a random one")
        return value

    @model_validator(mode="after")
    def _together(self) -> "AccountSettings":
        if self.accounts and not self.jwt_secret.get_secret_value():
            raise ValueError(
                "JWT_SECRET: ACCOUNTS=1 needs a secret for tokens; set JWT_SECRET or JWT_SECRET_FILE "
                "(`openssl rand -base64 48` makes one)"
            )
        return self
