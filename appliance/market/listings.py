"""What each market lists, asked for once for all who want to know at the same time."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance.base.errors import ApplianceError, NotFound
from appliance.base.logs import get_logger
from appliance.market.market_store import MarketStore
from appliance.market.providers.contract import Provider
from appliance.market.types import Instance, MarketUnknown

log = get_logger("market")
MAX_TEXT: Final = 300


@dataclass(slots=True)
class _Latest:
    """The last listing of a market.

    Attributes:
        begun: The number of the last call that was begun; a listing answers who asked before it was begun.
    """

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: int = 0
    instances: list[Instance] | None = None
    reason: str = ""


class Listings:
    """The listings of all markets, for one process.

    Args:
        providers: Name → market.
        store: Where it is noted since when a listing is not known.
    """

    def __init__(self, providers: Mapping[str, Provider], store: MarketStore) -> None:
        self.providers = dict(providers)
        self._store = store
        self._latest = {name: _Latest() for name in self.providers}

    def find(self, name: str) -> Provider:
        """Return a market by its name or another spelling of it.

        Raises:
            NotFound: There is none.
        """
        for provider in self.providers.values():
            if name.lower() == provider.name or name.lower() in provider.aliases:
                return provider
        known = ", ".join(self.providers) or "none"
        raise NotFound(f"There is no market {name[:40]!r}; there are: {known}.", param="provider")

    async def list(self, name: str) -> list[Instance]:
        """Return all our instances at a market, as it lists them after this call.

        Raises:
            MarketUnknown: Its listing is not certain to be complete.
        """
        latest = self._latest.get(name)
        if latest is None:
            raise MarketUnknown(f"{name} cannot be asked: it has no key any more.")
        asked = latest.begun
        async with latest.lock:
            if latest.begun <= asked:
                await self._list(name, latest)
        if latest.instances is None:
            raise MarketUnknown(f"{name} does not say what runs there: {latest.reason}")
        return latest.instances

    async def _list(self, name: str, latest: _Latest) -> None:
        latest.begun += 1
        latest.instances = None
        try:
            latest.instances = await self.providers[name].list()
        except Exception as exc:
            latest.reason = reason_of(exc)
        await self._store.note_listing(name, is_known=latest.instances is not None)


def reason_of(error: BaseException) -> str:
    """Return why a market could not be asked, for its row and the log; what is not ours is logged here."""
    if isinstance(error, ApplianceError):
        return error.message[:MAX_TEXT]
    log.error("market_client_failed", error=repr(error)[:MAX_TEXT], exc_info=error)
    return type(error).__name__
