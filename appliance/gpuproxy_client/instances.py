"""The commands that rent, renew and end instances, and that list what is rented."""

import re
import sys
import uuid
from typing import Any, Final

from appliance.admin.flags import WrongUsage
from appliance.admin.go_program import INTERRUPTED
from appliance.cli.screen import clean
from appliance.gpuproxy_client.api import ApiClient, ApiFailure, quoted
from appliance.gpuproxy_client.output import ClientOutput, number_of, price, rows_of, text_of, vram
from appliance.gpuproxy_client.starting import READY, StartWatch

PROGRAM: Final = "aiserve-gpuproxy-client"
MOST_RESERVED: Final = 16
SEE_RENTALS: Final = f"`{PROGRAM} rentals` shows what runs, `{PROGRAM} destroy PROVIDER ID` ends it."
_UNIT_S: Final = {"": 1, "s": 1, "m": 60, "h": 3600}
_DURATION: Final = re.compile(r"(\d{1,9})([smh]?)", re.ASCII)


class InstanceCommands:
    """Commands about instances.

    Args:
        api: The appliance.
        output: Where they print.
        watch: Waits for an instance; None = it is not waited for.
    """

    def __init__(self, api: ApiClient, output: ClientOutput, watch: StartWatch | None) -> None:
        self._api, self._output, self._watch = api, output, watch

    def list_offers(self, provider: str, filters: dict[str, str]) -> None:
        """Print what can be rented, the cheapest first."""
        body = self._api.call("GET", "/gpu/instances", query={"provider": provider, **filters})
        if self._output.object(body):
            return
        rows = rows_of(body, "instances")
        self._output.table(
            ["ID", "PROVIDER", "GPU", "COUNT", "VRAM", "PRICE/HR", "LOCATION"],
            (
                [
                    row.get("id"),
                    row.get("provider"),
                    row.get("gpu_name"),
                    row.get("gpu_count"),
                    vram(row.get("vram_gb")),
                    price(row.get("price_per_hour")),
                    row.get("location"),
                ]
                for row in rows
            ),
        )
        self._output.lines("", f"Total: {len(rows)} instances", *_failures(body))

    def create(self, provider: str, name: str, order: dict[str, Any]) -> int:
        """Rent an offer, and wait until it is ready."""
        try:
            body = self._order(f"/gpu/instances{quoted(provider, name)}", order)
        except ApiFailure as failure:
            raise _unknown(failure, "the instance was rented") from None
        if self._output.object(body):
            return 0
        rental = body["rental"] if isinstance(body.get("rental"), dict) else {}
        self._output.lines(
            "Instance created successfully",
            f"Contract ID: {text_of(body.get('contract_id'))}",
            f"Provider: {text_of(body.get('provider'))}",
            f"Instance ID: {text_of(body.get('instance_id'))}",
        )
        if self._watch is None or not rental.get("id"):
            return 0
        return self._await_start(self._watch, body, rental)

    def _await_start(self, watch: StartWatch, body: dict[str, Any], rental: dict[str, Any]) -> int:
        """Wait until an instance is ready; Ctrl-C ends the wait, not the instance."""
        try:
            done = watch.wait(text_of(rental["id"]))
        except KeyboardInterrupt:
            _tell(*_goes_on(body, rental))
            return INTERRUPTED
        except ApiFailure as failure:
            _tell(*_goes_on(body, rental))
            raise failure from None
        if done.get("state") in READY:
            where = text_of(done.get("address"))
            self._output.lines(
                f"Ready{f' at {where}' if where else ''}; lease until {done.get('lease_ends_at')}"
            )
            return 0
        why = text_of(done.get("last_error") or done.get("end_reason")) or "the appliance does not say why"
        raise ApiFailure(f"The instance did not start: {text_of(done.get('state'))}, {why}.")

    def destroy(self, provider: str, name: str) -> None:
        """End a rental."""
        body = self._api.call("DELETE", f"/gpu/instances{quoted(provider, name)}")
        if not self._output.object(body):
            self._output.lines(text_of(body.get("message")) or "Instance destroyed successfully")

    def reserve(self, count: str, filters: dict[str, Any], *, is_partial: bool) -> None:
        """Rent several instances, all or none."""
        if not count.isascii() or not count.isdecimal() or not 1 <= int(count[:3]) <= MOST_RESERVED:
            raise WrongUsage(f"Count must be between 1 and {MOST_RESERVED}")
        order: dict[str, Any] = {"count": int(count)}
        if filters:
            order["filters"] = filters
        if is_partial:
            order["partial"] = True
        try:
            body = self._order("/gpu/instances/reserve", order)
        except ApiFailure as failure:
            _tell(*_problems(failure.body))
            raise _unknown(failure, "instances were rented") from None
        if self._output.object(body):
            return
        rows = rows_of(body, "reserved")
        self._output.lines(f"Reserved {len(rows)} of {text_of(body.get('requested'))} GPUs", "")
        self._output.table(
            ["INSTANCE", "CONTRACT", "PROVIDER", "GPU", "VRAM", "PRICE"],
            (
                [
                    row.get("instance_id"),
                    row.get("contract_id"),
                    row.get("provider"),
                    row.get("gpu_model"),
                    vram(row.get("vram")),
                    price(row.get("price")),
                ]
                for row in rows
            ),
        )
        self._output.lines(*_problems(body))

    def rentals(self, *, is_live: bool) -> None:
        """Print what one rents, the newest first."""
        body = self._api.call("GET", "/gpu/rentals", query={"live": "1" if is_live else ""})
        if self._output.object(body):
            return
        rows = rows_of(body, "rentals")
        self._output.table(
            ["CONTRACT", "INSTANCE", "PROVIDER", "GPU", "COUNT", "STATE", "PRICE/HR", "COST", "LEASE ENDS"],
            (
                [
                    row.get("contract_id") or row.get("id"),
                    row.get("instance_id"),
                    row.get("provider"),
                    row.get("gpu_name"),
                    row.get("gpu_count"),
                    row.get("state"),
                    price(row.get("price_per_hour")),
                    price(row.get("cost")),
                    row.get("ended_at") or row.get("lease_ends_at"),
                ]
                for row in rows
            ),
        )
        self._output.lines("", f"Total: {len(rows)} rentals")

    def renew(self, provider: str, name: str, length: str) -> None:
        """Let a lease end later."""
        body = self._api.call(
            "POST", f"/gpu/instances{quoted(provider, name)}/renew", {"seconds": read_seconds(length)}
        )
        if not self._output.object(body):
            self._output.lines(f"Lease of {name} until {text_of(body.get('lease_ends_at'))}")

    def _order(self, path: str, order: dict[str, Any]) -> dict[str, Any]:
        """Send an order that costs money; sent again by a proxy on the way, it counts once."""
        try:
            return self._api.call("POST", path, order, headers={"Idempotency-Key": str(uuid.uuid4())})
        except KeyboardInterrupt:
            _tell("", f"The order was sent; {SEE_RENTALS}")
            raise


