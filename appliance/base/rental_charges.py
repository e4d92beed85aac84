"""What markets and wallets tell each other about a rented GPU. Amounts are whole micro-dollars."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Renter:
    """Who rents, and which wallet pays.

    Attributes:
        user_id: "" = the operator's own purchases.
        key_id: The API key that was used; "" = none.
    """

    user_id: str
    wallet_id: str
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class RentalFunds:
    """What a renter has, in a transaction that keeps others from changing it.

    Attributes:
        available_musd: What can be held: credits, limits on spending and the key's cap allow it.
        reason: What bounds it: `credits`, `spending_limit`, `key_cap`, `wallet_frozen`, `wallet_unknown`.
        gpu_seconds_left: Of this month's quota; None = there is none.
        quota_ends_at: When the quota begins anew, epoch milliseconds.
    """

    available_musd: int
    reason: str = "credits"
    gpu_seconds_left: int | None = None
    quota_ends_at: int = 0


@dataclass(frozen=True, slots=True)
class RentalCharge:
    """What a span of a rental's time costs.

    Attributes:
        ref: Its own: the same is charged once.
        held_musd: What is held for the rental; taken first.
        cost_musd: By its price.
        supply_musd: What the market asks of us.
        gpu_seconds: That were used.
        clock: Whose clock says when it began: `ours`, `provider`.
    """

    ref: str
    at_ms: int
    renter: Renter
    provider: str
    gpu_name: str
    instance_id: str
    held_musd: int
    cost_musd: int
    supply_musd: int
    gpu_seconds: int
    clock: str


@dataclass(frozen=True, slots=True)
class RentalPaid:
    """What was taken for a charge; what is missing of its cost is the operator's loss.

    Attributes:
        from_hold_musd: Of what was held.
        more_musd: Of the wallet beyond that.
    """

    from_hold_musd: int
    more_musd: int

    @property
    def charged_musd(self) -> int:
        """Both."""
        return self.from_hold_musd + self.more_musd
