"""What interfaces call to rent GPUs: create, destroy, renew, reserve, and what operators do."""

from collections.abc import Mapping
from typing import Any, Protocol

from appliance.market.rental_types import (
    BatchResult,
    MarketAlarm,
    MarketState,
    Rental,
    Renter,
    RentOrder,
    Reserved,
    SweepReport,
)
from appliance.market.types import Offer, OfferFilter


class RentalService(Protocol):
    """All rentals, for one process. `user_id` None = an operator asks, about anybody's."""

    async def create(
        self, renter: Renter, offer: Offer, order: RentOrder, *, idempotency_key: str = ""
    ) -> Rental:
        """Rent an offer at the price that it states. Once for each idempotency key of a wallet.

        Returns:
            It starts; `contract_id` is known.

        Raises:
            Invalid: The order is not possible.
            PaymentRequired: The credits, a limit on spending or the key's cap do not allow it.
            Exhausted: The quota of GPU hours, or a limit on launches, is reached.
            Conflict: The key was used for another order.
            OfferGone: Another customer has it.
            MarketRefused: The market refuses.
            MarketUnknown: Whether it was created is being found out (`details["rental_id"]`), or launching
                is stopped since the market's listing is not known.
            Unavailable: Launching is stopped.
        """
        ...

    async def destroy(self, provider: str, name: str, *, user_id: str | None) -> Rental:
        """End a rental; repeated, nothing more happens. It goes on until the market says that it is gone.

        Args:
            provider: The market's name or alias.
            name: The contract's id, the offer's, or the rental's.
            user_id: Whose.

        Raises:
            NotFound: This user has none of that name.
        """
        ...

    async def get(self, provider: str, name: str, *, user_id: str | None) -> Rental:
        """Return a rental; see `destroy`."""
        ...

    async def rentals(
        self, *, user_id: str | None, is_live_only: bool = False, limit: int = 100
    ) -> list[Rental]:
        """Return rentals, newest first."""
        ...

    async def renew(self, provider: str, name: str, seconds: float, *, user_id: str | None) -> Rental:
        """Let a lease end later.

        Raises:
            NotFound: This user has none of that name.
            Invalid: It would be longer than allowed.
            Conflict: It ends already, or was paid ahead.
            Exhausted: The quota of GPU hours does not allow it.
        """
        ...

    async def logs(self, provider: str, name: str, *, user_id: str | None, max_bytes: int = 262_144) -> str:
        """Return the end of what an instance printed.

        Raises:
            NotFound: This user has none of that name.
            Conflict: It was not created yet.
            MarketUnknown: There is no answer at present.
            MarketRefused: The market has none.
        """
        ...

    async def reserve(
        self,
        renter: Renter,
        count: int,
        wanted: OfferFilter,
        order: RentOrder,
        *,
        provider: str = "",
        is_partial: bool = False,
        idempotency_key: str = "",
    ) -> Reserved:
        """Rent 1 to 16 instances, all or none; with `is_partial` as many as there are.

        Args:
            provider: Of this market alone; "" = of all.

        Raises:
            Invalid: The count is not allowed, or there are too few offers.
            ApplianceError: As `create`, where nothing was begun.
        """
        ...

    async def batch(
        self,
        renter: Renter,
        counts: Mapping[str, int],
        wanted: OfferFilter,
        order: RentOrder,
        *,
        idempotency_key: str = "",
    ) -> BatchResult:
        """Rent the cheapest offers of each market, 0 to 8 each; one that fails does not undo the others."""
        ...

    async def freeze(self, reason: str, *, by: str) -> MarketState:
        """Stop launching until `unfreeze`; what is rented goes on."""
        ...

    async def unfreeze(self, *, by: str) -> MarketState:
        """Let rentals be launched again; a pause after failed starts ends, too."""
        ...

    async def state(self) -> MarketState:
        """Return what holds for all rentals."""
        ...

    async def sweep(self) -> SweepReport:
        """Compare all markets' listings with the rentals; see SweepReport."""
        ...

    async def alarms(self) -> list[MarketAlarm]:
        """Return what an operator has to look at; empty = nothing."""
        ...

    async def loads(self) -> dict[str, dict[str, Any]]:
        """Return the load of each running rental for JSON: instance id → the seed's fields."""
        ...
