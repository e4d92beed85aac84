"""Tickets: once, for one address, for some seconds, and never more than the key opens."""

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Exhausted, Forbidden, Kind, Unauthenticated
from appliance.front.pipeline.access_tickets import (
    MAX_PER_KEY,
    MAX_TICKETS,
    PARAMETER,
    TTL_S,
    AccessTicket,
    AccessTickets,
    split_ticket,
)
from tests.front.requests import make_request

PATH, KEY = "/v1/models/status/stream", "client-key-1"


def test_a_ticket_stands_for_its_key_once() -> None:
    tickets = AccessTickets(clock=FakeClock())
    text = tickets.issue(PATH, KEY)
    assert (len(text) >= 40, KEY in text, len(tickets)) == (True, False, 1)
    assert tickets.redeem(text, PATH) == KEY
    with pytest.raises(Unauthenticated, match="it was used, or has expired") as caught:
        tickets.redeem(text, PATH)
    assert (caught.value.code, len(tickets)) == ("invalid_ticket", 0)


def test_no_two_tickets_are_alike() -> None:
    tickets = AccessTickets(clock=FakeClock())
    assert len({tickets.issue(PATH, KEY) for _ in range(50)}) == 50


@pytest.mark.parametrize("text", ["", "x", "\udcff", "a" * 10_000])
def test_an_unknown_ticket_is_refused(text: str) -> None:
    tickets = AccessTickets(clock=FakeClock())
    tickets.issue(PATH, KEY)
    with pytest.raises(Unauthenticated):
        tickets.redeem(text, PATH)
    assert len(tickets) == 1


@pytest.mark.parametrize(
    "path", ["/metrics/stream", "/v1/models/status", f"{PATH}/", "/v1/models/status%2Fstream", ""]
)
def test_a_ticket_opens_no_other_address_and_is_gone_then(path: str) -> None:
    tickets = AccessTickets(clock=FakeClock())
    text = tickets.issue(PATH, KEY)
    with pytest.raises(Forbidden, match="for another address"):
        tickets.redeem(text, path)
    with pytest.raises(Unauthenticated):
        tickets.redeem(text, PATH)


@pytest.mark.parametrize(
    ("after_s", "is_good"), [(0, True), (TTL_S - 0.1, True), (TTL_S, False), (3600, False)]
)
def test_a_ticket_lasts_some_seconds(after_s: float, is_good: bool) -> None:
    clock = FakeClock()
    tickets = AccessTickets(clock=clock)
    text = tickets.issue(PATH, KEY)
    clock.advance(after_s)
    try:
        assert tickets.redeem(text, PATH) == KEY
        assert is_good
    except Unauthenticated:
        assert not is_good
    assert 5 <= TTL_S <= 60


def test_unused_tickets_are_bounded_and_expire() -> None:
    clock = FakeClock()
    tickets = AccessTickets(clock=clock)
    for _ in range(MAX_PER_KEY):
        tickets.issue(PATH, KEY)
    with pytest.raises(
        Exhausted, match="too many unused tickets: at most 64 of one key, 256 in all"
    ) as caught:
        tickets.issue(PATH, KEY)
    assert (caught.value.code, caught.value.retry_after_s) == ("too_many_tickets", TTL_S)
    for number in range(MAX_TICKETS - MAX_PER_KEY):  # another key is not kept out
        tickets.issue(PATH, f"other-{number}")
    with pytest.raises(Exhausted):
        tickets.issue(PATH, "one more key")
    assert len(tickets) == MAX_TICKETS
    clock.advance(TTL_S)
    tickets.issue(PATH, KEY)
    assert len(tickets) == 1


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(AccessTicket(PATH, KEY, 0.0))


@pytest.mark.parametrize("key", [KEY, ""])
def test_a_request_with_a_ticket_is_as_if_it_had_the_key(key: str) -> None:
    tickets = AccessTickets(clock=FakeClock())
    request = make_request(PATH, method="GET", headers={"host": "x"})
    tickets.admit(request, tickets.issue(PATH, key), PATH)
    assert request.headers == {"host": "x"} | ({"authorization": f"Bearer {key}"} if key else {})
    with pytest.raises(ApplianceError) as caught:
        tickets.admit(request, "unknown", PATH)
    assert caught.value.kind is Kind.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("target", "ticket", "rest"),
    [
        ("/ws", "", "/ws"),
        ("/ws?a=%20+b&&c", "", "/ws?a=%20+b&&c"),
        ("/ws?ticket=theirs", "", "/ws?ticket=theirs"),
        (f"/ws?{PARAMETER}=t", "t", "/ws"),
        (f"/ws?a=%2F&{PARAMETER}=t-_9&&b=1", "t-_9", "/ws?a=%2F&&b=1"),
        (f"/ws?{PARAMETER}=one&{PARAMETER}=two", "one", "/ws"),
        (f"/ws?{PARAMETER}", "", "/ws"),
        (f"/ws?{PARAMETER}=", "", "/ws"),
        (f"/ws?appliance%5Fticket=t&{PARAMETER.upper()}=u", "t", f"/ws?{PARAMETER.upper()}=u"),
        (f"?{PARAMETER}=t&x=1", "t", "?x=1"),
    ],
)
def test_a_ticket_is_taken_out_of_the_query(target: str, ticket: str, rest: str) -> None:
    assert split_ticket(target) == (ticket, rest)
