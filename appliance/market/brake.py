"""Whether more may be rented now: limits of the operator, and reasons to stop launching. Pure."""

from dataclasses import dataclass, field
from typing import Final

from appliance.base.errors import ApplianceError, Exhausted, Unavailable
from appliance.base.money import format_dollars
from appliance.market.types import MarketUnknown

UNKNOWN_MS: Final = 60_000
PAUSE_AFTER: Final = 3  # failed starts in a row
PAUSE_MS: Final = 15 * 60_000
CREDIT_HOURS: Final = 2
HOUR_MS: Final = 3_600_000


class MarketFrozen(Unavailable):
    """Launching is stopped, by an operator or by a limit of the operator's."""

    default_code = "market_frozen"


@dataclass(frozen=True, slots=True)
class LaunchLimits:
    """What the operator allows; see RENT_*.

    Attributes:
        instances: At a time.
        per_user: At a time, of one user.
        launches_per_h: Of one user.
        musd_per_h: What all of them cost the operator.
    """

    instances: int = 16
    per_user: int = 4
    launches_per_h: int = 10
    musd_per_h: int = 20_000_000


@dataclass(frozen=True, slots=True)
class MarketUse:
    """What is rented now, and what is known of the markets.

    Attributes:
        live: Rentals that have not ended, of all users.
        live_of_user: Of the user, less those that are being destroyed.
        launched_of_user: In the last hour.
        next_launch_ms: When the oldest launch of that hour is an hour old; None = there was none.
        supply_musd_per_h: What all live ones cost the operator.
        supply_of_provider: Market → the same.
        unknown_since_ms: Market → since when its listing is not known.
        credit_musd: Market → our balance there, where it tells.
    """

    live: int = 0
    live_of_user: int = 0
    launched_of_user: int = 0
    next_launch_ms: int | None = None
    supply_musd_per_h: int = 0
    supply_of_provider: dict[str, int] = field(default_factory=dict)
    unknown_since_ms: dict[str, int] = field(default_factory=dict)
    credit_musd: dict[str, int] = field(default_factory=dict)
    is_frozen: bool = False
    frozen_reason: str = ""
    paused_until_ms: int | None = None


def refusal_of(
    use: MarketUse, wanted: list[tuple[str, int]], limits: LaunchLimits, now_ms: int
) -> ApplianceError | None:
    """Return why so much may not be rented; None = it may.

    1. an operator has stopped launching
    2. three starts in a row have failed: a pause of 15 minutes
    3. the listing of a market is not known for more than a minute
    4. the user's limits: at a time, in an hour
    5. the operator's: instances, dollars an hour
    6. our balance at the market does not last two hours more

    Args:
        use: What is rented now.
        wanted: (market, supply in micro-dollars an hour) of each instance.
        limits: What is allowed.
        now_ms: The time.
    """
    if use.is_frozen:  # 1
        because = f": {use.frozen_reason}" if use.frozen_reason else ""
        return MarketFrozen(f"The operator has stopped renting{because}. What is rented goes on.")
    if use.paused_until_ms is not None and now_ms < use.paused_until_ms:  # 2
        left_s = (use.paused_until_ms - now_ms) / 1000
        return MarketFrozen(
            f"{PAUSE_AFTER} instances in a row did not start, so that nothing is rented for "
            f"{PAUSE_MS // 60_000} minutes. Try again in {left_s:.0f} s.",
            code="launches_paused",
            retry_after_s=left_s,
        )
    for provider in dict.fromkeys(provider for provider, _ in wanted):  # 3
        since = use.unknown_since_ms.get(provider)
        if since is not None and now_ms - since > UNKNOWN_MS:
            return MarketUnknown(
                f"{provider} does not say what runs there, so that nothing more is rented there. Try again "
                "later.",
                retry_after_s=60.0,
            )
    count = len(wanted)
    return (
        _refusal_of_user(use, count, limits, now_ms)  # 4
        or _refusal_of_operator(use, wanted, limits)  # 5
        or _refusal_of_credit(use, wanted)  # 6
    )


def _refusal_of_user(use: MarketUse, count: int, limits: LaunchLimits, now_ms: int) -> ApplianceError | None:
    if use.live_of_user + count > limits.per_user:
        return Exhausted(
            f"You rent {use.live_of_user} instances, and {count} more would be above {limits.per_user} at a "
            "time (RENT_MAX_PER_USER). Destroy one first.",
            code="rental_limit",
        )
    if use.launched_of_user + count > limits.launches_per_h:
        next_ms = use.next_launch_ms if use.next_launch_ms is not None else now_ms + HOUR_MS
        return Exhausted(
            f"You have begun {use.launched_of_user} instances within an hour; {count} more would be above "
            f"{limits.launches_per_h} (RENT_MAX_LAUNCHES_PER_H). Try again later.",
            code="launch_limit",
            retry_after_s=max(1.0, (next_ms - now_ms) / 1000),
        )
    return None


def _refusal_of_operator(
    use: MarketUse, wanted: list[tuple[str, int]], limits: LaunchLimits
) -> ApplianceError | None:
    if use.live + len(wanted) > limits.instances:
        return MarketFrozen(
            f"{use.live} instances are rented, and {len(wanted)} more would be above {limits.instances} at a "
            "time (RENT_MAX_INSTANCES). Try again later.",
            code="market_full",
        )
    more = sum(musd for _, musd in wanted)
    if use.supply_musd_per_h + more > limits.musd_per_h:
        return MarketFrozen(
            f"What is rented would cost the operator more than {format_dollars(limits.musd_per_h)} dollars "
            "an hour (RENT_MAX_USD_PER_H). Try again later.",
            code="market_full",
        )
    return None


def _refusal_of_credit(use: MarketUse, wanted: list[tuple[str, int]]) -> ApplianceError | None:
    for provider in dict.fromkeys(provider for provider, _ in wanted):
        credit = use.credit_musd.get(provider)
        running = use.supply_of_provider.get(provider, 0)
        more = sum(musd for name, musd in wanted if name == provider)
        if credit is not None and credit < (running + more) * CREDIT_HOURS:
            return MarketFrozen(
                f"The operator's balance at {provider} would not last {CREDIT_HOURS} hours. Try again later.",
                code="provider_credit",
            )
    return None


def after_start(failed_in_row: int, is_started: bool, now_ms: int) -> tuple[int, int | None]:
    """Return how many starts have failed in a row now, and until when nothing is launched (None = go on)."""
    if is_started:
        return 0, None
    failed = failed_in_row + 1
    return (0, now_ms + PAUSE_MS) if failed >= PAUSE_AFTER else (failed, None)
