"""io.net: containers at many locations, paid ahead by the hour; nothing is paid back by ending one early."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from appliance.base import jsons
from appliance.base.clock import Clock, parse_moment_s
from appliance.base.errors import ApplianceError
from appliance.base.money import format_dollars
from appliance.market.providers.calls import MarketCalls, MarketReply
from appliance.market.providers.readers import (
    NOMINAL_PERCENT,
    join_errors,
    plain_name,
    read_musd,
    read_number,
    read_text,
    read_url_address,
    read_whole,
    tail,
)
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

NAME: Final = "io.net"
PAGE: Final = 100
MAX_PAGES: Final = 200
MAX_HARDWARE: Final = 100  # kinds that are looked at in one search
MAX_PRICES: Final = 48  # prices that are asked for in one search
AT_ONCE: Final = 6
PRICE_S: Final = 600.0
KNOWN_PRICES: Final = 2000
FACTS_S: Final = 600.0
DEFAULT_PORT: Final = 8000
INTERVALS: Final = {"list": 1.0, "create": 0.5, "hardware": 1.0}
ENDED: Final = frozenset(("completed", "destroyed", "terminated", "expired", "cancelled", "canceled"))
STATES: Final = {
    "running": InstanceState.RUNNING,
    "stopped": InstanceState.STOPPED,
    "termination requested": InstanceState.STOPPED,
    "destroy requested": InstanceState.STOPPED,
    "failed": InstanceState.FAILED,
    **dict.fromkeys(ENDED, InstanceState.ENDED),
}
_CONTRACT = re.compile(r"[A-Za-z0-9_-]{1,100}", re.ASCII)
_OFFER = re.compile(r"(\d{1,12})-(\d{1,12})-(\d{1,3})", re.ASCII)
_NO_CAPACITY = re.compile(
    r"no_such_ask|no available|not available|sold out|insufficient (capacity|replicas)", re.IGNORECASE
)
_VRAM = re.compile(r"(\d{1,3})\s?GB\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class IoFacts:
    """What is known of a kind of hardware beside its price."""

    vram_gb: float = 0.0
    cpu_cores: float = 0.0
    ram_gb: float = 0.0
    storage_gb: float = 0.0


@dataclass(frozen=True, slots=True)
class IoWare:
    """One kind of hardware that is free somewhere."""

    id: int
    name: str
    max_gpus: int
    facts: IoFacts


@dataclass(frozen=True, slots=True)
class IoPlace:
    """A location that has so many containers free."""

    id: int
    code: str
    name: str


class IoNet:
    """The market io.net.

    Args:
        key: Of the account.
        url: Where its API for containers is.
        clock: The time.
        timeout_s: Longest time for one call.
        calls: Instead of calls of its own.
    """

    name = NAME
    aliases: tuple[str, ...] = ("ionet", "io")
    id_prefix = "ionet-"

    def __init__(
        self, key: str, url: str, *, clock: Clock, timeout_s: float, calls: MarketCalls | None = None
    ) -> None:
        headers = {"X-API-KEY": key, "Accept": "application/json"}
        self._calls = calls or MarketCalls(
            NAME, url, headers, clock=clock, timeout_s=timeout_s, intervals=INTERVALS
        )
        self._public_url = url.replace("/enterprise/v1/", "/v1/")
        self._clock = clock
        self._facts: dict[int, IoFacts] = {}
        self._facts_until_s = 0.0  # monotonic
        self._prices: dict[tuple[int, int, int], tuple[float, int]] = {}  # → (until when, musd an hour)

    # ---- what there is

    async def offers(self, wanted: OfferFilter, *, limit: int) -> list[Offer]:
        """Return what could be rented, cheapest first: hardware × location. See Provider.offers."""
        facts = await self._known_facts()
        reply = await self._calls.send(
            "hardware", "GET", "/hardware/max-gpus-per-container", is_repeatable=True
        )
        wares = [ware for ware in read_hardware(sound_data(reply), facts) if fits(ware, wanted)]
        gpus = max(1, wanted.min_gpus)
        turns = asyncio.Semaphore(AT_ONCE)

        async def places_of(ware: IoWare) -> list[tuple[IoWare, IoPlace]]:
            async with turns:
                query = {"hardware_id": str(ware.id), "hardware_qty": str(gpus)}
                answer = await self._calls.send(
                    "replicas", "GET", "/available-replicas", query=query, is_repeatable=True
                )
                return [(ware, place) for place in read_places(sound_data(answer))]

        found = await _all_that_work([places_of(ware) for ware in wares[:MAX_HARDWARE]])
        pairs = [pair for pairs in found for pair in pairs][:MAX_PRICES]

        async def priced(ware: IoWare, place: IoPlace) -> Offer:
            async with turns:
                return read_offer(ware, place, gpus, await self._price(ware.id, place.id, gpus))

        offers = await _all_that_work([priced(ware, place) for ware, place in pairs])
        return sorted(offers, key=lambda offer: (offer.supply_musd_per_h, offer.id))[:limit]

    async def _known_facts(self) -> dict[int, IoFacts]:
        """Return what the public list says; it needs no key, and is not needed itself."""
        now = self._clock.monotonic_s()
        if now >= self._facts_until_s:
            try:
                reply = await self._calls.send(
                    "public", "GET", "/hardware", url=self._public_url, is_repeatable=True
                )
                self._facts = read_facts(sound_data(reply))
                self._facts_until_s = now + FACTS_S
            except ApplianceError:  # memory is then told by names
                self._facts_until_s = now + FACTS_S / 10
        return self._facts

    async def _price(self, ware: int, place: int, gpus: int) -> int:
        """Return what an hour costs, fees included, micro-dollars."""
        now = self._clock.monotonic_s()
        until, price = self._prices.get((ware, place, gpus), (0.0, 0))
        if now < until:
            return price
        price = await self._total(ware, place, gpus, 1)
        while len(self._prices) >= KNOWN_PRICES:
            del self._prices[next(iter(self._prices))]
        self._prices[ware, place, gpus] = (now + PRICE_S, price)
        return price

    async def _total(self, ware: int, place: int, gpus: int, hours: int) -> int:
        """Return what so many hours cost in all, micro-dollars.

        Raises:
            MarketUnknown: There is no readable price.
        """
        query = {
            "location_ids": str(place),
            "hardware_id": str(ware),
            "hardware_qty": str(gpus),
            "gpus_per_container": str(gpus),
            "duration_type": "hourly",
            "duration_qty": str(hours),
            "duration_hours": str(hours),
            "replica_count": "1",
            "currency": "usdc",
        }
        reply = await self._calls.send("price", "GET", "/price", query=query, is_repeatable=True)
        value = sound_data(reply)
        total = read_musd(value.get("total_cost_usdc")) if isinstance(value, dict) else None
        if not total:
            raise unsound("it names no price")
        return total

    # ---- instances

    async def create(self, offer: Offer, launch: Launch) -> str:
        """Rent an offer, paid ahead; never sent twice, never dearer than shown. See Provider.create."""
        match = _OFFER.fullmatch(offer.id)
        if match is None:
            raise OfferGone(f"io.net has no offer {offer.id[:40]!r}. Choose another one.")
        ware, place, gpus = (int(part) for part in match.groups())
        body = order_body(ware, place, gpus, launch)
        try:
            total = await self._total(ware, place, gpus, launch.hours)
        except MarketUnknown as exc:  # nothing was ordered yet
            raise MarketRefused(f"{exc.message} Nothing was created.", code="market_price_unknown") from None
        most = offer.supply_musd_per_h * launch.hours
        if total > most:
            self._prices.pop((ware, place, gpus), None)
            raise OfferGone(
                f"io.net asks {format_dollars(total)} dollars for this offer now, more than the "
                f"{format_dollars(most)} that were shown. Nothing was created; look for offers again."
            )
        return read_created(
            await self._calls.send("create", "POST", "/deploy", body=body, is_repeatable=False)
        )

    async def get(self, contract_id: str) -> Instance | None:
        """Return one instance; None = the market says that there is none. See Provider.get."""
        check_contract(contract_id)
        reply = await self._calls.send("show", "GET", f"/deployment/{contract_id}", is_repeatable=True)
        if is_clear_none(reply, contract_id):
            return None
        row = sound_data(reply)
        instance = read_instance(row, contract_id)
        if instance.state is not InstanceState.RUNNING:
            return instance
        try:
            workers = await self._workers(contract_id)
        except ApplianceError:  # where it can be reached is learned the next time
            return instance
        return with_address(instance, workers, row)

    async def _workers(self, contract_id: str) -> list[dict[str, Any]]:
        path = f"/deployment/{contract_id}/containers"
        value = sound_data(await self._calls.send("containers", "GET", path, is_repeatable=True))
        rows = value.get("workers") if isinstance(value, dict) else None
        if not isinstance(rows, list):
            raise unsound("it lists no containers")
        return [row for row in rows if isinstance(row, dict)]

    async def list(self) -> list[Instance]:
        """Return all our instances that have not ended: every page, or MarketUnknown. See Provider.list."""
        pages = DeploymentPages()
        for number in range(1, MAX_PAGES + 1):
            query = {
                "page": str(number),
                "page_size": str(PAGE),
                "sort_by": "created_at",
                "sort_order": "asc",
            }
            reply = await self._calls.send("list", "GET", "/deployments", query=query, is_repeatable=True)
            pages.add(sound_data(reply))
            if pages.is_complete:
                return pages.live()
        raise unsound(f"its list has more than {MAX_PAGES} pages")

    async def destroy(self, contract_id: str) -> None:
        """End an instance for good; what was paid is not paid back. See Provider.destroy."""
        check_contract(contract_id)
        reply = await self._calls.send("destroy", "DELETE", f"/deployment/{contract_id}", is_repeatable=True)
        if is_clear_none(reply, contract_id):
            return
        if reply.status in (400, 409, 422):  # such as one that has ended already
            found = await self.get(contract_id)
            if found is None or found.state is InstanceState.ENDED:
                return
            raise MarketRefused(f"io.net does not end the instance: {error_text(reply) or reply.status}.")
        sound_data(reply)

    async def logs(self, contract_id: str, *, max_bytes: int) -> str:
        """Return the end of what the first container printed. See Provider.logs."""
        check_contract(contract_id)
        names = [read_text(row.get("container_id"), 100) for row in await self._workers(contract_id)]
        name = next((name for name in names if _CONTRACT.fullmatch(name)), None)
        if name is None:
            raise unsound("the instance has no container yet")
        path = f"/deployment/{contract_id}/log/{name}"
        reply = await self._calls.send("logs", "GET", path, is_repeatable=True)
        if reply.status != 200:
            sound_data(reply)
        value = reply.value.get("data") if isinstance(reply.value, dict) else reply.value
        if isinstance(value, list):
            value = "\n".join(one if isinstance(one, str) else jsons.dumps_text(one) for one in value)
        return tail(value.encode("utf-8", "replace") if isinstance(value, str) else reply.data, max_bytes)

    async def credit_musd(self) -> int | None:
        """Return None: this API does not tell a balance."""
        return None

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()


async def _all_that_work(works: Sequence[Any]) -> list[Any]:
    """Return what could be found out; the first error where nothing could.

    Raises:
        ApplianceError: All failed.
    """
    results = await asyncio.gather(*works, return_exceptions=True)
    found = [result for result in results if not isinstance(result, BaseException)]
    for result in results:
        if isinstance(result, BaseException) and not (found and isinstance(result, ApplianceError)):
            raise result
    return found


# ---- what an answer means


def unsound(why: str) -> MarketUnknown:
    """Return the error for an answer that cannot be relied on."""
    return MarketUnknown(f"io.net gave no reliable answer: {why}.")


def error_text(reply: MarketReply) -> str:
    """Return what an error says, `{detail: text | [{msg}]}` or `{message}`; "" = nothing."""
    value = reply.value
    if not isinstance(value, dict):
        return ""
    detail = value.get("detail")
    if isinstance(detail, list):
        return join_errors(detail)
    return read_text(detail) or read_text(value.get("message")) or read_text(value.get("error"))


def sound_data(reply: MarketReply) -> Any:
    """Return what a good answer says, without its wrapping.

    1. a wrong key                    → MarketRefused
    2. another status than 2xx, no
       JSON, an error inside          → MarketUnknown
    3. `{data: …}`                    → what is inside
    4. otherwise                      → the value

    Raises:
        MarketRefused, MarketUnknown: As above.
    """
    if reply.status in (401, 403):  # 1
        raise MarketRefused(
            "io.net refuses the key: it is wrong, or not allowed to do this. Set IONET_API_KEY.",
            code="market_key_refused",
        )
    if not 200 <= reply.status < 300:  # 2
        text = f"status {reply.status} {error_text(reply)}".rstrip()
        raise MarketUnknown(
            f"io.net gave no reliable answer: {text}.",
            code="market_rate_limited" if reply.status == 429 else None,
            retry_after_s=reply.retry_after_s,
        )
    value = reply.value
    if not isinstance(value, dict | list):
        raise unsound("it is neither an object nor a list" if reply.data else "it is empty")
    if isinstance(value, dict) and (value.get("detail") or value.get("error")):
        raise unsound(f"it says that it failed ({error_text(reply)})")
    return value["data"] if isinstance(value, dict) and "data" in value else value  # 3, 4


def is_clear_none(reply: MarketReply, contract_id: str) -> bool:
    """Return whether an answer says that there is no such deployment; an unknown address says less."""
    text = error_text(reply).lower()
    return (
        reply.status == 404 and "not found" in text and ("deployment" in text or contract_id.lower() in text)
    )


def read_created(reply: MarketReply) -> str:
    """Return the id of a new deployment.

    1. there is no capacity any more           → OfferGone
    2. any other clear refusal (4xx that says
       why, 429)                               → MarketRefused: nothing was created
    3. success with an id                      → the id
    4. all the rest                            → MarketUnknown: it may exist

    Raises:
        OfferGone, MarketRefused, MarketUnknown: As above.
    """
    text, is_refusal = error_text(reply), 400 <= reply.status < 500 and reply.status != 408
    if is_refusal and text and (reply.status in (409, 410) or _NO_CAPACITY.search(text)):  # 1
        raise OfferGone("io.net has no capacity for this offer any more. Choose another one.")
    if reply.status == 429 or (is_refusal and (text or reply.status in (401, 403))):  # 2
        is_key = reply.status in (401, 403)
        raise MarketRefused(
            "io.net refuses the key. Set IONET_API_KEY."
            if is_key
            else f"io.net does not take the order: {text or 'too many calls'}. Nothing was created.",
            code="market_key_refused" if is_key else "market_rate_limited" if reply.status == 429 else None,
            retry_after_s=(reply.retry_after_s or 10.0) if reply.status == 429 else None,
        )
    value = sound_data(reply)
    name = value.get("deployment_id") if isinstance(value, dict) else None
    if not isinstance(name, str) or not _CONTRACT.fullmatch(name):  # 4
        raise unsound("it names no new deployment")
    return name  # 3


class DeploymentPages:
    """The pages of a listing, one after the other."""

    def __init__(self) -> None:
        self._found: dict[str, Instance] = {}
        self._total: int | None = None

    def add(self, value: Any) -> None:
        """Take a page.

        Raises:
            MarketUnknown: It is not sound, or does not fit those before.
        """
        rows = value.get("deployments") if isinstance(value, dict) else None
        total = read_whole(value.get("total")) if isinstance(value, dict) else None
        if not isinstance(rows, list) or total is None:
            raise unsound("its list is no list, or it does not say how many there are")
        if self._total not in (None, total):
            raise unsound("the number of deployments changed between two pages")
        self._total = total
        before = len(self._found)
        for row in rows:
            instance = read_instance(row)
            self._found[instance.contract_id] = instance
        if len(self._found) != before + len(rows):
            raise unsound("its list names a deployment twice")
        if len(self._found) > total or (not rows and len(self._found) < total):
            raise unsound(f"it lists {len(self._found)} deployments, and counts {total}")

    @property
    def is_complete(self) -> bool:
        """Whether all have been listed that the market counts."""
        return len(self._found) == self._total

    def live(self) -> list[Instance]:
        """Return those that have not ended."""
        return [one for one in self._found.values() if one.state is not InstanceState.ENDED]


def read_instance(row: Any, contract_id: str | None = None) -> Instance:
    """Return a deployment of a row of the list, or (with `contract_id`) as it is shown alone.

    Raises:
        MarketUnknown: Id, name or status are unreadable, or it is another one.
    """
    if not isinstance(row, dict):
        raise unsound("a deployment is no object")
    name, status = row.get("id", contract_id), row.get("status")
    label = row.get("name", "" if contract_id is not None else None)
    if not isinstance(name, str) or not _CONTRACT.fullmatch(name):
        raise unsound("a deployment without a readable id")
    if contract_id not in (None, name):
        raise unsound("it describes another deployment")
    if not (isinstance(label, str) and isinstance(status, str) and status):
        raise unsound("a deployment without a readable name or status")
    word = status.strip().lower()
    state = STATES.get(word, InstanceState.STARTING)
    if state is InstanceState.FAILED and row.get("compute_minutes_remaining") == 0:
        state = InstanceState.ENDED
    return Instance(
        provider=NAME,
        contract_id=name,
        label=label,
        state=state,
        market_status=read_text(word, 40),
        gpu_name=read_text(row.get("hardware_name"), 100),
        gpu_count=read_whole(row.get("total_gpus", row.get("hardware_quantity")), 0, 10_000) or 0,
        paid_musd=read_musd(row.get("amount_paid")) or 0,
        started_ms=_read_moment(row.get("started_at")),
    )


def _read_moment(value: Any) -> int | None:
    if not isinstance(value, str) or not 10 <= len(value) <= 40 or "-" not in value:
        return None
    try:
        at_s = parse_moment_s(value.replace("Z", "+00:00"), 0)
    except (ValueError, OverflowError):
        return None
    return round(at_s * 1000) if 0 < at_s < 4_102_444_800 else None


def with_address(instance: Instance, workers: list[dict[str, Any]], row: Any) -> Instance:
    """Return an instance with where its first container can be reached."""
    address = next((found for one in workers if (found := read_url_address(one.get("public_url")))), None)
    if address is None:
        return instance
    config = row.get("container_config") if isinstance(row, dict) else None
    inner = read_whole(config.get("traffic_port"), 1, 65_535) if isinstance(config, dict) else None
    return Instance(
        **{name: getattr(instance, name) for name in Instance.__slots__ if name not in ("host", "ports")},
        host=address[0],
        ports={inner or DEFAULT_PORT: address[1]},
    )


def read_hardware(value: Any, facts: dict[int, IoFacts]) -> list[IoWare]:
    """Return the hardware that is free somewhere; a row that cannot be read is left out.

    Raises:
        MarketUnknown: There is no list, or none of its rows can be read.
    """
    rows = value.get("hardware") if isinstance(value, dict) else None
    if not isinstance(rows, list):
        raise unsound("it lists no hardware")
    found, readable = [], 0
    for row in rows:
        if not isinstance(row, dict):
            continue
        number, name = read_whole(row.get("hardware_id")), read_text(row.get("hardware_name"), 100)
        most, free = read_whole(row.get("max_gpus_per_container"), 1, 1000), read_whole(row.get("available"))
        if number is None or not name or most is None or free is None:
            continue
        readable += 1
        known = facts.get(number, IoFacts())
        if not known.vram_gb and (match := _VRAM.search(name)):
            known = IoFacts(float(match[1]), known.cpu_cores, known.ram_gb, known.storage_gb)
        if free:
            found.append(IoWare(number, name, most, known))
    if rows and not readable:
        raise unsound("none of its hardware can be read")
    return found


def fits(ware: IoWare, wanted: OfferFilter) -> bool:
    """Return whether its offers can be wanted; the whole filter is applied later."""
    return (
        plain_name(wanted.gpu_model) in plain_name(ware.name)
        and wanted.min_gpus <= ware.max_gpus
        and (not wanted.min_vram_gb or ware.facts.vram_gb * NOMINAL_PERCENT / 100 >= wanted.min_vram_gb)
        and wanted.min_reliability is None
        and not wanted.is_verified_only
    )


def read_facts(value: Any) -> dict[int, IoFacts]:
    """Return the facts of the public list, per GPU's hardware; what cannot be read is left out."""
    found: dict[int, IoFacts] = {}
    for row in value if isinstance(value, list) else ():
        number = read_whole(row.get("id")) if isinstance(row, dict) else None
        if number is not None:
            parts = [read_number(row.get(name)) for name in ("vram_per_card", "vcpu", "memory", "storage")]
            found[number] = IoFacts(*(part or 0.0 for part in parts))
    return found


