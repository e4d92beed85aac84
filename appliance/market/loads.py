"""How busy rented instances are, by what goes to them through this process."""

from typing import Any

from appliance.base.balancing import Member, compute_vram_weight
from appliance.base.clock import format_rfc3339
from appliance.market.rental_types import Rental


class InstanceLoads:
    """The load of each rented instance, by its rental."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def member_of(self, rental: Rental) -> Member:
        """Return what is counted of a rental; call its `record_start` and `record_end` for each request."""
        member = self._members.get(rental.id)
        if member is None:
            member = self._members[rental.id] = Member(rental.id)
        price = rental.price_musd_per_h / 1_000_000
        member.weight, member.cost = compute_vram_weight(rental.vram_mb / 1000, price), price
        return member

    def view(self, rentals: list[Rental], names: dict[str, str]) -> dict[str, dict[str, Any]]:
        """Return the load of these rentals for JSON, by the names of their instances; forget all others.

        Args:
            rentals: All that run.
            names: Rental → the instance's name.
        """
        known = {rental.id for rental in rentals}
        for rental_id in [one for one in self._members if one not in known]:
            del self._members[rental_id]
        return {names[rental.id]: self._load_of(rental, names[rental.id]) for rental in rentals}

    def _load_of(self, rental: Rental, name: str) -> dict[str, Any]:
        member = self.member_of(rental)
        return {
            "instance_id": name,
            "provider": rental.provider,
            "active_connections": member.active,
            "total_connections": member.total,
            "avg_response_time": member.mean_s or 0.0,
            "last_response_time": member.last_s or 0.0,
            "weight": member.weight,
            "last_used": None if member.last_used_s is None else format_rfc3339(member.last_used_s),
        }
