"""A market for GPUs in memory that misbehaves as it is told; it knows what really runs and what that costs."""

from collections import defaultdict
from dataclasses import dataclass, field

from appliance.base.clock import FakeClock
from appliance.market.types import (
    Instance,
    InstanceState,
    Launch,
    MarketRefused,
    MarketUnknown,
    Offer,
    OfferFilter,
    OfferGone,
)

HOUR_MS = 3_600_000


@dataclass
class Machine:
    """An instance that really exists.

    Attributes:
        visible_at: From when the market's answers show it.
        running_at: From when it runs; None = never.
        exited_at: From when it has stopped by itself; None = never.
        ended_at: When it was destroyed, or vanished.
    """

    contract_id: str
    label: str
    offer: Offer
    created_at: int
    visible_at: int
    running_at: int | None
    exited_at: int | None = None
    ended_at: int | None = None

    def state(self, now: int) -> InstanceState:
        if self.exited_at is not None and now >= self.exited_at:
            return InstanceState.FAILED
        if self.running_at is not None and now >= self.running_at:
            return InstanceState.RUNNING
        return InstanceState.STARTING

    def cost_musd(self, now: int) -> int:
        if self.offer.prepaid_hours:
            return self.offer.supply_musd_per_h * self.offer.prepaid_hours
        if self.running_at is None:
            return 0
        end = min([now, *(at for at in (self.ended_at, self.exited_at) if at is not None)])
        return self.offer.supply_musd_per_h * max(0, end - self.running_at) // HOUR_MS


