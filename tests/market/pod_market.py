"""A third market, whole: an API in the manner of RunPod's, as docs/renting.md names it. For tests alone."""

import re
from typing import Any

from appliance.base.clock import Clock
from appliance.market.providers.calls import MarketCalls, MarketReply
from appliance.market.providers.readers import read_host, read_musd, read_number, read_text, read_whole, tail
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

STATES = {"RUNNING": InstanceState.RUNNING, "EXITED": InstanceState.FAILED, "TERMINATED": InstanceState.ENDED}
POD_ID = re.compile(r"[a-z0-9]{1,32}", re.ASCII)


class PodMarket:
    """The market pods.example."""

    name = "pods.example"
    aliases: tuple[str, ...] = ("pods",)
    id_prefix = "pods-"

    def __init__(self, key: str, url: str, *, clock: Clock, timeout_s: float) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._calls = MarketCalls(
            self.name, url, headers, clock=clock, timeout_s=timeout_s, intervals={"search": 0.5}
        )

    async def offers(self, wanted: OfferFilter, *, limit: int) -> list[Offer]:
        value = _sound(await self._calls.send("search", "GET", "/gpus", is_repeatable=True))
        if not isinstance(value, list):
            raise _unsound("it lists no GPUs")
        found = [offer for row in value if (offer := _offer(row)) is not None]
        if value and not found:
            raise _unsound("none of its GPUs can be read")
        return sorted(found, key=lambda offer: (offer.supply_musd_per_h, offer.id))[:limit]

    async def create(self, offer: Offer, launch: Launch) -> str:
        body = {
            "name": launch.label,
            "gpuTypeId": offer.id,
            "imageName": launch.image,
            "containerDiskInGb": launch.disk_gb,
            "env": launch.environ,
            "ports": [f"{port}/tcp" for port in launch.ports],
            "dockerStartCmd": list(launch.command)
            or (["sh", "-c", launch.onstart] if launch.onstart else []),
        }
        reply = await self._calls.send("create", "POST", "/pods", body=body, is_repeatable=False)
        code = read_text(reply.value.get("error")) if isinstance(reply.value, dict) else ""
        if 400 <= reply.status < 500 and reply.status != 408 and code:
            if code == "no_capacity":
                raise OfferGone("pods.example has no capacity for this offer any more. Choose another one.")
            raise MarketRefused(f"pods.example does not take the order: {code}. Nothing was created.")
        value = _sound(reply)
        name = value.get("id") if isinstance(value, dict) else None
        if not isinstance(name, str) or not POD_ID.fullmatch(name):
            raise _unsound("it names no new pod")
        return name

    async def get(self, contract_id: str) -> Instance | None:
        reply = await self._calls.send("show", "GET", f"/pods/{_checked(contract_id)}", is_repeatable=True)
        if (
            reply.status == 404
            and isinstance(reply.value, dict)
            and reply.value.get("error") == "no_such_pod"
        ):
            return None
        instance = _instance(_sound(reply))
        if instance.contract_id != contract_id:
            raise _unsound("it describes another pod")
        return instance

    async def list(self) -> "list[Instance]":
        value = _sound(await self._calls.send("list", "GET", "/pods", is_repeatable=True))
        rows, total = (value.get("pods"), value.get("total")) if isinstance(value, dict) else (None, None)
        if not isinstance(rows, list) or read_whole(total) != len(rows):
            raise _unsound("its list is not complete")
        found = [_instance(row) for row in rows]
        if len({one.contract_id for one in found}) != len(found):
            raise _unsound("it lists a pod twice")
        return [one for one in found if one.state is not InstanceState.ENDED]

    async def destroy(self, contract_id: str) -> None:
        path = f"/pods/{_checked(contract_id)}"
        reply = await self._calls.send("destroy", "DELETE", path, is_repeatable=True)
        if not (
            reply.status == 404
            and isinstance(reply.value, dict)
            and reply.value.get("error") == "no_such_pod"
        ):
            _sound(reply)

    async def logs(self, contract_id: str, *, max_bytes: int) -> str:
        path = f"/pods/{_checked(contract_id)}/logs"
        reply = await self._calls.send("logs", "GET", path, is_repeatable=True)
        if reply.status != 200:
            _sound(reply)
        return tail(reply.data, max_bytes)

    async def credit_musd(self) -> int | None:
        value = _sound(await self._calls.send("user", "GET", "/me", is_repeatable=True))
        return read_musd(value.get("balance")) if isinstance(value, dict) else None

    async def close(self) -> None:
        await self._calls.close()


def _unsound(why: str) -> MarketUnknown:
    return MarketUnknown(f"pods.example gave no reliable answer: {why}.")


def _checked(contract_id: str) -> str:
    if not POD_ID.fullmatch(contract_id):
        raise MarketUnknown(f"{contract_id[:40]!r} is no id of a pod.")
    return contract_id


def _sound(reply: MarketReply) -> Any:
    if reply.status in (401, 403):
        raise MarketRefused("pods.example refuses the key.", code="market_key_refused")
    if not 200 <= reply.status < 300:
        raise _unsound(f"status {reply.status}")
    if not isinstance(reply.value, dict | list):
        raise _unsound("it is neither an object nor a list")
    return reply.value


def _offer(row: Any) -> Offer | None:
    if not isinstance(row, dict):
        return None
    name, price, vram = (
        read_text(row.get("id")),
        read_musd(row.get("price")),
        read_number(row.get("memoryInGb"), 1),
    )
    if not name or not price or vram is None:
        return None
    return Offer("pods.example", name, name, 1, vram, price, location=read_text(row.get("country")))


def _instance(row: Any) -> Instance:
    name, label, status = (
        (row.get(one) for one in ("id", "name", "desiredStatus")) if isinstance(row, dict) else ("",) * 3
    )
    if not (
        isinstance(name, str)
        and POD_ID.fullmatch(name)
        and isinstance(label, str)
        and isinstance(status, str)
    ):
        raise _unsound("a pod without a readable id, name or status")
    return Instance(
        "pods.example",
        name,
        label,
        STATES.get(status, InstanceState.STARTING),
        market_status=status[:40],
        supply_musd_per_h=read_musd(row.get("costPerHr")) or 0,
        host=read_host(row.get("publicIp")),
    )
