"""Rentals and reservations: what is ordered, who pays, what is known of each.

The attributes of `Rental` are the columns of its row; times (`_at`) are epoch milliseconds.
"""

from dataclasses import dataclass, field
from typing import Any, Final

from appliance.base.clock import format_rfc3339_ms
from appliance.base.money import to_dollars
from appliance.base.rental_charges import Renter as Renter
from appliance.market.types import DEFAULT_IMAGE

MS_PER_H: Final = 3_600_000
RUNNING_STATES: Final = ("starting", "ready", "draining")
LIVE_STATES: Final = ("wanted", "creating", "unknown", *RUNNING_STATES, "destroying")
END_STATES: Final = ("gone", "failed", "lost")
MAX_RESERVED: Final = 16


@dataclass(frozen=True, slots=True)
class RentOrder:
    """What is to run, and for how long; None = the setting's.

    Attributes:
        environ: Variables of the container; they may be secrets, and are removed when it has ended.
        ports: TCP ports of the container to be reached from outside.
        onstart: A shell script that runs at the start.
        command: Arguments that replace the image's own.
        model: The model that it serves; "" = none.
        lease_s: For how long, counted from the order.
        longest_s: To how long, counted likewise, it can be renewed; RENT_DEAD_MAN_S later the instance stops
            itself. None = as lease_s.
        max_cost_musd: What it may cost in all; None = no such limit.
    """

    image: str = DEFAULT_IMAGE
    disk_gb: float = 20.0
    environ: dict[str, str] = field(default_factory=dict, repr=False)
    ports: tuple[int, ...] = ()
    onstart: str = field(default="", repr=False)
    command: tuple[str, ...] = ()
    model: str = ""
    lease_s: float | None = None
    longest_s: float | None = None
    max_cost_musd: int | None = None


@dataclass(frozen=True, slots=True)
class Rental:
    """One rental; see `rentals` in storage.schema.

    Attributes:
        state: Of LIVE_STATES or END_STATES. `unknown`: whether it was created is not known.
        contract_id: Under which the market knows it; "" = not created, or not known.
        turn: Grows with each process that works on it: what an earlier one writes is refused.
        end_state: The state in which it will end; "" = it is not to end yet.
        next_look_at: When it is looked at again; None = it has ended.
    """

    id: str
    label: str
    state: str
    user_id: str | None
    wallet_id: str
    provider: str
    offer_id: str
    price_musd_per_h: int
    supply_musd_per_h: int
    created_at: int
    start_deadline_at: int
    lease_ends_at: int
    key_id: str | None = None
    reservation_id: str | None = None
    replaces: str | None = None
    start_tries: int = 1
    idempotency_key: str | None = None
    request: str = ""
    machine_id: str = ""
    contract_id: str = ""
    gpu_name: str = ""
    gpu_count: int = 1
    vram_mb: int = 0
    location: str = ""
    model: str = ""
    launch: str = field(default="{}", repr=False)
    secrets: str = field(default="{}", repr=False)
    prepaid_hours: int = 0
    max_cost_musd: int | None = None
    updated_at: int = 0
    create_called_at: int | None = None
    dead_man_at: int | None = None
    ready_at: int | None = None
    last_seen_at: int | None = None
    draining_since: int | None = None
    destroying_since: int | None = None
    destroy_called_at: int | None = None
    ended_at: int | None = None
    held_musd: int = 0
    cost_musd: int = 0
    charged_musd: int = 0
    supply_musd: int = 0
    paid_musd: int = 0
    gpu_seconds: int = 0
    settlements: int = 0
    settled_at: int | None = None
    billed_from: int | None = None
    billed_until: int | None = None
    supplied_from: int | None = None
    supplied_until: int | None = None
    clock: str = "ours"
    misses: int = 0
    first_missed_at: int | None = None
    bad_since: int | None = None
    destroy_calls: int = 0
    end_state: str = ""
    end_reason: str = ""
    warned_s: int = 0
    is_ceiling_told: bool = False
    alarm: str = ""
    last_error: str = ""
    market_status: str = ""
    host: str = ""
    ports: str = "{}"
    next_look_at: int | None = None
    owner: str = ""
    owner_until: int = 0
    turn: int = 0

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.state in LIVE_STATES

    def view(self, *, id_prefix: str = "") -> dict[str, Any]:
        """Return it for JSON.

        Args:
            id_prefix: Of the market, before the ids of its offers.
        """
        return {
            "id": self.id,
            "contract_id": self.contract_id,
            "provider": self.provider,
            "instance_id": f"{id_prefix}{self.offer_id}",
            "state": self.state,
            "gpu_name": self.gpu_name,
            "gpu_count": self.gpu_count,
            "vram_gb": self.vram_mb / 1000,
            "price_per_hour": to_dollars(self.price_musd_per_h),
            "cost": to_dollars(self.charged_musd),
            "held": to_dollars(self.held_musd),
            "created_at": format_rfc3339_ms(self.created_at),
            "lease_ends_at": format_rfc3339_ms(self.lease_ends_at),
            "start_deadline_at": format_rfc3339_ms(self.start_deadline_at),
            "ended_at": None if self.ended_at is None else format_rfc3339_ms(self.ended_at),
            "address": self.host,
            "model": self.model,
            "reservation_id": self.reservation_id,
            "replaces": self.replaces,
            "end_reason": self.end_reason,
            "alarm": self.alarm,
            "last_error": self.last_error,
        }


@dataclass(frozen=True, slots=True)
class Reserved:
    """What became of a reservation.

    Attributes:
        rentals: What is rented; empty where it was rolled back.
        requested: How many were asked for.
        errors: What went wrong, for people.
        is_rolled_back: Fewer could be had than were asked for, so that all were given back.
        unconfirmed: Rentals that were given back, and of which the market has not said yet that they are
            gone; they stay visible as `destroying`, and the operator pays for them.
    """

    id: str
    rentals: list[Rental]
    requested: int
    errors: list[str] = field(default_factory=list)
    is_rolled_back: bool = False
    unconfirmed: list[Rental] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MarketAlarm:
    """Something that an operator has to look at.

    Attributes:
        kind: `destroy_stuck`, `lost`, `market_unknown`.
        subject: A rental's id, or a market.
    """

    kind: str
    subject: str
    since_ms: int
    message: str


@dataclass(frozen=True, slots=True)
class MarketState:
    """What holds for all rentals.

    Attributes:
        install_id: In the labels of our instances.
        unknown_since_ms: Market → since when its listing is not known.
        credit_musd: Market → our balance there, where it tells.
    """

    install_id: str
    is_frozen: bool = False
    frozen_reason: str = ""
    frozen_by: str = ""
    failed_starts: int = 0
    paused_until_ms: int | None = None
    unknown_since_ms: dict[str, int] = field(default_factory=dict)
    credit_musd: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a look at all listings has found.

    Attributes:
        providers: Market → how many instances of ours it listed; None = its listing is not known.
        adopted: Rentals whose instance was found.
        orphans: Contracts without a rental that were seen for the first time.
        destroyed: Contracts without a rental that were destroyed, since they were seen twice.
        lost: Rentals whose instance is gone.
    """

    providers: dict[str, int | None] = field(default_factory=dict)
    adopted: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    destroyed: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch has rented, by market; what failed does not undo the others."""

    rentals: dict[str, list[Rental]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
