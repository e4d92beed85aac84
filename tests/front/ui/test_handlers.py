"""The addresses of the web UI: files, who is signed in, and what is refused."""

from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import ApplianceError, Exhausted, Invalid, NotFound, Unauthenticated
from appliance.front.pipeline.access import Access, Keys
from appliance.front.pipeline.request import Request
from appliance.front.settings import FrontSettings
from appliance.front.ui.feed import Feed
from appliance.front.ui.files import UiFiles
from appliance.front.ui.handlers import TRIES, TRIES_S, UiHandlers
from appliance.front.ui.history import History, LoadTotals
from appliance.front.ui.sessions import UiTokens
from tests.front.requests import json_of, make_request

CLIENT, OPERATOR = "client-key-1", "operator-key-1"


def handlers(clock: FakeClock, *, has_accounts: bool = False, **keys: str) -> UiHandlers:
    tokens = UiTokens(clock=clock)
    known = Keys(FrontSettings(**keys), tokens)

    async def look_up(access: Access, headers: dict[str, str], peer: str) -> None:
        known.check(access, headers, peer)

    return UiHandlers(
        files=UiFiles(),
        tokens=tokens,
        feed=Feed({}, {}, clock=clock),
        history=History(LoadTotals, clock=clock),
        look_up=look_up,
        knows_key=known.knows,
        parts=lambda: {"models": False, "accounts": has_accounts, "demo": True, "hosted": False},
        version="1.2.3",
        now_s=clock.monotonic_s,
    )


def with_keys(clock: FakeClock, **more: Any) -> UiHandlers:
    return handlers(clock, appliance_api_keys=CLIENT, operator_api_keys=OPERATOR, **more)


def asking(key: str = "", peer: str = "127.0.0.1", **more: Any) -> Request:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    request = make_request(headers={"host": "127.0.0.1:14000", **headers}, **more)
    request.peer = peer
    return request


@pytest.mark.parametrize(
    ("keys", "key", "peer", "role", "needs"),
    [
        ({}, "", "127.0.0.1", "operator", "nothing"),
        ({}, "", "192.0.2.7", "client", "operator_key"),
        ({"appliance_api_keys": CLIENT, "operator_api_keys": OPERATOR}, "", "127.0.0.1", "none", "key"),
        ({"appliance_api_keys": CLIENT, "operator_api_keys": OPERATOR}, CLIENT, "192.0.2.7", "client", "key"),
        (
            {"appliance_api_keys": CLIENT, "operator_api_keys": OPERATOR},
            OPERATOR,
            "192.0.2.7",
            "operator",
            "nothing",
        ),
    ],
)
async def test_me_says_what_the_caller_may_do(
    keys: dict[str, str], key: str, peer: str, role: str, needs: str
) -> None:
    shown = json_of(await handlers(FakeClock(), **keys).me(asking(key, peer)))
    assert (shown["role"], shown["needs"]) == (role, needs)
    assert ("version" in shown) == (role != "none"), "strangers are not told"


async def test_me_asks_for_a_login_where_there_are_accounts() -> None:
    shown = json_of(await with_keys(FakeClock(), has_accounts=True).me(asking()))
    assert shown == {"role": "none", "needs": "login", "accounts": True}


async def test_a_key_is_exchanged_for_a_token_of_its_role() -> None:
    group = with_keys(FakeClock())
    for key, role in ((CLIENT, "client"), (OPERATOR, "operator")):
        given = json_of(await group.session(asking(peer="192.0.2.7", body={"key": f" {key} "})))
        assert given["role"] == role
        assert json_of(await group.me(asking(given["token"], "192.0.2.7")))["role"] == role


async def test_a_token_can_be_ended() -> None:
    group = with_keys(FakeClock())
    token = json_of(await group.session(asking(body={"key": OPERATOR})))["token"]
    await group.session(asking(token, method="DELETE"))
    assert json_of(await group.me(asking(token)))["role"] == "none"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, Invalid),
        ({"key": ""}, Invalid),
        ({"key": 5}, Invalid),
        ({"key": "x" * 5000}, Invalid),
        (b"no json", Invalid),
        ({"key": "wrong-key"}, Unauthenticated),
    ],
)
async def test_what_is_no_key_is_refused(body: Any, kind: type[ApplianceError]) -> None:
    with pytest.raises(kind):
        await with_keys(FakeClock()).session(asking(body=body))


async def test_a_token_is_not_exchanged_for_another_one() -> None:
    group = with_keys(FakeClock())
    token = json_of(await group.session(asking(body={"key": CLIENT})))["token"]
    with pytest.raises(Unauthenticated):
        await group.session(asking(body={"key": token}))


async def test_with_accounts_a_key_signs_no_browser_in() -> None:
    with pytest.raises(Invalid, match="e-mail and password"):
        await with_keys(FakeClock(), has_accounts=True).session(asking(body={"key": OPERATOR}))


async def test_many_wrong_keys_from_one_address_have_to_wait() -> None:
    clock = FakeClock()
    group = with_keys(clock)
    for _ in range(TRIES):
        with pytest.raises(Unauthenticated):
            await group.session(asking(peer="192.0.2.7", body={"key": "wrong-key"}))
    with pytest.raises(Exhausted) as refused:
        await group.session(asking(peer="192.0.2.7", body={"key": OPERATOR}))
    assert refused.value.retry_after_s == TRIES_S
    assert json_of(await group.session(asking(peer="192.0.2.8", body={"key": OPERATOR})))["token"]
    clock.advance(TRIES_S)
    assert json_of(await group.session(asking(peer="192.0.2.7", body={"key": OPERATOR})))["token"]


async def test_files_are_compressed_and_asked_for_once() -> None:
    group = handlers(FakeClock())
    plain = await group.file(asking(file=""))
    packed = await group.file(make_request(headers={"accept-encoding": "gzip, br"}, file=""))
    assert len(packed.body) < len(plain.body)
    assert dict(packed.headers)["Content-Encoding"] == "gzip"
    again = await group.file(make_request(headers={"if-none-match": dict(plain.headers)["ETag"]}, file=""))
    assert (again.status, again.body) == (304, b"")
    assert "trusted-types 'none'" in dict(plain.headers)["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["nothing.js", "../handlers.py", "pages", "%2e%2e/x", "x" * 5000])
async def test_a_file_that_is_not_there_is_404(path: str) -> None:
    with pytest.raises(NotFound):
        await handlers(FakeClock()).file(make_request(file=path))
