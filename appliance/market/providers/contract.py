"""What every market promises: an answer is complete, a clear "there is none", or `MarketUnknown`.

A failed, empty, partial or unreadable answer is never read as "nothing is there": a caller that did so lost
sight of its instances, rented replacements, and paid for all of them (docs/renting.md).
"""

from typing import Protocol

from appliance.market.types import Instance, Launch, Offer, OfferFilter


class Provider(Protocol):
    """One market.

    Attributes:
        name: As addresses and answers have it: `vast.ai`.
        aliases: Other spellings that callers may use: `vastai`.
        id_prefix: Before the ids of its offers in answers: `vast-`.
    """

    name: str
    aliases: tuple[str, ...]
    id_prefix: str

    async def offers(self, wanted: OfferFilter, *, limit: int) -> list[Offer]:
        """Return what could be rented, cheapest first; `price_musd_per_h` is left 0.

        Raises:
            MarketUnknown: It did not answer so that one could rely on it.
            MarketRefused: It refuses us.
        """
        ...

    async def create(self, offer: Offer, launch: Launch) -> str:
        """Rent an offer; return the contract's id.

        Raises:
            OfferGone: Another customer has it. Nothing was created.
            MarketRefused: Nothing was created.
            MarketUnknown: It may have been created or not: look for the label.
        """
        ...

    async def get(self, contract_id: str) -> Instance | None:
        """Return one instance; None only where the market clearly says that there is no such one.

        Raises:
            MarketUnknown: Neither is certain.
            MarketRefused: It refuses us.
        """
        ...

    async def list(self) -> list[Instance]:
        """Return all our instances there: every page, or nothing.

        Raises:
            MarketUnknown: The listing is not certain to be complete.
            MarketRefused: It refuses us.
        """
        ...

    async def destroy(self, contract_id: str) -> None:
        """End an instance for good; one that is gone already is no failure. `get` tells whether it is gone.

        Raises:
            MarketUnknown: It may have been ended or not.
            MarketRefused: It was not ended.
        """
        ...

    async def logs(self, contract_id: str, *, max_bytes: int) -> str:
        """Return the end of what the instance printed.

        Raises:
            MarketUnknown: There is no answer at present.
            MarketRefused: It refuses us, or has no logs.
        """
        ...

    async def credit_musd(self) -> int | None:
        """Return our balance there; None = the market does not tell.

        Raises:
            MarketUnknown: There is no answer at present.
            MarketRefused: It refuses us.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
