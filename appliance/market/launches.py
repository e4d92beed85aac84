"""From an order to a row, and from a row to what its market is asked to start. Pure but for new ids.

The label of an instance is `apl-INSTALLATION-RENTAL`: by it an instance is found again, and told from
those of others.
"""

import hashlib
import math
from dataclasses import replace
from typing import Any, Final

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import Invalid
from appliance.base.ids import is_id, new_id
from appliance.base.money import MAX_MUSD
from appliance.market.rental_types import MS_PER_H, Rental, Renter, RentOrder
from appliance.market.settings import MarketSettings
from appliance.market.types import Launch, Offer, OfferFilter

LABEL_START: Final = "apl"
MAX_ONSTART_BYTES: Final = 3000  # with the timer below the 4 kB that markets take
MAX_TEXT: Final = 4096
MAX_ITEMS: Final = 64
LEAST_LEASE_S: Final = 60.0
DEAD_MAN: Final = """\
# The instance stops itself where its owner does not come back.
(while [ "$(date +%s)" -lt {at_s} ]; do sleep 30; done
curl -fsS -X PUT -H "Authorization: Bearer $CONTAINER_API_KEY" -H "Content-Type: application/json" \\
  -d '{{"state":"stopped"}}' "https://console.vast.ai/api/v0/instances/$CONTAINER_ID/"
sleep 60; kill 1) >/dev/null 2>&1 </dev/null &
"""


def label_of(install_id: str, rental_id: str) -> str:
    """Return an instance's label."""
    return f"{LABEL_START}-{install_id}-{rental_id}"


def rental_of_label(label: str, install_id: str) -> str | None:
    """Return the rental of a label; None = the label is not of this installation."""
    start = f"{LABEL_START}-{install_id}-"
    rental_id = label.removeprefix(start)
    return rental_id if label.startswith(start) and is_id(rental_id) else None


def check_order(order: RentOrder, settings: MarketSettings) -> None:
    """Refuse an order that is not possible.

    Raises:
        Invalid: With what is allowed.
    """
    most_s = settings.rent_max_s
    for name, value in (("lease_s", order.lease_s), ("longest_s", order.longest_s)):
        if value is not None and not (math.isfinite(value) and LEAST_LEASE_S <= value <= most_s):
            raise Invalid(
                f"{name} is {value!r}; allowed are {LEAST_LEASE_S:g} to {most_s:g} seconds (RENT_MAX_S).",
                param=name,
            )
    if order.longest_s is not None and order.longest_s < lease_s(order, settings):
        raise Invalid(
            "longest_s is below lease_s: a lease is at least as long as ordered.", param="longest_s"
        )
    if order.max_cost_musd is not None and not 0 < order.max_cost_musd <= MAX_MUSD:
        raise Invalid("max_cost must be above 0 dollars; leave it out for no limit.", param="max_cost")
    _check_container(order)


def _check_container(order: RentOrder) -> None:
    """Refuse what no container takes: other bounds than the market's own are not guessed."""
    if not 0 < len(order.image) <= 500 or any(char.isspace() or char < " " for char in order.image):
        raise Invalid(f"image is {order.image[:60]!r}; name a container image.", param="image")
    if not (math.isfinite(order.disk_gb) and 1 <= order.disk_gb <= 100_000):
        raise Invalid(f"disk_gb is {order.disk_gb!r}; allowed are 1 to 100000.", param="disk_gb")
    if len(order.onstart.encode()) > MAX_ONSTART_BYTES:
        raise Invalid(
            f"onstart is longer than {MAX_ONSTART_BYTES} bytes: fetch a script there.", param="onstart"
        )
    if len(order.ports) > MAX_ITEMS or not all(1 <= port <= 65_535 for port in order.ports):
        raise Invalid(f"ports must be at most {MAX_ITEMS} of 1 to 65535.", param="ports")
    if len(order.command) > MAX_ITEMS or any(len(text) > MAX_TEXT for text in order.command):
        raise Invalid(f"command has more than {MAX_ITEMS} parts, or one that is too long.", param="command")
    pairs = order.environ.items()
    if len(order.environ) > MAX_ITEMS or any(
        not name or len(name) > 200 or "=" in name or "\0" in name + value or len(value) > MAX_TEXT
        for name, value in pairs
    ):
        raise Invalid(
            f"env must have at most {MAX_ITEMS} variables, each up to {MAX_TEXT} characters.", param="env"
        )


def lease_s(order: RentOrder, settings: MarketSettings) -> float:
    """Return for how long an order rents, seconds."""
    return min(settings.rent_lease_s if order.lease_s is None else order.lease_s, settings.rent_max_s)


def digest_of(*parts: Any) -> str:
    """Return a digest of what was asked for, by which a repeated request is known."""
    return hashlib.sha256(jsons.dumps(parts)).hexdigest()[:32]


def order_digest(order: RentOrder, *parts: Any) -> str:
    """Return the digest of an order; variables of the container count, and cannot be told from it."""
    values = {name: getattr(order, name) for name in order.__dataclass_fields__}
    return digest_of({**values, "ports": list(order.ports), "command": list(order.command)}, *parts)