def read_places(value: Any) -> list[IoPlace]:
    """Return the locations that have a container free.

    Raises:
        MarketUnknown: It is no list.
    """
    if not isinstance(value, list):
        raise unsound("it lists no locations")
    found = []
    for row in value:
        number = read_whole(row.get("id")) if isinstance(row, dict) else None
        if number is not None and read_whole(row.get("available_replicas"), 1):
            found.append(IoPlace(number, read_text(row.get("iso2"), 2), read_text(row.get("name"), 80)))
    return found


def read_offer(ware: IoWare, place: IoPlace, gpus: int, supply_musd_per_h: int) -> Offer:
    """Return hardware at a location as an offer."""
    return Offer(
        provider=NAME,
        id=f"{ware.id}-{place.id}-{gpus}",
        gpu_name=ware.name,
        gpu_count=gpus,
        vram_gb=ware.facts.vram_gb,
        supply_musd_per_h=supply_musd_per_h,
        cpu_cores=ware.facts.cpu_cores,
        ram_gb=ware.facts.ram_gb,
        storage_gb=ware.facts.storage_gb,
        location=", ".join(part for part in (place.name, place.code) if part),
        prepaid_hours=1,
        specifications={"prepaid": True, "max_gpus_per_container": ware.max_gpus},
    )


