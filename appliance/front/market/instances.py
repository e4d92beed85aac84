"""The addresses of offers and of one's own rentals. For compatibility, see docs/compatibility.md."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

from appliance.base.errors import ApplianceError, Conflict, Invalid, Kind
from appliance.base.money import to_dollars
from appliance.front.accounts.bodies import idempotency_key_of, read_fields
from appliance.front.accounts.caller import BASE, user_of
from appliance.front.market.orders import CONFIG, FILTERS, read_filter, read_order
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.query import Query
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response, json_response
from appliance.front.pipeline.route import Route
from appliance.market.offers import OfferSearch
from appliance.market.providers.contract import Provider
from appliance.market.rental_types import MAX_RESERVED, BatchResult, Rental, Renter, RentOrder, Reserved
from appliance.market.service import RentalService
from appliance.market.types import OfferFilter

ALL: Final = ("", "all")
MAX_BATCH: Final = 8
MAX_LOG_BYTES: Final = 1_048_576
LOG_BYTES: Final = 262_144
MAX_SECONDS: Final = 100_000_000
DESTROYED: Final = "Instance destroyed successfully"
DESTROYING: Final = "Instance is being destroyed; the market has not taken the order yet"


class MarketsFailed(ApplianceError):
    """No market answers a search for offers."""

    kind = Kind.UPSTREAM
    retryable = True
    default_code = "offers_unavailable"


class InstanceHandlers:
    """The handlers of offers and rentals.

    Args:
        search: Finds offers.
        service: Rents.
        count: Called with whether a call for a market succeeded, for the metrics.
    """

    def __init__(
        self, search: OfferSearch, service: RentalService, *, count: Callable[[bool], None] = lambda ok: None
    ) -> None:
        self._search = search
        self._service = service
        self._count = count

    def routes(self) -> list[Route]:
        """Return this group's addresses."""
        own = partial(Route, dialect="market", access=Access.ACCOUNT, scope="market")
        one = f"{BASE}/gpu/instances/{{provider}}/{{id}}"
        return [
            own(("GET",), f"{BASE}/gpu/instances", self.offers),
            own(("POST",), f"{BASE}/gpu/instances/batch", self.batch),
            own(("POST",), f"{BASE}/gpu/instances/reserve", self.reserve),
            own(("POST",), one, self.create),
            own(("GET",), one, self.show),
            own(("DELETE",), one, self.destroy),
            own(("POST",), f"{one}/renew", self.renew),
            own(("GET",), f"{one}/logs", self.logs),
            own(("GET",), f"{BASE}/gpu/rentals", self.rentals),
        ]

    async def offers(self, request: Request) -> Response:
        """Show what can be rented now, cheapest first; `X-Offers-Age` says how old it is, in seconds.

        Returns:
            `{instances: [offer], count, provider, errors?}`; `errors` names markets that did not answer. 502
            where none did. `?provider=all|vast.ai|io.net&min_vram&max_price&gpu_model&location&min_gpus&
            reliability&verified`.
        """
        query = Query(request.query, allowed=("provider", *FILTERS))
        named = query.text("provider").strip()
        provider = "" if named.lower() in ALL else self._search.provider(named).name
        wanted = read_filter({name: query.text(name) for name in FILTERS})
        found = await self._counted(self._search.search(wanted, provider=provider))
        errors = [failure.view() for failure in found.failures]
        if found.is_failed:
            raise MarketsFailed(
                "No market for GPUs gave a reliable answer. Try again in some seconds.",
                retry_after_s=5.0,
                details={"error_fields": {"errors": errors}},
            )
        instances = [self._search.view(offer) for offer in found.offers]
        body: dict[str, Any] = {
            "instances": instances,
            "count": len(instances),
            "provider": provider or "all",
        }
        if errors:
            body["errors"] = errors
        response = json_response(body)
        response.headers.append(("X-Offers-Age", str(int(found.age_s))))
        return response

    async def create(self, request: Request) -> Response:
        """Rent one offer at the price that was shown; `Idempotency-Key` makes a repetition harmless.

        Takes `{image?, disk_gb?, env?, ports?, onstart?, command?, model?, lease_s?, longest_s?, max_cost?}`;
        `X-Timelimit` bounds the lease.

        Returns:
            201 `{contract_id, provider, instance_id, state, rental}`.
        """
        renter = renter_of(request)
        body = read_fields(request, CONFIG, is_optional=True)
        order, key = read_order(body, request), idempotency_key_of(request)
        provider, name = request.params["provider"], request.params["id"]
        rental = await self._counted(self._create(renter, provider, name, order, key))
        return json_response(self._created(rental), 201)

    async def _create(self, renter: Renter, provider: str, name: str, order: RentOrder, key: str) -> Rental:
        offer = await self._search.shown(provider, name)
        return await self._service.create(renter, offer, order, idempotency_key=key)

    def _created(self, rental: Rental) -> dict[str, Any]:
        view = self._service.view(rental)
        short = {name: view[name] for name in ("contract_id", "provider", "instance_id", "state")}
        return {**short, "rental": view}

    async def show(self, request: Request) -> Response:
        """Show one's rental by its contract's, its offer's or its own id."""
        user = user_of(request)
        provider = self._search.provider(request.params["provider"])
        rental = await self._service.get(provider.name, request.params["id"], user_id=user.id)
        return json_response(self._service.view(rental))

    async def destroy(self, request: Request) -> Response:
        """End one's rental; repeated, nothing more happens. It is paid for until now.

        Returns:
            `{message, rental}`; 202 where the market did not take the order yet: it is repeated until the
            market says that the instance is gone.
        """
        user = user_of(request)
        provider = self._search.provider(request.params["provider"])
        rental = await self._counted(
            self._service.destroy(provider.name, request.params["id"], user_id=user.id)
        )
        is_taken = not rental.is_live or (rental.destroy_calls > 0 and not rental.last_error)
        body = {"message": DESTROYED if is_taken else DESTROYING, "rental": self._service.view(rental)}
        return json_response(body, 200 if is_taken else 202)

    async def renew(self, request: Request) -> Response:
        """Let a lease end later by `{seconds}`; returns the rental."""
        user = user_of(request)
        body = read_fields(request, ("seconds",), needed=("seconds",))
        seconds = body["seconds"]
        if (
            isinstance(seconds, bool)
            or not isinstance(seconds, int | float)
            or not 0 < seconds <= MAX_SECONDS
        ):
            raise Invalid(
                f"`seconds` must be a number above 0, up to {MAX_SECONDS}.",
                param="seconds",
                code="invalid_type",
            )
        provider = self._search.provider(request.params["provider"])
        rental = await self._service.renew(
            provider.name, request.params["id"], float(seconds), user_id=user.id
        )
        return json_response(self._service.view(rental))

    async def logs(self, request: Request) -> Response:
        """Show the end of what an instance printed, as text: `?bytes=`, 256 KiB where it is not given."""
        user = user_of(request)
        query = Query(request.query, allowed=("bytes",))
        most = query.number("bytes", default=LOG_BYTES, low=1, high=MAX_LOG_BYTES)
        provider = self._search.provider(request.params["provider"])
        text = await self._counted(
            self._service.logs(provider.name, request.params["id"], user_id=user.id, max_bytes=most)
        )
        return Response(200, text.encode("utf-8", "replace"), content_type="text/plain; charset=utf-8")

    async def rentals(self, request: Request) -> Response:
        """Show one's rentals, newest first: `?live=1` only those that have not ended, `?limit=`.

        Returns:
            `{rentals: [rental], count}`.
        """
        user = user_of(request)
        query = Query(request.query, allowed=("live", "limit"))
        limit = query.number("limit", default=100, low=1, high=1000)
        found = await self._service.rentals(user_id=user.id, is_live_only=query.flag("live"), limit=limit)
        return json_response({"rentals": [self._service.view(one) for one in found], "count": len(found)})

    # ---- several

    async def batch(self, request: Request) -> Response:
        """Rent the cheapest offers of each market: `{vastai_count?, ionet_count?, config?, filters?}`.

        A count is 0 to 8; what is out of range counts as 1, and 0 of both as 1 of each. One that fails does
        not undo the others.

        Returns:
            201 `{vastai_instances, ionet_instances, total_created, errors}`; 409 where none could be rented.
        """
        renter = renter_of(request)
        markets = list(self._search.providers.values())
        fields = tuple(dict.fromkeys([*("vastai_count", "ionet_count"), *map(_count_name, markets)]))
        body = read_fields(request, (*fields, "config", "filters"), is_optional=True)
        counts = {name: _batch_count(body.get(name, 0)) for name in fields}
        if not any(counts.values()):
            counts = dict.fromkeys(counts, 1)
        order = read_order(_object(body, "config"), request, where="config.")
        wanted = _filters(body, ())
        known = {_count_name(market): market for market in markets}
        errors = [
            f"{name.removesuffix('_count')}: this market has no key."
            for name, count in counts.items()
            if count and name not in known
        ]
        result = await self._counted(
            self._service.batch(
                renter,
                {known[name].name: count for name, count in counts.items() if name in known},
                wanted,
                order,
                idempotency_key=idempotency_key_of(request),
            )
        )
        return self._batch_response(result, {name: known.get(name) for name in fields}, errors)

    def _batch_response(
        self, result: BatchResult, markets: dict[str, Provider | None], errors: list[str]
    ) -> Response:
        created = {
            f"{name.removesuffix('_count')}_instances": [
                self._created(rental) for rental in (result.rentals.get(market.name, []) if market else [])
            ]
            for name, market in markets.items()
        }
        total = sum(len(rentals) for rentals in created.values())
        body: dict[str, Any] = {**created, "total_created": total, "errors": [*errors, *result.errors]}
        if not total:
            raise Conflict(
                "None of the instances could be rented.",
                code="nothing_rented",
                details={"error_fields": body},
            )
        return json_response(body, 201)

    async def reserve(self, request: Request) -> Response:
        """Rent 1 to 16 instances, all or none: `{count, filters?, config?, partial?}`.

        With `partial` as many as can be had. `filters` are those of GET /gpu/instances, with `provider`.

        Returns:
            201 `{reserved: [{instance_id, contract_id, provider, gpu_model, vram, price}], count, requested,
            errors, reservation_id}`; 409 `{error, …, rolled_back: true}` where fewer could be had: what was
            rented is given back.
        """
        renter = renter_of(request)
        body = read_fields(request, ("count", "filters", "config", "partial"), needed=("count",))
        count = body["count"]
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_RESERVED:
            raise Invalid(f"Count must be between 1 and {MAX_RESERVED}", param="count", code="invalid_count")
        partial_wanted = body.get("partial", False)
        if not isinstance(partial_wanted, bool):
            raise Invalid("`partial` must be true or false.", param="partial", code="invalid_type")
        wanted = _filters(body, ("provider",))
        named = str(_object(body, "filters").get("provider") or "")
        provider = "" if named.lower() in ALL else self._search.provider(named).name
        order = read_order(_object(body, "config"), request, where="config.")
        reserved = await self._counted(
            self._service.reserve(
                renter,
                count,
                wanted,
                order,
                provider=provider,
                is_partial=partial_wanted,
                idempotency_key=idempotency_key_of(request),
            )
        )
        return self._reserved_response(reserved)

    def _reserved_response(self, reserved: Reserved) -> Response:
        rows = []
        for rental in reserved.rentals:
            view = self._service.view(rental)
            rows.append(
                {
                    "instance_id": view["instance_id"],
                    "contract_id": rental.contract_id,
                    "provider": rental.provider,
                    "gpu_model": rental.gpu_name,
                    "vram": view["vram_gb"],
                    "price": to_dollars(rental.price_musd_per_h),
                }
            )
        body: dict[str, Any] = {
            "reserved": rows,
            "count": len(rows),
            "requested": reserved.requested,
            "errors": reserved.errors,
            "reservation_id": reserved.id,
        }
        if not reserved.is_rolled_back:
            return json_response(body, 201)
        unconfirmed = [self._service.view(rental) for rental in reserved.unconfirmed]
        raise Conflict(
            f"Fewer than {reserved.requested} instances could be rented, so that none was kept.",
            code="reservation_rolled_back",
            details={"error_fields": {**body, "rolled_back": True, "unconfirmed": unconfirmed}},
        )

    async def _counted(self, work: Any) -> Any:
        """Wait for a call, and count it; a refusal of what the caller sent is no failure of a market."""
        try:
            result = await work
        except ApplianceError as exc:
            self._count(exc.kind not in (Kind.UPSTREAM, Kind.UNAVAILABLE, Kind.INTERNAL, Kind.TIMEOUT))
            raise
        self._count(True)
        return result


def renter_of(request: Request) -> Renter:
    """Return who rents, and who pays.

    Raises:
        Forbidden: The caller has no account.
    """
    user, actor = user_of(request), request.actor
    key = actor.key if actor is not None else None
    return Renter(user.id, user.wallet_id, key.id if key is not None else "")


def _count_name(provider: Provider) -> str:
    return f"{provider.aliases[0]}_count"


def _batch_count(value: Any) -> int:
    """Return how many; what is out of range counts as 1."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_BATCH
    return value if is_count else 1


def _object(body: dict[str, Any], name: str) -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Invalid(f"`{name}` must be an object.", param=name, code="invalid_type")
    return value


def _filters(body: dict[str, Any], more: tuple[str, ...]) -> OfferFilter:
    values = _object(body, "filters")
    for name in values:
        if name not in (*FILTERS, *more):
            raise Invalid(
                f"There is no filter {str(name)[:40]!r}; there are {', '.join((*FILTERS, *more))}.",
                param=f"filters.{str(name)[:40]}",
                code="unknown_field",
            )
    provider = values.get("provider")
    if provider is not None and not isinstance(provider, str):
        raise Invalid("`filters.provider` must be a text.", param="filters.provider", code="invalid_type")
    return read_filter(values, where="filters.")
