"""The markets: a third one is one module and one row here (docs/renting.md)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance.base.clock import Clock
from appliance.market.providers.contract import Provider
from appliance.market.providers.ionet import IoNet
from appliance.market.providers.vastai import VastAi
from appliance.market.settings import MarketSettings


@dataclass(frozen=True, slots=True)
class ProviderRow:
    """One market.

    Attributes:
        name: As addresses and answers have it.
        key: Returns the key of the settings; "" = nothing is rented there.
        build: Makes it, with the key.
    """

    name: str
    key: Callable[[MarketSettings], str]
    build: Callable[[MarketSettings, Clock], Provider]


def _vastai(settings: MarketSettings, clock: Clock) -> Provider:
    key = settings.vastai_api_key.get_secret_value()
    return VastAi(key, settings.vastai_api_url, clock=clock, timeout_s=settings.gpu_api_timeout)


def _ionet(settings: MarketSettings, clock: Clock) -> Provider:
    key = settings.ionet_api_key.get_secret_value()
    return IoNet(key, settings.ionet_api_url, clock=clock, timeout_s=settings.gpu_api_timeout)


PROVIDERS: Final = (
    ProviderRow(VastAi.name, lambda settings: settings.vastai_api_key.get_secret_value(), _vastai),
    ProviderRow(IoNet.name, lambda settings: settings.ionet_api_key.get_secret_value(), _ionet),
)


def build_providers(settings: MarketSettings, clock: Clock) -> dict[str, Provider]:
    """Return the markets that have a key: name → market."""
    return {row.name: row.build(settings, clock) for row in PROVIDERS if row.key(settings)}