# ---- what is asked


def check_contract(contract_id: str) -> None:
    """Refuse what cannot be an id.

    Raises:
        MarketUnknown: Nothing can be asked about it.
    """
    if not _CONTRACT.fullmatch(contract_id):
        raise MarketUnknown(f"{contract_id[:40]!r} is no id of a deployment at io.net.")


def order_body(ware: int, place: int, gpus: int, launch: Launch) -> dict[str, Any]:
    """Return the order of a deployment.

    Raises:
        MarketRefused: This market cannot run it; nothing was asked.
    """
    if len(launch.ports) > 1:
        raise MarketRefused(f"io.net opens one port; {len(launch.ports)} are wanted. Nothing was created.")
    if launch.onstart and launch.command:
        raise MarketRefused("io.net runs a script or a command, not both. Nothing was created.")
    container: dict[str, Any] = {
        "replica_count": 1,
        "env_variables": {},
        "secret_env_variables": dict(launch.environ),
        "entrypoint": [],
        "args": list(launch.command),
        "traffic_port": launch.ports[0] if launch.ports else DEFAULT_PORT,
    }
    if launch.onstart:  # as at other markets the script replaces the image's own program, and it stays up
        container["entrypoint"] = ["/bin/sh", "-c", f"{launch.onstart}\nexec sleep infinity"]
    return {
        "resource_private_name": launch.label,
        "duration_hours": launch.hours,
        "gpus_per_container": gpus,
        "hardware_id": ware,
        "location_ids": [place],
        "container_config": container,
        "registry_config": {"image_url": launch.image, "registry_username": "", "registry_secret": ""},
    }
