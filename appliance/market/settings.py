"""Settings of the markets for GPUs. This module is always imported, and imports nothing of the rest."""

from decimal import Decimal
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from appliance.base.setting_types import CommaList, DurationS, HttpAddress, Switch, duration
from appliance.base.settings import PackageSettings

HOURS: dict[str, Any] = {"allowed": "dollars an hour", "is_text": True}


Url = Annotated[HttpAddress, Field(max_length=2000)]


class MarketSettings(PackageSettings):
    """The markets for GPUs, what may be rented there, and at what price."""

    market: Switch = Field(
        False,
        description="1 = GPUs can be rented (docs/renting.md), which needs ACCOUNTS=1; 0 = nothing of that "
        "is loaded",
    )
    vastai_api_key: SecretStr = Field(
        SecretStr(""),
        description="Key for vast.ai; empty = nothing is rented there",
        json_schema_extra={"allowed": "text"},
    )
    vastai_api_url: Url = Field(
        "https://console.vast.ai",
        description="Where vast.ai's API is; `appliance simulate` prints its own",
        json_schema_extra={"allowed": "a URL"},
    )
    ionet_api_key: SecretStr = Field(
        SecretStr(""),
        description="Key for io.net; empty = nothing is rented there",
        json_schema_extra={"allowed": "text"},
    )
    ionet_api_url: Url = Field(
        "https://api.io.solutions/enterprise/v1/io-cloud/caas",
        description="Where io.net's API is; `appliance simulate` prints its own",
        json_schema_extra={"allowed": "a URL"},
    )
    gpu_api_timeout: DurationS = Field(
        30.0,
        ge=0.1,
        le=600,
        description="Longest time for one call at a market",
        json_schema_extra=duration("30s"),
    )
    gpu_allow_start_without_providers: Switch = Field(
        True, description="0 = MARKET=1 without the key of any market is a mistake that ends the start"
    )
    gpu_preferred_backend: str = Field(
        "", max_length=100, description="Taken for compatibility, without effect: offers are sorted by price"
    )
    rent_start_s: float = Field(
        900.0,
        ge=30,
        le=7200,
        description="Seconds within which a rented instance must run; then it is destroyed, and another "
        "offer is tried",
    )
    rent_lease_s: float = Field(
        3600.0,
        ge=60,
        le=2_592_000,
        description="For how many seconds an instance is rented where the caller does not say; it can be "
        "renewed",
    )
    rent_max_s: float = Field(
        604_800.0,
        ge=60,
        le=31_536_000,
        description="Longest time for which an instance can be rented at once",
    )
    rent_max_instances: int = Field(16, ge=0, le=1000, description="Most instances that are rented at a time")
    rent_max_per_user: int = Field(4, ge=0, le=1000, description="Most instances of one user at a time")
    rent_max_launches_per_h: int = Field(
        10, ge=0, le=10_000, description="Most instances of one user that are begun in an hour"
    )
    rent_max_usd_per_h: Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)] = Field(
        Decimal("20"),
        description="Most dollars an hour that all rented instances may cost the operator",
        json_schema_extra=HOURS,
    )
    rent_markup_percent: int = Field(
        0,
        ge=0,
        le=10_000,
        description="Added to a market's price where the price book has no markup of its own",
    )
    rent_on_shutdown: Literal["keep", "destroy"] = Field(
        "keep",
        description="What becomes of rented instances when the appliance stops: keep = their leases end "
        "them; destroy = all are destroyed first",
    )
    rent_dead_man_s: float = Field(
        3600.0,
        ge=0,
        le=86_400,
        description="Seconds after its lease at which an instance stops itself where the appliance does not "
        "come back; 0 = never",
    )

    gpu_proxy_allow: CommaList = Field(
        [],
        description="Hosts that the proxy may call, such as api.example.com, *.example.com; empty = every "
        "public host",
        json_schema_extra={"allowed": "patterns of host names, with commas"},
    )
    gpu_proxy_allow_private: CommaList = Field(
        [],
        description="Private networks that the proxy may call, too, such as 10.1.0.0/16: all who have an "
        "account reach them",
        json_schema_extra={"allowed": "networks, with commas"},
    )
    proxy_max_s: DurationS = Field(
        600.0,
        ge=1,
        le=86_400,
        description="Longest time for one request through the proxy; `timeout`, X-Timelimit shorten it",
        json_schema_extra=duration("600s"),
    )

    @field_validator("gpu_proxy_allow_private")
    @classmethod
    def _are_networks(cls, value: list[str]) -> list[str]:
        for one in value:
            ip_network(one, strict=False)  # raises ValueError, which names it
        return value

    @model_validator(mode="after")
    def _together(self) -> "MarketSettings":
        has_key = any(key.get_secret_value() for key in (self.vastai_api_key, self.ionet_api_key))
        if self.market and not has_key and not self.gpu_allow_start_without_providers:
            raise ValueError(
                "MARKET: no market has a key; set VASTAI_API_KEY or IONET_API_KEY, or "
                "GPU_ALLOW_START_WITHOUT_PROVIDERS=1"
            )
        return self