@dataclass
class FakeMarket:
    """A market.

    Faults are queued by operation (`create`, `get`, `list`, `destroy`): the next call of it takes the first.
        create   unknown_made, unknown_nothing, unknown_late (shown 30 s later), gone, refused, crash, stuck,
                 exits, vanishes
        get      unknown, crash, none (says that there is no such one)
        list     unknown
        destroy  unknown, unknown_done, lies, refused
    """

    clock: FakeClock
    name: str = "vast.ai"
    aliases: tuple[str, ...] = ("vastai",)
    id_prefix: str = "vast-"
    start_ms: int = 20_000
    tells_clock: bool = True
    offers_here: list[Offer] = field(default_factory=list)
    machines: dict[str, Machine] = field(default_factory=dict)
    faults: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    calls: list[str] = field(default_factory=list)
    credit: int | None = None
    install_id: str = ""
    _number: int = 100

    @property
    def now(self) -> int:
        return int(self.clock.now_s() * 1000)

    def add_offers(
        self, count: int, *, price: int = 1_000_000, machines: int | None = None, **more: object
    ) -> None:
        for number in range(count):
            self.offers_here.append(
                Offer(
                    provider=self.name,
                    id=str(7000 + len(self.offers_here)),
                    gpu_name="RTX 4090",
                    gpu_count=1,
                    vram_gb=24,
                    supply_musd_per_h=price,
                    price_musd_per_h=price * 6 // 5,
                    machine_id=f"m{number % machines if machines else len(self.offers_here)}",
                    **more,  # type: ignore[arg-type]
                )
            )

    def add_foreign(self, label: str = "somebody-elses") -> str:
        """Add an instance of another program at the same account."""
        return self._make(self.offers_here[0], label).contract_id

    # ---- truth

    def alive(self) -> list[Machine]:
        return [one for one in self.machines.values() if one.ended_at is None]

    def alive_of_ours(self) -> list[Machine]:
        return [one for one in self.alive() if self.is_ours(one)]

    def is_ours(self, one: Machine) -> bool:
        start, _, rental = one.label.rpartition(f"-{self.install_id}-")
        return start == "apl" and len(rental) == 36

    def cost_of_ours_musd(self) -> int:
        return sum(one.cost_musd(self.now) for one in self.machines.values() if self.is_ours(one))

    # ---- Provider

    def _fault(self, operation: str) -> str:
        self.calls.append(operation)
        return self.faults[operation].pop(0) if self.faults[operation] else ""

    def _make(self, offer: Offer, label: str, fault: str = "") -> Machine:
        self._number += 1
        now = self.now
        running = None if fault == "stuck" else now + self.start_ms
        one = Machine(
            contract_id=str(self._number),
            label=label,
            offer=offer,
            created_at=now,
            visible_at=now + (30_000 if fault == "unknown_late" else 0),
            running_at=running,
            exited_at=now + self.start_ms + 60_000 if fault == "exits" else None,
        )
        if fault == "vanishes":
            one.ended_at = now + self.start_ms + 30_000
        self.machines[one.contract_id] = one
        return one

    async def offers(self, wanted: OfferFilter, *, limit: int) -> list[Offer]:
        return self.offers_here[:limit]

    async def find(self, wanted: OfferFilter, *, provider: str = "", limit: int) -> list[Offer]:
        """Return offers with the customer's price, as an OfferFinder does."""
        most = wanted.max_price_musd_per_h
        found = [one for one in self.offers_here if most is None or one.price_musd_per_h <= most]
        return sorted(found, key=lambda one: (one.price_musd_per_h, one.id))[:limit]

    async def create(self, offer: Offer, launch: Launch) -> str:
        fault = self._fault("create")
        if fault == "gone":
            raise OfferGone("Another customer has it.")
        if fault == "refused":
            raise MarketRefused("Your account has no money.")
        if fault == "unknown_nothing":
            raise MarketUnknown("It did not answer in time.")
        one = self._make(offer, launch.label, fault)
        if fault in ("unknown_made", "unknown_late"):
            raise MarketUnknown("It did not answer in time.")
        if fault == "crash":
            raise RuntimeError("a defect of the client")
        return one.contract_id

    def _instance(self, one: Machine) -> Instance:
        state = one.state(self.now)
        is_told = self.tells_clock and state is not InstanceState.STARTING
        return Instance(
            provider=self.name,
            contract_id=one.contract_id,
            label=one.label,
            state=state,
            market_status=state.value,
            gpu_name=one.offer.gpu_name,
            gpu_count=1,
            machine_id=one.offer.machine_id,
            supply_musd_per_h=one.offer.supply_musd_per_h,
            paid_musd=one.cost_musd(self.now) if one.offer.prepaid_hours else 0,
            started_ms=one.running_at if is_told else None,
            host="192.0.2.7",
        )

    def _is_shown(self, one: Machine) -> bool:
        return one.visible_at <= self.now and (one.ended_at is None or one.ended_at > self.now)

    async def get(self, contract_id: str) -> Instance | None:
        fault = self._fault("get")
        if fault == "unknown":
            raise MarketUnknown("It did not answer.")
        if fault == "crash":
            raise RuntimeError("a defect of the client")
        one = self.machines.get(contract_id)
        if fault == "none" or one is None or not self._is_shown(one):
            return None
        return self._instance(one)

    async def list(self) -> list[Instance]:
        if self._fault("list") == "unknown":
            raise MarketUnknown("Page 2 was missing.")
        return [self._instance(one) for one in self.machines.values() if self._is_shown(one)]

    async def destroy(self, contract_id: str) -> None:
        fault = self._fault("destroy")
        one = self.machines.get(contract_id)
        assert one is None or self.is_ours(one), "an instance of another program was touched"
        if fault == "unknown":
            raise MarketUnknown("It did not answer.")
        if fault == "refused":
            raise MarketRefused("The key may not do this.")
        if one is not None and fault != "lies" and one.ended_at is None:
            one.ended_at = self.now
        if fault == "unknown_done":
            raise MarketUnknown("It did not answer.")

    async def logs(self, contract_id: str, *, max_bytes: int) -> str:
        return f"log of {contract_id}"[-max_bytes:]

    async def credit_musd(self) -> int | None:
        return self.credit

    async def close(self) -> None:
        return None
