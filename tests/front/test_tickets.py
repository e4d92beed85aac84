"""POST /v1/tickets: for which addresses there are tickets, and for whom."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import Exhausted, Forbidden, Invalid, Unauthenticated
from appliance.front.pipeline.access import Access, Keys
from appliance.front.pipeline.access_tickets import MAX_PER_KEY, TTL_S, AccessTickets
from appliance.front.settings import FrontSettings
from appliance.front.tickets import TicketHandlers
from tests.front.requests import json_of, make_request

CLIENT, OPERATOR = "client-key-1", "operator-key-1"
ADDRESSES = {"/feed": Access.CLIENT, "/jobs/1/stream": Access.OPERATOR}


class Api:
    def __init__(self, **settings: Any) -> None:
        keys = Keys(FrontSettings(_env_file=None, **settings))
        self.tickets = AccessTickets(clock=FakeClock())
        self.handlers = TicketHandlers(self.tickets, find_access=ADDRESSES.get, check=keys.check)

    async def ask(self, body: Any, key: str = "") -> Any:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return await self.handlers.create(make_request("/v1/tickets", body, headers=headers))


BOTH = {"appliance_api_keys": CLIENT, "operator_api_keys": OPERATOR}


@pytest.mark.parametrize(
    ("path", "settings", "key", "refusal"),
    [
        ("/feed", BOTH, CLIENT, None),
        ("/feed", BOTH, OPERATOR, None),
        ("/jobs/1/stream", BOTH, OPERATOR, None),
        ("/jobs/1/stream", BOTH, CLIENT, Forbidden),  # no more than the key opens
        ("/jobs/1/stream", BOTH, "", Unauthenticated),
        ("/feed", BOTH, "unknown-key", Unauthenticated),
        ("/feed", {}, "", None),  # without keys pages need no ticket, and may have one
        ("/jobs/1/stream", {}, "", None),  # from this machine
        ("/feed", {}, "any-key-at-all", None),
        ("/feed", {"operator_api_keys": OPERATOR}, "any-key-at-all", None),
        ("/jobs/1/stream", {"operator_api_keys": OPERATOR}, "any-key-at-all", Unauthenticated),
        ("/jobs/1/stream", {"operator_api_keys": OPERATOR}, OPERATOR, None),
    ],
)
async def test_a_ticket_opens_what_its_key_opens(
    path: str, settings: dict[str, str], key: str, refusal: type[Exception] | None
) -> None:
    api = Api(**settings)
    if refusal is not None:
        with pytest.raises(refusal):
            await api.ask({"path": path}, key)
        assert len(api.tickets) == 0
        return
    response = await api.ask({"path": path}, key)
    body = json_of(response)
    ticket = body.pop("ticket")
    assert body == {
        "parameter": "appliance_ticket",
        "path": path,
        "url": f"{path}?appliance_ticket={ticket}",
        "expires_in_s": TTL_S,
    }
    assert ("Cache-Control", "no-store") in response.headers
    # A key that the address does not ask for is not kept.
    assert api.tickets.redeem(ticket, path) == (key if key in {CLIENT, OPERATOR} else "")


@pytest.mark.parametrize(
    ("body", "code", "text"),
    [
        ({}, "missing_required_parameter", "`path` is required"),
        ({"path": ""}, "missing_required_parameter", "`path` is required"),
        ({"path": None}, "missing_required_parameter", "`path` is required"),
        ({"path": 3}, "invalid_type", "`path` must be a string"),
        ({"path": "/v1/models"}, "invalid_value", "'/v1/models' takes no ticket. Tickets are for"),
        ({"path": "/feed?x=1"}, "invalid_value", "takes no ticket"),
        ({"path": "http://here/feed"}, "invalid_value", "takes no ticket"),
        ({"path": "feed"}, "invalid_value", "takes no ticket"),
        ({"path": "/feed\r\nx"}, "invalid_value", "takes no ticket"),
        ({"path": "/f\u00e9"}, "invalid_value", "takes no ticket"),
        ({"path": "/" + "x" * 3000}, "invalid_value", "takes no ticket"),
        ([], "invalid_json", "must be a JSON object"),
        (b"", "missing_body", "has no body"),
    ],
)
async def test_other_addresses_take_no_ticket(body: Any, code: str, text: str) -> None:
    api = Api()
    with pytest.raises(Invalid) as caught:
        await api.ask(body)
    assert (caught.value.code, text in caught.value.message, len(api.tickets)) == (code, True, 0)
    assert len(caught.value.message) < 500


async def test_one_key_gets_only_so_many() -> None:
    api = Api(**BOTH)
    for _ in range(MAX_PER_KEY):
        await api.ask({"path": "/feed"}, CLIENT)
    with pytest.raises(Exhausted):
        await api.ask({"path": "/feed"}, CLIENT)
    await api.ask({"path": "/feed"}, OPERATOR)


async def test_invented_keys_take_no_places_of_others() -> None:
    api = Api(operator_api_keys=OPERATOR)
    for number in range(MAX_PER_KEY):
        await api.ask({"path": "/feed"}, f"invented-{number}")
    with pytest.raises(Exhausted):
        await api.ask({"path": "/feed"}, "invented")
    await api.ask({"path": "/jobs/1/stream"}, OPERATOR)
