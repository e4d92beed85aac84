"""io.net's API for containers, paid ahead. contracts/ionet.toml says which facts are captured."""

from collections.abc import Mapping
from typing import Any

from appliance.base import jsons
from appliance.base.money import shorten, to_dollars
from appliance.simulate.answers import TwinAnswer, TwinRefusal, TwinRequest, TwinRoute, is_simulated_key
from appliance.simulate.faults import Faults
from appliance.simulate.fleet import MAX_LIVE, MS_PER_H, RentedFleet, RentedInstance, Stage
from appliance.simulate.ionet_rows import (
    STATUSES,
    deployment_id,
    describe_deployment,
    describe_in_full,
    describe_workers,
)
from appliance.simulate.ionet_stock import HARDWARE, LOCATIONS, IoHardware
from appliance.simulate.rented_engines import MAX_PORTS
from appliance.simulate.twin_clock import TwinClock

KEY = "ionet-simulated-key"
BASES = ("/enterprise/v1/io-cloud/caas", "/v1/io-cloud/caas")
FEE_PERCENT = 0
MAX_HOURS = 24 * 365
MAX_PAGE = 100
MAX_TEXT = 16_384
DEFAULT_PORT = 8000
H_PER = {"hourly": 1, "daily": 24, "weekly": 168, "monthly": 720}


