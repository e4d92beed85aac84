"""Which offers are taken: by the load balancing strategy in force, as few of one machine as possible."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from appliance.base.balancing import Balancer, Member, compute_vram_weight
from appliance.market.types import Offer

MAX_KNOWN: Final = 4096  # offers whose counts are kept


class OfferChoice:
    """Chooses among offers; remembers how often each machine was chosen, as strategies want to know.

    Args:
        strategy: Returns the name of the strategy in force.
    """

    def __init__(self, strategy: Callable[[], str] = lambda: "round_robin") -> None:
        self._strategy = strategy
        self._balancer = Balancer("round_robin")
        self._members: OrderedDict[tuple[str, str], Member] = OrderedDict()

    def order(self, offers: Sequence[Offer]) -> list[Offer]:
        """Return all offers in the order in which they are taken: distinct machines first."""
        self._balancer.strategy = self._strategy()
        ordered: list[Offer] = []
        left = list(offers)
        while left:
            machines: set[tuple[str, str]] = set()
            batch = []
            for offer in left:  # the cheapest of each machine, then the second cheapest …
                if machine_of(offer) not in machines:
                    machines.add(machine_of(offer))
                    batch.append(offer)
            taken = {(offer.provider, offer.id) for offer in batch}
            left = [offer for offer in left if (offer.provider, offer.id) not in taken]
            ordered += self._order_distinct(batch)
        return ordered

    def _order_distinct(self, offers: list[Offer]) -> list[Offer]:
        waiting = [(self.member_of(offer), offer) for offer in offers]
        ordered = []
        while waiting:
            chosen, _ = self._balancer.choose([member for member, _ in waiting])
            at = next(number for number, (member, _) in enumerate(waiting) if member is chosen)
            ordered.append(waiting.pop(at)[1])
        return ordered

    def note_taken(self, offer: Offer, *, now_s: float) -> None:
        """Count that an offer was rented; `now_s`: seconds since 1970."""
        member = self.member_of(offer)
        member.total += 1
        member.last_used_s = now_s

    def member_of(self, offer: Offer) -> Member:
        """Return what strategies know of an offer's machine."""
        key = machine_of(offer)
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = Member(f"{offer.provider}/{offer.id}")
            while len(self._members) > MAX_KNOWN:
                self._members.popitem(last=False)
        self._members.move_to_end(key)
        price = offer.price_musd_per_h / 1_000_000
        member.weight, member.cost = compute_vram_weight(offer.vram_gb, price), price
        return member


def machine_of(offer: Offer) -> tuple[str, str]:
    """Return the machine of an offer; one that its market does not name counts as its own."""
    return offer.provider, f"machine {offer.machine_id}" if offer.machine_id else f"offer {offer.id}"
