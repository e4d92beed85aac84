"""vast.ai: machines of many owners, billed by the second. A listing counts only where every page is sound."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from appliance.base.clock import Clock
from appliance.market.providers.calls import MarketCalls, MarketReply
from appliance.market.providers.readers import (
    MAX_MS,
    MAX_PORTS,
    NOMINAL_PERCENT,
    plain_name,
    read_host,
    read_musd,
    read_number,
    read_port,
    read_text,
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

NAME: Final = "vast.ai"
PAGE: Final = 25
MAX_PAGES: Final = 200
MAX_FOUND: Final = 500
SEARCHED_DISK_GB: Final = 20.0
LOG_LINES: Final = 1000
LOG_LOOKS: Final = 8
LOG_PAUSE_S: Final = 0.5
INTERVALS: Final = {
    "search": 0.5,
    "list": 1.0,
    "show": 0.3,
    "create": 0.5,
    "destroy": 0.3,
    "logs": 1.0,
    "user": 2.0,
}
GONE_CODES: Final = frozenset(("no_such_instance", "instance_not_found"))
OFFER_CODES: Final = frozenset(("no_such_ask", "ask_not_available", "offer_not_available"))
KEY_CODES: Final = frozenset(("auth_error", "invalid_api_key", "unauthorized"))
STATES: Final = {
    "created": InstanceState.STARTING,
    "loading": InstanceState.STARTING,
    "rebooting": InstanceState.STARTING,
    "running": InstanceState.RUNNING,
    "stopped": InstanceState.STOPPED,
    "frozen": InstanceState.STOPPED,
    "exited": InstanceState.FAILED,
    "unknown": InstanceState.FAILED,
    "offline": InstanceState.FAILED,
}
# Names as the market writes them: a search can only ask for whole names. Others are learned from answers.
GPU_NAMES: Final = (
    *(
        "RTX 3060",
        "RTX 3070",
        "RTX 3080",
        "RTX 3090",
        "RTX 3090 Ti",
        "RTX 4060 Ti",
        "RTX 4070",
        "RTX 4070S Ti",
    ),
    *("RTX 4080", "RTX 4080S", "RTX 4090", "RTX 4090D", "RTX 5060 Ti", "RTX 5070", "RTX 5070 Ti", "RTX 5080"),
    *("RTX 5090", "RTX A4000", "RTX A5000", "RTX A6000", "RTX 4000Ada", "RTX 5000Ada", "RTX 6000Ada"),
    *("RTX PRO 6000 S", "RTX PRO 6000 WS", "Tesla T4", "Tesla V100", "A10", "A40", "L4", "L40", "L40S"),
    *(
        "A100 PCIE",
        "A100 SXM4",
        "A100X",
        "H100 PCIE",
        "H100 SXM",
        "H100 NVL",
        "GH200 SXM",
        "H200",
        "H200 NVL",
    ),
    *("B200", "B300"),
)
MAX_NAMES: Final = 300
_PORT = re.compile(r"(\d{1,5})/tcp", re.ASCII)


class VastAi:
    """The market vast.ai.

    Args:
        key: Of the account.
        url: Where its API is.
        clock: The time.
        timeout_s: Longest time for one call.
        calls: Instead of calls of its own.
    """

    name = NAME
    aliases: tuple[str, ...] = ("vastai", "vast")
    id_prefix = "vast-"

    def __init__(
        self, key: str, url: str, *, clock: Clock, timeout_s: float, calls: MarketCalls | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}
        self._calls = calls or MarketCalls(
            NAME, url, headers, clock=clock, timeout_s=timeout_s, intervals=INTERVALS
        )
        self._clock = clock
        self._gpu_names = dict.fromkeys(GPU_NAMES)
        self._no_search_until_s = 0.0  # the quota of searches is used up until then, seconds since 1970

    async def offers(self, wanted: OfferFilter, *, limit: int) -> list[Offer]:
        """Return what could be rented, cheapest first; see Provider.offers."""
        now_s = self._clock.now_s()
        if now_s < self._no_search_until_s:
            raise self._quota(now_s)
        body = search_body(wanted, self._gpu_names, limit=max(limit, MAX_FOUND))
        reply = await self._calls.send("search", "POST", "/api/v0/bundles/", body=body, is_repeatable=True)
        if reply.status == 429 and error_of(reply) == "search_quota_exceeded":
            self._no_search_until_s = next_midnight_s(now_s)
            raise self._quota(now_s)
        offers = read_offers(sound_object(reply))
        for offer in offers:
            if len(self._gpu_names) < MAX_NAMES:
                self._gpu_names.setdefault(offer.gpu_name)
        return offers[:limit]

    def _quota(self, now_s: float) -> MarketUnknown:
        left_s = max(1.0, self._no_search_until_s - now_s)
        why = "its daily quota of searches is used up until midnight UTC"
        return self._calls.unknown(why, code="search_quota_exceeded", retry_after_s=left_s)

    async def create(self, offer: Offer, launch: Launch) -> str:
        """Rent an offer; never sent twice. See Provider.create."""
        number = as_id(offer.id)
        if number is None:
            raise OfferGone(f"vast.ai has no offer {offer.id[:40]!r}. Choose another one.")
        path = f"/api/v0/asks/{number}/"
        reply = await self._calls.send("create", "PUT", path, body=order_body(launch), is_repeatable=False)
        return read_created(reply)

    async def get(self, contract_id: str) -> Instance | None:
        """Return one instance; None = the market says that there is none. See Provider.get."""
        number = contract_number(contract_id)
        path = f"/api/v0/instances/{number}/"
        reply = await self._calls.send("show", "GET", path, query={"owner": "me"}, is_repeatable=True)
        return read_shown(reply, number)

    async def list(self) -> list[Instance]:
        """Return all our instances: every page, or MarketUnknown. See Provider.list."""
        pages = ListedPages()
        for _ in range(MAX_PAGES):
            query = {"limit": str(PAGE), "order_by": '[{"col":"id","dir":"asc"}]'}
            if pages.next_token:
                query["after_token"] = pages.next_token
            reply = await self._calls.send(
                "list", "GET", "/api/v1/instances/", query=query, is_repeatable=True
            )
            pages.add(sound_object(reply))
            if not pages.next_token:
                return pages.complete()
        raise unsound(f"its list has more than {MAX_PAGES} pages")

    async def destroy(self, contract_id: str) -> None:
        """End an instance for good. See Provider.destroy."""
        path = f"/api/v0/instances/{contract_number(contract_id)}/"
        reply = await self._calls.send("destroy", "DELETE", path, body={}, is_repeatable=True)
        if reply.status == 404 and error_of(reply) in GONE_CODES:
            return
        sound_object(reply)

    async def logs(self, contract_id: str, *, max_bytes: int) -> str:
        """Return the end of what the instance printed. See Provider.logs."""
        path = f"/api/v0/instances/request_logs/{contract_number(contract_id)}/"
        reply = await self._calls.send("logs", "PUT", path, body={"tail": str(LOG_LINES)}, is_repeatable=True)
        url = sound_object(reply).get("result_url")
        if not isinstance(url, str) or not url.startswith(("https://", "http://")):
            raise unsound("it does not say where the logs are")
        for _ in range(LOG_LOOKS):
            file = await self._calls.fetch(url)
            if file is not None:
                return tail(file.data, max_bytes)
            await self._calls.wait(LOG_PAUSE_S)
        raise unsound("the logs are not there yet; ask again in some seconds")

    async def credit_musd(self) -> int | None:
        """Return our balance. See Provider.credit_musd."""
        reply = await self._calls.send("user", "GET", "/api/v0/users/current/", is_repeatable=True)
        credit = read_number(sound_object(reply).get("credit"), -1e9, 1e9)
        return None if credit is None else round(credit * 1_000_000)

    async def close(self) -> None:
        """Close the connections."""
        await self._calls.close()


# ---- what an answer means


def unsound(why: str) -> MarketUnknown:
    """Return the error for an answer that cannot be relied on."""
    return MarketUnknown(f"vast.ai gave no reliable answer: {why}.")


def error_of(reply: MarketReply) -> str:
    """Return the code of an error in an answer; "" = none."""
    return read_text(reply.value.get("error")) if isinstance(reply.value, dict) else ""


def sound_object(reply: MarketReply) -> dict[str, Any]:
    """Return what a good answer says.

    1. a wrong key (also told with status 404)  → MarketRefused
    2. another status than 2xx, no JSON object,
       `success` is false, an error inside      → MarketUnknown
    3. otherwise                                → the object

    Raises:
        MarketRefused, MarketUnknown: As above.
    """
    code = error_of(reply)
    if reply.status in (401, 403) or code in KEY_CODES:  # 1
        raise MarketRefused(
            "vast.ai refuses the key: it is wrong, revoked, or not allowed to do this. Set VASTAI_API_KEY.",
            code="market_key_refused",
        )
    if not 200 <= reply.status < 300:  # 2
        what = f"status {reply.status} {code}".rstrip()
        raise MarketUnknown(
            f"vast.ai gave no reliable answer: {what}.",
            code="market_rate_limited" if reply.status == 429 else None,
            retry_after_s=reply.retry_after_s,
        )
    if not isinstance(reply.value, dict):
        raise unsound("it is no JSON object" if reply.data else "it is empty")
    if reply.value.get("success", True) is not True or reply.value.get("error"):
        raise unsound(f"it says that it failed ({code or 'without a reason'})")
    return reply.value  # 3


def read_created(reply: MarketReply) -> str:
    """Return the id of a new instance.

    1. the offer is taken                      → OfferGone
    2. any other clear refusal (4xx with a
       code, 429)                              → MarketRefused: nothing was created
    3. success with an id                      → the id
    4. all the rest                            → MarketUnknown: it may exist

    Raises:
        OfferGone, MarketRefused, MarketUnknown: As above.
    """
    code = error_of(reply)
    is_failure = 200 <= reply.status < 300 and reply.value.get("success") is False if code else False
    is_refusal = 400 <= reply.status < 500 and reply.status != 408
    if code in OFFER_CODES and (is_refusal or is_failure):  # 1
        raise OfferGone("Another customer has this offer of vast.ai. Choose another one.")
    if reply.status == 429 or (is_refusal and (code or reply.status in (401, 403))):  # 2
        raise _refusal_of_order(reply, code)
    value = sound_object(reply)
    number = _read_id(value.get("new_contract"))
    if number is None:  # 4
        raise unsound("it names no new instance")
    return str(number)  # 3


def _refusal_of_order(reply: MarketReply, code: str) -> MarketRefused:
    if reply.status in (401, 403) or code in KEY_CODES:
        return MarketRefused("vast.ai refuses the key. Set VASTAI_API_KEY.", code="market_key_refused")
    if reply.status == 429:
        return MarketRefused(
            "vast.ai takes no more orders at the moment. Nothing was created; try again later.",
            code="market_rate_limited",
            retry_after_s=reply.retry_after_s or 10.0,
        )
    return MarketRefused(f"vast.ai does not take the order: {code}. Nothing was created.")


def read_shown(reply: MarketReply, number: int) -> Instance | None:
    """Return the instance of an answer; None = it says clearly that there is none.

    Raises:
        MarketRefused, MarketUnknown: See sound_object.
    """
    if reply.status == 404 and error_of(reply) in GONE_CODES:
        return None
    value = sound_object(reply)
    if "instances" not in value:
        raise unsound("it names no instance")
    if value["instances"] is None:
        return None
    instance = read_instance(value["instances"])
    if instance.contract_id != str(number):
        raise unsound("it describes another instance")
    return instance


class ListedPages:
    """The pages of a listing, one after the other.

    Attributes:
        next_token: Of the page that follows; "" = there is none.
    """

    def __init__(self) -> None:
        self.next_token = ""
        self._tokens: set[str] = set()
        self._found: dict[str, Instance] = {}
        self._rows = 0
        self._total: int | None = None

    def add(self, value: dict[str, Any]) -> None:
        """Take a page.

        Raises:
            MarketUnknown: It is not sound, or does not fit those before.
        """
        rows, token, total = value.get("instances"), value.get("next_token"), value.get("total_instances")
        if not isinstance(rows, list):
            raise unsound("its list is no list")
        if "next_token" not in value and total is None:
            raise unsound("it does not say whether its list is complete")
        if token is not None and (not isinstance(token, str) or len(token) > 2000):
            raise unsound("the mark of the next page is unreadable")
        if total is not None:
            if read_whole(total) is None or (self._total is not None and total != self._total):
                raise unsound("the number of instances is unreadable, or changed between two pages")
            self._total = total
        for row in rows:
            instance = read_instance(row)
            self._found[instance.contract_id] = instance
        self._rows += len(rows)
        self.next_token = token or ""
        if self.next_token and (self.next_token in self._tokens or not rows):
            raise unsound("its list does not end")
        self._tokens.add(self.next_token)

    def complete(self) -> list[Instance]:
        """Return the whole listing.

        Raises:
            MarketUnknown: There are not as many instances as the market says.
        """
        if len(self._found) != self._rows or self._total not in (None, self._rows):
            raise unsound(f"it lists {len(self._found)} instances, and counts {self._total}")
        return list(self._found.values())


def read_instance(row: Any) -> Instance:
    """Return an instance of a row; what is not needed to find it again may be missing.

    Raises:
        MarketUnknown: Id, label or status are unreadable.
    """
    if not isinstance(row, dict):
        raise unsound("an instance is no object")
    number, label, status = _read_id(row.get("id")), row.get("label"), row.get("actual_status")
    is_told = "actual_status" in row and "label" in row
    if number is None or not is_told or not (_is_text(label) and _is_text(status)):
        raise unsound("an instance without a readable id, label or status")
    state = STATES.get(status or "created", InstanceState.STARTING)
    started = read_number(row.get("start_date"), 0, MAX_MS / 1000)
    return Instance(
        provider=NAME,
        contract_id=str(number),
        label=label or "",
        state=state,
        market_status=read_text(status or "provisioning", 40),
        message=read_text(row.get("status_msg"), 300),
        gpu_name=read_text(row.get("gpu_name"), 100),
        gpu_count=read_whole(row.get("num_gpus"), 0, 1000) or 0,
        machine_id=_id_text(row.get("machine_id")),
        supply_musd_per_h=read_musd(row.get("dph_total")) or 0,
        started_ms=round(started * 1000) if started and state is InstanceState.RUNNING else None,
        host=read_host(row.get("public_ipaddr")),
        ports=_read_ports(row.get("ports")),
    )


def _read_id(value: Any) -> int | None:
    """Return an id; a float, or text, is none."""
    return read_whole(value, 1) if isinstance(value, int) else None


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _id_text(value: Any) -> str:
    number = read_whole(value)
    return "" if number is None else str(number)


def _read_ports(value: Any) -> dict[int, int]:
    found: dict[int, int] = {}
    for name, bindings in list(value.items())[: 4 * MAX_PORTS] if isinstance(value, dict) else ():
        match = _PORT.fullmatch(name)
        first = bindings[0] if isinstance(bindings, list) and bindings else None
        inner = read_port(match[1]) if match else None
        outer = read_port(first.get("HostPort")) if isinstance(first, dict) else None
        if inner and outer and len(found) < MAX_PORTS:
            found[inner] = outer
    return found


def read_offers(value: dict[str, Any]) -> list[Offer]:
    """Return the offers of an answer, cheapest first; a row that cannot be read is left out.

    Raises:
        MarketUnknown: There is no list, or none of its rows can be read.
    """
    rows = value.get("offers")
    if not isinstance(rows, list):
        raise unsound("it lists no offers")
    found = [offer for row in rows if (offer := read_offer(row)) is not None]
    if rows and not found:
        raise unsound("none of its offers can be read")
    unique = {offer.id: offer for offer in found}
    return sorted(unique.values(), key=lambda offer: (offer.supply_musd_per_h, offer.id))


def read_offer(row: Any) -> Offer | None:
    """Return an offer of a row; None = it is unreadable, or has no price."""
    if not isinstance(row, dict):
        return None
    number, price = read_whole(row.get("id"), 1), read_musd(row.get("dph_total"))
    gpus, ram_mb = read_whole(row.get("num_gpus"), 1, 1000), read_number(row.get("gpu_ram"), 1, 1e8)
    name = read_text(row.get("gpu_name"), 100)
    if number is None or not price or gpus is None or ram_mb is None or not name:
        return None
    reliability = row.get("reliability", row.get("reliability2"))
    facts = {
        "compute_cap": read_number(row.get("compute_cap")),
        "cuda_max_good": read_number(row.get("cuda_max_good")),
        "driver_version": read_text(row.get("driver_version"), 40),
        "cpu_name": read_text(row.get("cpu_name"), 100),
        "inet_up_mbps": read_number(row.get("inet_up")),
        "inet_down_mbps": read_number(row.get("inet_down")),
        "direct_ports": read_whole(row.get("direct_port_count")),
        "storage_cost_per_gb_month": read_number(row.get("storage_cost")),
        "longest_s": read_number(row.get("duration")),
    }
    return Offer(
        provider=NAME,
        id=str(number),
        gpu_name=name,
        gpu_count=gpus,
        vram_gb=round(ram_mb / 1000, 1),
        supply_musd_per_h=price,
        machine_id=_id_text(row.get("machine_id")),
        cpu_cores=read_number(row.get("cpu_cores_effective")) or read_number(row.get("cpu_cores")) or 0.0,
        ram_gb=round((read_number(row.get("cpu_ram")) or 0.0) / 1000, 1),
        storage_gb=round(read_number(row.get("disk_space")) or 0.0, 1),
        location=read_text(row.get("geolocation"), 100),
        is_verified=row.get("verification") == "verified" or row.get("verified") is True,
        is_available=row.get("rentable", True) is True and row.get("rented", False) is not True,
        reliability=read_number(reliability, 0, 1),
        specifications={name: fact for name, fact in facts.items() if fact not in (None, "")},
    )


# ---- what is asked


def search_body(wanted: OfferFilter, names: Iterable[str], *, limit: int) -> dict[str, Any]:
    """Return the search for what is wanted. Ours are the filters that count; these spare rows.

    Args:
        wanted: The filter.
        names: Names of GPUs that the market has.
        limit: Most rows.
    """
    body: dict[str, Any] = {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "external": {"eq": False},
        "type": "on-demand",
        "order": [["dph_total", "asc"]],
        "limit": limit,
        "allocated_storage": SEARCHED_DISK_GB,
    }
    if wanted.min_vram_gb:
        body["gpu_ram"] = {"gte": int(wanted.min_vram_gb * 1000 * 100 / NOMINAL_PERCENT)}
    if wanted.min_gpus > 1:
        body["num_gpus"] = {"gte": wanted.min_gpus}
    if wanted.is_verified_only:
        body["verified"] = {"eq": True}
    if wanted.max_price_musd_per_h is not None:
        body["dph_total"] = {"lte": wanted.max_price_musd_per_h / 1_000_000}
    model = plain_name(wanted.gpu_model)
    if model and (fitting := [name for name in names if model in plain_name(name)]):
        body["gpu_name"] = {"in": fitting}
    return body


def order_body(launch: Launch) -> dict[str, Any]:
    """Return the order of an instance.

    The image's own program runs where arguments for it are given, or no script is; otherwise the script does.
    """
    ports = {f"-p {port}:{port}": "1" for port in launch.ports}
    body: dict[str, Any] = {
        "client_id": "me",
        "image": launch.image,
        "disk": launch.disk_gb,
        "label": launch.label,
        "env": {**launch.environ, **ports},
        "runtype": "args" if launch.command or not launch.onstart else "ssh_direct",
        "target_state": "running",
        "cancel_unavail": True,
    }
    if launch.command:
        body["args"] = list(launch.command)
    if launch.onstart:
        body["onstart"] = launch.onstart
    return body


def as_id(text: str) -> int | None:
    """Return a number that names an offer or an instance; None = it cannot be one."""
    return int(text) if text.isascii() and text.isdecimal() and 0 < len(text) < 16 else None


def contract_number(contract_id: str) -> int:
    """Return the number of an instance.

    Raises:
        MarketUnknown: It cannot be one, so that nothing can be asked about it.
    """
    number = as_id(contract_id)
    if number is None:
        raise MarketUnknown(f"{contract_id[:40]!r} is no id of an instance at vast.ai.")
    return number


def next_midnight_s(now_s: float) -> float:
    """Return the next midnight in UTC, seconds since 1970."""
    day = datetime.fromtimestamp(now_s, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return (day + timedelta(days=1)).timestamp()
