"""Calls to the twin, as its users make them."""

from dataclasses import dataclass
from typing import Any

import aiohttp

from appliance.simulate.twin import Twin

KEYS = {
    "vast": {"Authorization": "Bearer vastai-simulated-key"},
    "ionet": {"X-API-KEY": "ionet-simulated-key"},
    "novita": {"Authorization": "Bearer sk_novita_simulated"},
    "stripe": {"Authorization": "Bearer sk_test_simulated"},
}
GIB_RAM = 24_000
ORDER: dict[str, Any] = {
    "client_id": "me",
    "image": "vllm/vllm-openai:latest",
    "disk": 20,
    "label": "apl-test-1",
    "runtype": "args",
    "args": ["--model", "some/model"],
    "env": {"-p 8000:8000": "1", "VLLM_API_KEY": "instance-key"},
}


@dataclass
class Reply:
    """One answer."""

    status: int
    headers: dict[str, str]
    data: bytes
    json: Any


class Calls:
    """Calls services of a twin with their keys."""

    def __init__(self, twin: Twin, session: aiohttp.ClientSession) -> None:
        self.twin = twin
        self.session = session

    async def __call__(self, service: str, method: str, path: str, body: Any = None, **more: Any) -> Reply:
        base = f"http://127.0.0.1:{self.twin.ports[service]}" if path.startswith("/") else ""
        headers = {**KEYS.get(service, {}), **more.pop("headers", {})}
        options = {"json": body} if body is not None else {}
        async with self.session.request(method, base + path, headers=headers, **options, **more) as response:
            data = await response.read()
            is_json = response.content_type == "application/json" and data
            return Reply(
                response.status, dict(response.headers), data, await response.json() if is_json else None
            )

    async def offers(self, **filters: Any) -> list[dict[str, Any]]:
        """Search vast.ai for what can be rented."""
        body = {"rentable": {"eq": True}, "order": [["dph_total", "asc"]], **filters}
        return (await self("vast", "POST", "/api/v0/bundles/", body)).json["offers"]

    async def rent(self, **more: Any) -> int:
        """Rent the cheapest offer; return the instance's id."""
        offer = (await self.offers())[0]
        reply = await self("vast", "PUT", f"/api/v0/asks/{offer['id']}/", {**ORDER, **more})
        assert reply.status == 200, reply.data
        return reply.json["new_contract"]

    async def listed(self, **query: str) -> list[dict[str, Any]]:
        """Return a page of vast.ai's list."""
        reply = await self("vast", "GET", "/api/v1/instances/", params=query)
        return reply.json["instances"]

    async def pay(self, **what: Any) -> Reply:
        """Do what a customer does."""
        return await self(what["service"], "POST", "/_pay", what)

    async def fault(self, **fault: Any) -> Reply:
        """Ask for a fault."""
        return await self(fault["service"], "POST", "/_fault", fault)