def read_seconds(text: str) -> int:
    """Return a length of time: `3600`, `90m`, `2h`.

    Raises:
        WrongUsage: It is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None or not int(match[1]):
        raise WrongUsage(f"{text[:20]!r} is no length of time: use seconds, or such as 90m or 2h")
    return int(match[1]) * _UNIT_S[match[2]]


def _goes_on(body: dict[str, Any], rental: dict[str, Any]) -> list[str]:
    """Return what goes on running, what it costs, and how it is ended."""
    name = text_of(body.get("contract_id")) or text_of(body.get("instance_id"))
    end = text_of(rental.get("lease_ends_at")) or "its lease ends"
    rate = price(rental.get("price_per_hour")) if number_of(rental.get("price_per_hour")) else "its price"
    return [
        "",
        f"The instance {name} goes on running and costs {rate} an hour until {end}.",
        f"To end it: {PROGRAM} destroy {text_of(body.get('provider'))} {name}",
    ]


def _unknown(failure: ApiFailure, what: str) -> ApiFailure:
    """Return a failure that also says what may have been rented where no response came."""
    if failure.is_sent:
        failure.message += f" Whether {what} is not known: {SEE_RENTALS}"
    return failure


def _failures(body: dict[str, Any]) -> list[str]:
    """Return a line for each market that did not answer."""
    return [
        f"{text_of(one.get('provider'))} did not answer: {text_of(one.get('message'))}"
        for one in rows_of(body, "errors")
    ]


def _problems(body: dict[str, Any]) -> list[str]:
    """Return a line for each thing that went wrong with a reservation."""
    found = body.get("errors")
    return [f"  {text_of(one)}" for one in found] if isinstance(found, list) else []


def _tell(*lines: str) -> None:
    """Print lines beside the output."""
    if lines:
        print(clean("\n".join(lines)), file=sys.stderr)