class IoNetService:
    """The stand-in for io.net.

    Args:
        clock: The twin's.
        faults: What is to go wrong.
        credit_musd: What the account has at the start.
        created_s, loading_s: How long a deployment is created, then loading.
    """

    name = "ionet"
    calls: tuple[str, ...] = ()

    def __init__(
        self, clock: TwinClock, faults: Faults, *, credit_musd: int, created_s: float, loading_s: float
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._credit_musd = credit_musd
        self.fleet = RentedFleet("ionet", clock, faults, created_s=created_s, loading_s=loading_s)

    def routes(self) -> list[TwinRoute]:
        """Return its addresses, at the address for enterprises and at the public one."""
        rows = [
            ("hardware", "GET", "/hardware/max-gpus-per-container", self.hardware),
            ("replicas", "GET", "/available-replicas", self.replicas),
            ("locations", "GET", "/locations", self.locations),
            ("price", "GET", "/price", self.price),
            ("create", "POST", "/deploy", self.deploy),
            ("list", "GET", "/deployments", self.list_page),
            ("show", "GET", "/deployment/{id}", self.show),
            ("change", "PATCH", "/deployment/{id}", self.change),
            ("destroy", "DELETE", "/deployment/{id}", self.delete),
            ("extend", "POST", "/deployment/{id}/extend", self.extend),
            ("containers", "GET", "/deployment/{id}/containers", self.containers),
            ("logs", "GET", "/deployment/{id}/log/{container}", self.logs),
            ("names", "GET", "/clusters/check_cluster_name_availability", self.check_name),
            ("rename", "PUT", "/clusters/{id}/update-name", self.rename),
        ]
        routes = [
            TwinRoute(name, method, f"{base}{path}", act)
            for base in BASES
            for name, method, path, act in rows
        ]
        return [
            *routes,
            TwinRoute("hardware_public", "GET", f"{BASES[1]}/hardware", self.public, is_open=True),
        ]

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Refuse a key that does not say that it is simulated."""
        if not is_simulated_key(headers.get("X-API-KEY", "")):
            text = f"Invalid API key (simulated: it has the word `simulated`, as {KEY!r})"
            raise TwinRefusal(401, self.error_body(401, "unauthorized", text))

    def error_body(self, status: int, code: str, text: str) -> Any:
        """Return an error in io.net's form."""
        return {"detail": text}

    def url(self, origin: str) -> str:
        """Return the address to configure."""
        return f"{origin}{BASES[0]}"

    def environ(self, origin: str) -> dict[str, str]:
        """Return the variables with which the appliance uses it."""
        return {"IONET_API_URL": self.url(origin), "IONET_API_KEY": KEY}

    def settle(self) -> None:
        """Bring the deployments up to the present time."""
        self.fleet.settle()

    @property
    def credit_musd(self) -> int:
        """What is left of the credit."""
        return self._credit_musd - self.fleet.cost_musd

    def truth(self) -> dict[str, Any]:
        """Return what really is."""
        return {**self.fleet.truth(), "credit_musd": self.credit_musd}

    # ---- what there is

    async def hardware(self, request: TwinRequest) -> TwinAnswer:
        """Answer the hardware and how much of it is free."""
        rows = [
            {
                "hardware_id": ware.id,
                "hardware_name": ware.name,
                "brand_name": ware.brand,
                "max_gpus_per_container": ware.max_gpus,
                "available": sum(self._free(ware, place) for place in LOCATIONS),
            }
            for ware in HARDWARE.values()
        ]
        return _data({"hardware": rows, "total": sum(row["available"] for row in rows)})

    async def public(self, request: TwinRequest) -> TwinAnswer:
        """Answer the hardware with prices, without a key."""
        rows = [
            {
                "id": ware.id,
                "name": ware.name,
                "num_cards": 1,
                "vram_per_card": ware.vram_gb,
                "vcpu": 16,
                "memory": 64,
                "storage": 200,
                "location": LOCATIONS[place].iso2,
                "sold_out": self._free(ware, place) < 1,
                "price": to_dollars(ware.musd_per_h),
                "available_replicas": self._free(ware, place),
            }
            for ware in HARDWARE.values()
            for place in ware.replicas
        ]
        return _data(rows)

    async def replicas(self, request: TwinRequest) -> TwinAnswer:
        """Answer where there is hardware, and how many containers with so many GPUs fit there."""
        ware = self._ware(_number(request.query.get("hardware_id")))
        count = self._count(request.query.get("hardware_qty"), "hardware_qty", ware.max_gpus)
        rows = [
            {
                "id": place.id,
                "iso2": place.iso2,
                "name": place.name,
                "available_replicas": self._free(ware, place.id) // count,
            }
            for place in LOCATIONS.values()
            if place.id in ware.replicas
        ]
        return _data(rows)

    async def locations(self, request: TwinRequest) -> TwinAnswer:
        """Answer the locations."""
        rows = [{"id": place.id, "iso2": place.iso2, "name": place.name} for place in LOCATIONS.values()]
        return _data({"locations": rows, "total": len(rows)})

    def _free(self, ware: IoHardware, place: int) -> int:
        """Return how many GPUs are free at a location."""
        taken: int = sum(
            each.facts["num_gpus"]
            for each in self.fleet.live()
            if each.facts["hardware_id"] == ware.id and each.facts["location_id"] == place
        )
        return max(0, ware.replicas.get(place, 0) - taken)

    async def price(self, request: TwinRequest) -> TwinAnswer:
        """Answer what a deployment would cost."""
        query = request.raw.query
        ware = self._ware(_number(query.get("hardware_id")))
        gpus = self._count(
            query.get("gpus_per_container") or query.get("hardware_qty"), "gpus_per_container", ware.max_gpus
        )
        replicas = self._count(query.get("replica_count", "1"), "replica_count", MAX_PORTS)
        places = self._places(_listed(query.getall("location_ids", [])))
        kind = query.get("duration_type", "hourly")
        if kind not in H_PER:
            raise self._invalid(f"duration_type is {shorten(kind)}; allowed are {', '.join(H_PER)}")
        count = query.get("duration_qty") or query.get("duration_hours")
        hours = self._count(count, "duration_qty", MAX_HOURS) * (
            H_PER[kind] if "duration_qty" in query else 1
        )
        if (currency := query.get("currency", "usdc")) != "usdc":
            raise self._invalid(f"currency is {shorten(currency)}; the simulation has usdc alone")
        total = ware.musd_per_h * gpus * replicas * hours
        return _data(
            {
                "replica_count": replicas,
                "gpus_per_container": gpus,
                "available_replica_count": [self._free(ware, place) // gpus for place in places],
                "discount": 0,
                "ionet_fee": 0,
                "ionet_fee_percent": FEE_PERCENT,
                "currency_conversion_fee": 0,
                "currency_conversion_fee_percent": 0,
                "total_cost_usdc": to_dollars(total),
            }
        )

    # ---- deployments

    async def deploy(self, request: TwinRequest) -> TwinAnswer:
        """Rent containers, paid ahead."""
        body = request.body
        ware = self._ware(body.get("hardware_id"))
        gpus = self._count(body.get("gpus_per_container"), "gpus_per_container", ware.max_gpus)
        hours = self._count(body.get("duration_hours"), "duration_hours", MAX_HOURS)
        places = self._places(body.get("location_ids"))
        container, registry = (self._object(body, name) for name in ("container_config", "registry_config"))
        replicas = self._count(container.get("replica_count"), "replica_count", MAX_PORTS)
        port = self._count(container.get("traffic_port", DEFAULT_PORT), "traffic_port", 65_535)
        name, image = self._text(body, "resource_private_name"), self._text(registry, "image_url")
        if not self._is_free_name(name):
            raise self._invalid(f"resource_private_name {shorten(name)} is in use")
        place = next((each for each in places if self._free(ware, each) >= gpus * replicas), None)
        if place is None:
            raise self._invalid("No available replicas for this hardware at these locations")
        cost = ware.musd_per_h * gpus * replicas * hours
        if len(self.fleet.live()) >= MAX_LIVE:
            raise self._invalid(f"{MAX_LIVE} deployments at most")
        if cost > self.credit_musd:
            raise TwinRefusal(402, self.error_body(402, "insufficient_balance", "Insufficient balance"))
        environ = {
            str(key): str(value)
            for part in ("env_variables", "secret_env_variables")
            for key, value in self._object(container, part, is_needed=False).items()
        }
        args = [word for part in ("entrypoint", "args") for word in self._words(container, part)]
        facts = {
            "hardware_id": ware.id,
            "location_id": place,
            "gpu_name": ware.name,
            "num_gpus": gpus * replicas,
            "gpus_per_container": gpus,
            "replicas": replicas,
            "hours": hours,
            "image": image,
            "traffic_port": port,
        }
        new = RentedInstance(
            id=0,
            label=name,
            created_ms=0,
            facts=facts,
            environ=environ,
            args=tuple(args),
            ports=(port,) * replicas,
            paid_musd=cost,
            paid_ms=hours * MS_PER_H,
        )
        self.fleet.create(new)
        return TwinAnswer({"status": STATUSES[new.stage], "deployment_id": deployment_id(new)})

    async def list_page(self, request: TwinRequest) -> TwinAnswer:
        """Answer a page of the deployments, ended ones too."""
        query = request.query
        page = self._count(query.get("page", "1"), "page", 100_000)
        size = self._count(query.get("page_size", "20"), "page_size", MAX_PAGE)
        rows = [describe_deployment(each, off_s=self._off_s()) for each in self.fleet.instances.values()]
        wanted = {word.strip() for word in query.get("status", "").split(",") if word.strip()}
        rows = [row for row in rows if not wanted or row["status"] in wanted]
        by = query.get("sort_by") or "created_at"
        if rows and by not in rows[0]:
            raise self._invalid(f"sort_by is {shorten(by)}; allowed are {', '.join(rows[0])}")
        rows.sort(
            key=lambda row: (str(row[by]), row["id"]), reverse=query.get("sort_order", "desc") == "desc"
        )
        shown = rows[(page - 1) * size : page * size]
        return _data({"deployments": shown, "total": len(rows), "statuses": sorted(set(STATUSES.values()))})

    async def show(self, request: TwinRequest) -> TwinAnswer:
        """Answer one deployment."""
        return _data(describe_in_full(self._deployment(request.params["id"]), off_s=self._off_s()))

    async def change(self, request: TwinRequest) -> TwinAnswer:
        """Change what the containers run with; they start anew."""
        instance = self._live(request.params["id"])
        instance.environ |= {
            str(k): str(v) for k, v in self._object(request.body, "env_variables", is_needed=False).items()
        }
        if instance.stage in (Stage.RUNNING, Stage.EXITED):
            self.fleet.move(instance, Stage.LOADING)
        return TwinAnswer({"status": STATUSES[instance.stage], "deployment_id": deployment_id(instance)})

    async def delete(self, request: TwinRequest) -> TwinAnswer:
        """End a deployment; nothing is paid back."""
        instance = self._live(request.params["id"])
        if self._faults.take(self.name, "destroy", ("destroy_lies",)) is None:
            self.fleet.move(instance, Stage.DESTROYED)
        return TwinAnswer({"status": STATUSES[Stage.DESTROYED], "deployment_id": deployment_id(instance)})

    async def extend(self, request: TwinRequest) -> TwinAnswer:
        """Pay for more hours."""
        instance = self._live(request.params["id"])
        hours = self._count(request.body.get("duration_hours"), "duration_hours", MAX_HOURS)
        cost = HARDWARE[instance.facts["hardware_id"]].musd_per_h * instance.facts["num_gpus"] * hours
        if cost > self.credit_musd:
            raise TwinRefusal(402, self.error_body(402, "insufficient_balance", "Insufficient balance"))
        instance.paid_musd += cost
        instance.facts["hours"] += hours
        instance.paid_ms += hours * MS_PER_H
        if instance.ends_ms is not None:
            instance.ends_ms += hours * MS_PER_H
        return _data(describe_in_full(instance, off_s=self._off_s()))

    async def containers(self, request: TwinRequest) -> TwinAnswer:
        """Answer the containers of a deployment."""
        workers = describe_workers(self._deployment(request.params["id"]), off_s=self._off_s())
        return _data({"total": len(workers), "workers": workers})

    def _off_s(self) -> float:
        """Return by how much the market's clock is wrong."""
        off = self._faults.find(self.name, "clock_off")
        return off.parameters["seconds"] if off is not None else 0.0

    async def logs(self, request: TwinRequest) -> TwinAnswer:
        """Answer what a container printed, as text."""
        instance = self._deployment(request.params["id"])
        name = request.params["container"]
        if name not in [
            f"{deployment_id(instance)}-{number}" for number in range(instance.facts["replicas"])
        ]:
            raise self._missing(f"Container {name[:60]} not found")
        return TwinAnswer(text="\n".join(instance.lines) + "\n")

    async def check_name(self, request: TwinRequest) -> TwinAnswer:
        """Answer whether a name is free."""
        return TwinAnswer(self._is_free_name(request.query.get("cluster_name", "")))

    async def rename(self, request: TwinRequest) -> TwinAnswer:
        """Give a deployment another name."""
        self._live(request.params["id"]).label = self._text(request.body, "cluster_name")
        return TwinAnswer({"status": "ok", "message": "Cluster name updated"})

    # ---- reading

    def _deployment(self, text: str) -> RentedInstance:
        number = text.removeprefix("dep-")
        instance = self.fleet.instances.get(int(number)) if number.isdecimal() and len(number) < 16 else None
        if instance is None:
            raise self._missing(f"Deployment {text[:60]} not found")
        return instance

    def _live(self, text: str) -> RentedInstance:
        instance = self._deployment(text)
        if not instance.is_live:
            raise self._invalid(f"Deployment {text[:60]} is {STATUSES[instance.stage]}")
        return instance

    def _is_free_name(self, name: str) -> bool:
        return bool(name) and all(each.label != name for each in self.fleet.live())

    def _ware(self, value: Any) -> IoHardware:
        ware = HARDWARE.get(value) if isinstance(value, int) and not isinstance(value, bool) else None
        if ware is None:
            raise self._invalid(f"hardware_id is {shorten(value)}; there are {', '.join(map(str, HARDWARE))}")
        return ware

    def _places(self, value: Any) -> list[int]:
        is_list = isinstance(value, list) and 0 < len(value) <= len(LOCATIONS)
        if not is_list or not all(isinstance(each, int) and each in LOCATIONS for each in value):
            raise self._invalid(
                f"location_ids is {shorten(value)}; there are {', '.join(map(str, LOCATIONS))}"
            )
        return list(value)

    def _count(self, value: Any, name: str, most: int) -> int:
        number = _number(value)
        if number is None or not 1 <= number <= most:
            raise self._invalid(f"{name} is {shorten(value)}; allowed are 1 to {most}")
        return number

    def _text(self, body: dict[str, Any], name: str) -> str:
        value = body.get(name)
        if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT:
            raise self._invalid(f"{name} is {shorten(value)}; allowed is text up to {MAX_TEXT} characters")
        return value

    def _words(self, body: dict[str, Any], name: str) -> list[str]:
        value = body.get(name) or []
        if not isinstance(value, list) or len(value) > 100:
            raise self._invalid(f"{name} is {shorten(value)}; allowed is a list of texts")
        return [str(word)[:MAX_TEXT] for word in value]

    def _object(self, body: dict[str, Any], name: str, *, is_needed: bool = True) -> dict[str, Any]:
        value = body.get(name)
        if value is None and not is_needed:
            return {}
        if not isinstance(value, dict) or len(value) > 200:
            raise self._invalid(f"{name} is {shorten(value)}; allowed is an object")
        return value

    def _invalid(self, text: str) -> TwinRefusal:
        return TwinRefusal(400, self.error_body(400, "invalid", f"simulated: {text}"))

    def _missing(self, text: str) -> TwinRefusal:
        return TwinRefusal(404, self.error_body(404, "not_found", text))


def _data(value: Any) -> TwinAnswer:
    return TwinAnswer({"data": value})


def _number(value: Any) -> int | None:
    """Return a whole number of JSON or of a query."""
    if isinstance(value, str) and value.isdecimal() and len(value) < 12:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _listed(values: list[str]) -> list[Any]:
    """Read numbers of a query: `1,2`, `[1,2]`, or the name given again."""
    found: list[Any] = []
    for value in values:
        try:
            read = jsons.loads(value if value.startswith("[") else f"[{value}]")
        except jsons.InvalidJson:
            return []
        found += read if isinstance(read, list) else []
    return found
