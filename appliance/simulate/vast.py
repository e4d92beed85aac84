"""vast.ai's API: offers, instances, logs, the account. contracts/vast.toml says which facts are captured."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.base.money import parse_musd, shorten, to_dollars
from appliance.simulate.answers import TwinAnswer, TwinRefusal, TwinRequest, TwinRoute, is_simulated_key
from appliance.simulate.faults import Faults
from appliance.simulate.filters import cut_page, read_order, select, sort_rows
from appliance.simulate.fleet import MAX_LIVE, RentedFleet, RentedInstance, Stage
from appliance.simulate.rented_engines import MAX_PORTS
from appliance.simulate.twin_clock import TwinClock
from appliance.simulate.vast_offers import VastAsk, make_offers
from appliance.simulate.vast_rows import INSTANCE_FIELDS, describe_instance

KEY = "vastai-simulated-key"  # no plain word: values of keys are blanked in logs
DEFAULT_FOUND, MOST_FOUND = 64, 64
MAX_PAGE = 25
MAX_TEXT = 16_384
MAX_LOGS = 100
DEFAULT_DISK_GB = 8.0
RUNTYPES = ("ssh", "jupyter", "args", "ssh_direct", "ssh_proxy", "jupyter_direct", "jupyter_proxy")
SEARCH_EXTRAS = ("type", "order", "limit", "allocated_storage", "disable_bundling", "select_cols")


class VastService:
    """The stand-in for vast.ai.

    Args:
        clock: The twin's.
        faults: What is to go wrong.
        credit_musd: What the account has at the start.
        offers: How many offers there are.
        seed: Of the offers.
        created_s, loading_s: How long an instance is created, then loading.
    """

    name = "vast"
    calls: tuple[str, ...] = ()

    def __init__(
        self,
        clock: TwinClock,
        faults: Faults,
        *,
        credit_musd: int,
        offers: int,
        seed: int,
        created_s: float,
        loading_s: float,
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._credit_musd = credit_musd
        self._asks = make_offers(offers, seed=seed)
        self._logs: dict[str, tuple[int, str]] = {}  # id of a result → (how often it was asked for, text)
        self.fleet = RentedFleet("vast", clock, faults, created_s=created_s, loading_s=loading_s)

    def routes(self) -> list[TwinRoute]:
        """Return its addresses."""
        v0 = "/api/v0"
        return [
            TwinRoute("search", "POST", f"{v0}/bundles/", self.search),
            TwinRoute("search", "GET", f"{v0}/bundles/", self.search_by_query),
            TwinRoute("search", "PUT", f"{v0}/search/asks/", self.search_asks),
            TwinRoute("create", "PUT", f"{v0}/asks/{{id}}/", self.create),
            TwinRoute("list", "GET", "/api/v1/instances/", self.list_page),
            TwinRoute("list_v0", "GET", f"{v0}/instances/", self.list_v0),
            TwinRoute("destroy", "DELETE", f"{v0}/instances/", self.destroy_many),
            TwinRoute("show", "GET", f"{v0}/instances/{{id}}/", self.show),
            TwinRoute("destroy", "DELETE", f"{v0}/instances/{{id}}/", self.destroy),
            TwinRoute("change", "PUT", f"{v0}/instances/{{id}}/", self.change),
            TwinRoute("logs", "PUT", f"{v0}/instances/request_logs/{{id}}/", self.request_logs),
            TwinRoute("logs_result", "GET", "/logs/{name}", self.logs_result, is_open=True),
            TwinRoute("user", "GET", f"{v0}/users/current/", self.user),
        ]

    def check_key(self, headers: Mapping[str, str]) -> None:
        """Refuse a key that does not say that it is simulated, as a market refuses a wrong one."""
        if not is_simulated_key(headers.get("Authorization", ""), prefix="Bearer "):
            text = f"Invalid user key (simulated: it has the word `simulated`, as {KEY!r})"
            raise TwinRefusal(401, self.error_body(401, "auth_error", text))

    def error_body(self, status: int, code: str, text: str) -> Any:
        """Return an error in vast.ai's form."""
        return {"success": False, "error": code, "msg": text}

    def url(self, origin: str) -> str:
        """Return the address to configure."""
        return origin

    def environ(self, origin: str) -> dict[str, str]:
        """Return the variables with which the appliance uses it."""
        return {"VASTAI_API_URL": self.url(origin), "VASTAI_API_KEY": KEY}

    def settle(self) -> None:
        """Bring the instances up to the present time."""
        self.fleet.settle()

    @property
    def credit_musd(self) -> int:
        """What is left of the credit."""
        return self._credit_musd - self.fleet.cost_musd

    def truth(self) -> dict[str, Any]:
        """Return what really is."""
        return {**self.fleet.truth(), "credit_musd": self.credit_musd}

    # ---- offers

    async def search(self, request: TwinRequest) -> TwinAnswer:
        """Answer the offers that fit the body."""
        return TwinAnswer({"offers": self._found(request.body)})

    async def search_by_query(self, request: TwinRequest) -> TwinAnswer:
        """Answer the offers that fit `q`; without it all."""
        return TwinAnswer({"offers": self._found(self._json(request.query.get("q") or "{}", "q"))})

    async def search_asks(self, request: TwinRequest) -> TwinAnswer:
        """Answer the offers that fit `q` of the body."""
        return TwinAnswer({"offers": self._found(request.body.get("q") or {})})

    def _found(self, wanted: Any) -> list[dict[str, Any]]:
        if not isinstance(wanted, dict):
            raise self._invalid("the query must be an object")
        kind = {"interruptible": "bid"}.get(str(wanted.get("type")), wanted.get("type", "on-demand"))
        if kind not in ("on-demand", "reserved", "bid"):
            raise self._invalid(f"type is {shorten(kind)}; allowed are on-demand, reserved, bid")
        storage_gb = self._number(wanted.get("allocated_storage", 5.0), "allocated_storage", 0, 100_000)
        limit = int(self._number(wanted.get("limit") or DEFAULT_FOUND, "limit", 1, 100_000))
        rented = self._rented_asks()
        rows = [self._row(ask, storage_gb, kind, rented) for ask in self._asks.values()]
        fields = frozenset(rows[0])
        filters = {name: value for name, value in wanted.items() if name not in SEARCH_EXTRAS}
        try:
            order = read_order(wanted.get("order", [["score", "desc"]]), fields=fields)
            return sort_rows(select(rows, filters, fields=fields), order)[: min(limit, MOST_FOUND)]
        except Invalid as exc:
            raise self._invalid(str(exc)) from None

    def _rented_asks(self) -> frozenset[int]:
        return frozenset(instance.facts["ask_id"] for instance in self.fleet.live())

    def _row(self, ask: VastAsk, storage_gb: float, kind: str, rented: frozenset[int]) -> dict[str, Any]:
        return ask.as_row(storage_gb=storage_gb, is_rented=ask.is_taken or ask.id in rented, kind=kind)

    # ---- instances

    async def create(self, request: TwinRequest) -> TwinAnswer:
        """Rent an offer."""
        ask = self._asks.get(_as_id(request.params["id"]))
        if ask is None or ask.is_taken or ask.id in self._rented_asks():
            text = f"no_such_ask: offer {request.params['id'][:20]} is not available."
            raise TwinRefusal(410, self.error_body(410, "no_such_ask", text))
        instance = self._order(ask, request.body)
        self.fleet.create(instance)
        return TwinAnswer({"success": True, "new_contract": instance.id, "ask_id": ask.id})

    def _order(self, ask: VastAsk, body: dict[str, Any]) -> RentedInstance:
        """Read an order.

        Raises:
            TwinRefusal: It is wrong, or there is no money or no capacity for it.
        """
        image, label, onstart = (
            self._text(body.get(name) or "", name) for name in ("image", "label", "onstart")
        )
        if not image and not body.get("template_hash_id"):
            raise self._invalid("image is missing")
        runtype = body.get("runtype") or "ssh"
        if not set(str(runtype).replace("direc ", "direct ").split()) <= {
            *RUNTYPES,
            "jupyter_direc",
            "ssh_direc",
        }:
            raise self._invalid(f"runtype is {shorten(runtype)}; allowed are {', '.join(RUNTYPES)}")
        target = body.get("target_state") or "running"
        if target not in ("running", "stopped"):
            raise self._invalid(f"target_state is {shorten(target)}; allowed are running, stopped")
        disk_gb = self._number(body.get("disk") or DEFAULT_DISK_GB, "disk", 1, float(ask.row["disk_space"]))
        environ, ports = self._read_env(body.get("env") or {})
        args = body.get("args") or []
        if not isinstance(args, list) or len(args) > 200:
            raise self._invalid(f"args is {shorten(args)}; allowed is a list of texts")
        disk, gpu = ask.disk_musd_per_h(disk_gb), ask.gpu_musd_per_h
        if body.get("price") is not None:  # a bid; nothing in the simulation bids more
            least = ask.bid_musd_per_h
            gpu = parse_musd(f"{self._number(body['price'], 'price', least / 1e6, 1000):.6f}")
        if len(self.fleet.live()) >= MAX_LIVE:
            raise TwinRefusal(
                400, self.error_body(400, "too_many_instances", f"simulated: {MAX_LIVE} at most")
            )
        if self.credit_musd < gpu + disk:
            text = "Your account lacks credit; see the billing page."
            raise TwinRefusal(400, self.error_body(400, "insufficient_credit", text))
        facts = {
            "ask_id": ask.id,
            "image": image,
            "disk_gb": disk_gb,
            "gpu_name": ask.row["gpu_name"],
            "num_gpus": ask.row["num_gpus"],
            "runtype": runtype,
            "intended": target,
        }
        return RentedInstance(
            id=0,
            label=label,
            created_ms=0,
            facts=facts,
            environ=environ,
            args=tuple(self._text(each, "args") for each in args),
            onstart=onstart,
            ports=ports,
            gpu_musd_per_h=gpu,
            disk_musd_per_h=disk,
        )

    def _read_env(self, env: Any) -> tuple[dict[str, str], tuple[int, ...]]:
        """Return (the variables, the TCP ports) of `{"NAME": "value", "-p 8000:8000": "1"}`."""
        if not isinstance(env, dict) or len(env) > 200:
            raise self._invalid("env must be an object of texts")
        environ, ports = {}, []
        for name, value in env.items():
            if not name.startswith("-"):
                environ[self._text(name, "env")] = self._text(str(value), "env")
            elif name.startswith("-p "):
                inner = name[3:].strip().split(":")[-1]
                port, _, protocol = inner.partition("/")
                if not (port.isdecimal() and 0 < int(port) < 65_536):
                    raise self._invalid(f"env: {shorten(name)} is no port; allowed is -p 8000:8000")
                if protocol in ("", "tcp"):
                    ports.append(int(port))
        if len(ports) > MAX_PORTS:
            raise self._invalid(f"env: {len(ports)} ports; the simulation serves {MAX_PORTS} at most")
        return environ, tuple(ports)

    async def list_page(self, request: TwinRequest) -> TwinAnswer:
        """Answer a page of the instances."""
        query = request.query
        limit = int(self._number(self._json(query.get("limit") or "25", "limit"), "limit", 1, MAX_PAGE))
        rows = [self._instance_row(instance) for instance in self.fleet.live()]
        try:
            wanted = self._json(query.get("select_filters") or "{}", "select_filters")
            order = self._json(query.get("order_by") or '[{"col": "id"}]', "order_by")
            found = sort_rows(
                select(rows, wanted, fields=INSTANCE_FIELDS), read_order(order, fields=INSTANCE_FIELDS)
            )
            page, token = cut_page(found, limit=limit, token=query.get("after_token", ""))
        except Invalid as exc:
            raise self._invalid(str(exc)) from None
        labels = Counter(row["label"] or "" for row in found)
        return TwinAnswer(
            {
                "success": True,
                "instances": page,
                "next_token": token,
                "total_instances": len(found),
                "instances_found": len(page),
                "label_counts": dict(labels),
            }
        )

    async def list_v0(self, request: TwinRequest) -> TwinAnswer:
        """Refuse: this list is gone."""
        text = "This endpoint is deprecated. Use /api/v1/instances/ instead."
        raise TwinRefusal(410, self.error_body(410, "deprecated_endpoint", text))

    async def show(self, request: TwinRequest) -> TwinAnswer:
        """Answer one instance; null = none of this id."""
        instance = self.fleet.find(request.params["id"])
        return TwinAnswer({"instances": None if instance is None else self._instance_row(instance)})

    async def destroy(self, request: TwinRequest) -> TwinAnswer:
        """End an instance for good."""
        self._destroy(self._instance(request.params["id"]))
        return TwinAnswer({"success": True})

    async def destroy_many(self, request: TwinRequest) -> TwinAnswer:
        """End several instances for good."""
        numbers = request.body.get("instance_ids")
        if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_LIVE:
            raise self._invalid("instance_ids must be a list of ids")
        for instance in [self._instance(str(number)) for number in numbers]:
            self._destroy(instance)
        return TwinAnswer({"success": True})

    def _destroy(self, instance: RentedInstance) -> None:
        if self._faults.take(self.name, "destroy", ("destroy_lies",)) is None:
            self.fleet.move(instance, Stage.DESTROYED)

    async def change(self, request: TwinRequest) -> TwinAnswer:
        """Start, stop or label an instance."""
        instance, body = self._instance(request.params["id"]), request.body
        if "label" not in body and "state" not in body:
            raise self._invalid("neither state nor label is given")
        if "label" in body:
            instance.label = self._text(body["label"] or "", "label")
        if "state" in body:
            state = body["state"]
            if state not in ("running", "stopped"):
                raise self._invalid(f"state is {shorten(state)}; allowed are running, stopped")
            instance.facts["intended"] = state
            if state == "stopped" and instance.stage is not Stage.STOPPED:
                self.fleet.move(instance, Stage.STOPPED)
            elif state == "running" and instance.stage in (Stage.STOPPED, Stage.EXITED):
                instance.is_stuck = False
                self.fleet.move(instance, Stage.LOADING)
        return TwinAnswer({"success": True})

    def _instance(self, text: str) -> RentedInstance:
        instance = self.fleet.find(text)
        if instance is None:
            body = self.error_body(404, "no_such_instance", f"Instance {text[:20]} not found.")
            raise TwinRefusal(404, body)
        return instance

    def _instance_row(self, instance: RentedInstance) -> dict[str, Any]:
        off = self._faults.find(self.name, "clock_off")
        off_s = off.parameters["seconds"] if off is not None else 0.0
        return describe_instance(instance, self._asks[instance.facts["ask_id"]], off_s=off_s)

    # ---- logs, account

    async def request_logs(self, request: TwinRequest) -> TwinAnswer:
        """Answer where the logs will be."""
        instance = self._instance(request.params["id"])
        tail = request.body.get("tail") or 1000
        if isinstance(tail, str) and tail.isdecimal():
            tail = int(tail)
        count = int(self._number(tail, "tail", 1, 100_000))
        text = "\n".join(list(instance.lines)[-count:]) + "\n"
        name = f"{instance.id}-{self._clock.now_ms()}-{len(self._logs)}"
        while len(self._logs) >= MAX_LOGS:
            del self._logs[next(iter(self._logs))]
        self._logs[name] = (0, text)
        url = f"{request.raw.url.origin()}/logs/{name}"
        return TwinAnswer({"success": True, "result_url": url})

    async def logs_result(self, request: TwinRequest) -> TwinAnswer:
        """Answer the logs; not yet the first time that they are asked for."""
        name = request.params["name"]
        asked, text = self._logs.get(name, (0, ""))
        if name in self._logs:
            self._logs[name] = (asked + 1, text)
        return TwinAnswer(text=text if asked else "not found", status=200 if asked else 404)

    async def user(self, request: TwinRequest) -> TwinAnswer:
        """Answer the account."""
        credit = to_dollars(self.credit_musd)
        user = {"id": 1, "username": "simulated", "email": "simulated@example.com", "api_key": KEY}
        return TwinAnswer({**user, "credit": credit, "balance": 0.0, "can_pay": True})

    # ---- reading

    def _json(self, text: str, name: str) -> Any:
        try:
            return jsons.loads(text)
        except jsons.InvalidJson:
            raise self._invalid(f"{name} is not JSON") from None

    def _invalid(self, text: str) -> TwinRefusal:
        return TwinRefusal(400, self.error_body(400, "invalid_args", f"simulated: {text}"))

    def _number(self, value: Any, name: str, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self._invalid(f"{name} is {shorten(value)}; allowed is a number from {least:g} to {most:g}")
        return float(value)

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise self._invalid(f"{name} is {shorten(value)}; allowed is text up to {MAX_TEXT} characters")
        return value


def _as_id(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) < 16 else -1