def new_rental(
    renter: Renter,
    offer: Offer,
    order: RentOrder,
    settings: MarketSettings,
    *,
    install_id: str,
    clock: Clock,
    held_musd: int,
    replacement: OfferFilter | None = None,
    replacement_provider: str = "",
) -> Rental:
    """Return the row of a rental that is not created yet.

    Args:
        held_musd: What is held for it.
        replacement: Which offers may take its place where it does not start; None = none.
        replacement_provider: Of this market alone; "" = of all.
    """
    now = int(clock.now_s() * 1000)
    rental_id = new_id(clock)
    hours = offer.prepaid_hours
    lease_ms = hours * MS_PER_H if hours else round(lease_s(order, settings) * 1000)
    longest_ms = max(lease_ms, round((order.longest_s or 0) * 1000))
    dead_man_ms = round(settings.rent_dead_man_s * 1000)
    launch = {
        "image": order.image,
        "disk_gb": order.disk_gb,
        "ports": list(order.ports),
        "onstart": order.onstart,
        "command": list(order.command),
        "replacement": None if replacement is None else filter_to_json(replacement),
        "replacement_provider": replacement_provider,
    }
    return Rental(
        id=rental_id,
        label=label_of(install_id, rental_id),
        state="wanted",
        user_id=renter.user_id or None,
        wallet_id=renter.wallet_id,
        key_id=renter.key_id or None,
        **offer_values(offer),
        model=order.model[:200],
        launch=jsons.dumps_text(launch),
        secrets=jsons.dumps_text({"environ": order.environ}),
        max_cost_musd=order.max_cost_musd,
        created_at=now,
        start_deadline_at=now + round(settings.rent_start_s * 1000),
        lease_ends_at=now + lease_ms,
        dead_man_at=now + longest_ms + dead_man_ms if dead_man_ms and not hours else None,
        held_musd=held_musd,
        next_look_at=now,
    )


def offer_values(offer: Offer) -> dict[str, Any]:
    """Return the columns that say what is rented."""
    return {
        "provider": offer.provider,
        "offer_id": offer.id,
        "machine_id": offer.machine_id[:100],
        "gpu_name": offer.gpu_name[:100],
        "gpu_count": max(1, offer.gpu_count),
        "vram_mb": max(0, round(offer.vram_gb * 1000)),
        "location": offer.location[:100],
        "price_musd_per_h": offer.price_musd_per_h,
        "supply_musd_per_h": offer.supply_musd_per_h,
        "prepaid_hours": offer.prepaid_hours,
    }


def launch_of(rental: Rental) -> Launch:
    """Return what a rental's market is asked to start."""
    launch, secrets = jsons.loads(rental.launch), jsons.loads(rental.secrets)
    onstart = str(launch.get("onstart", ""))
    if rental.dead_man_at is not None:
        onstart = DEAD_MAN.format(at_s=rental.dead_man_at // 1000) + onstart
    return Launch(
        label=rental.label,
        image=launch["image"],
        disk_gb=launch["disk_gb"],
        environ=dict(secrets.get("environ", {})),
        ports=tuple(launch["ports"]),
        onstart=onstart,
        command=tuple(launch["command"]),
        hours=max(1, rental.prepaid_hours),
    )


def offer_of(rental: Rental) -> Offer:
    """Return the offer of a rental's row."""
    return Offer(
        provider=rental.provider,
        id=rental.offer_id,
        gpu_name=rental.gpu_name,
        gpu_count=rental.gpu_count,
        vram_gb=rental.vram_mb / 1000,
        supply_musd_per_h=rental.supply_musd_per_h,
        price_musd_per_h=rental.price_musd_per_h,
        machine_id=rental.machine_id,
        location=rental.location,
        prepaid_hours=rental.prepaid_hours,
    )


def order_of(rental: Rental) -> RentOrder:
    """Return the order of a rental's row, for another one in its place."""
    launch, secrets = jsons.loads(rental.launch), jsons.loads(rental.secrets)
    return RentOrder(
        image=launch["image"],
        disk_gb=launch["disk_gb"],
        environ=dict(secrets.get("environ", {})),
        ports=tuple(launch["ports"]),
        onstart=launch["onstart"],
        command=tuple(launch["command"]),
        model=rental.model,
        lease_s=max(LEAST_LEASE_S, (rental.lease_ends_at - rental.created_at) / 1000),
        max_cost_musd=rental.max_cost_musd,
    )


def replacement_of(rental: Rental) -> tuple[OfferFilter, str] | None:
    """Return which offers may take a rental's place, and of which market; None = none."""
    launch = jsons.loads(rental.launch)
    found = launch.get("replacement")
    return None if found is None else (OfferFilter(**found), launch["replacement_provider"])


def same_or_better(offer: Offer) -> OfferFilter:
    """Return the offers that may stand for one that was chosen: the same GPU, not dearer."""
    return OfferFilter(
        min_vram_gb=offer.vram_gb or None,
        max_price_musd_per_h=offer.price_musd_per_h,
        gpu_model=offer.gpu_name,
        min_gpus=offer.gpu_count,
    )


def filter_to_json(wanted: OfferFilter) -> dict[str, Any]:
    """Return a filter as a row keeps it."""
    return {name: getattr(wanted, name) for name in wanted.__dataclass_fields__}


def repointed(rental: Rental, offer: Offer, held_musd: int) -> Rental:
    """Return a rental that was not created, at another offer."""
    return replace(
        rental,
        **offer_values(offer),
        state="wanted",
        held_musd=held_musd,
        create_called_at=None,
        last_error="",
    )
