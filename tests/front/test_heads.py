"""HTTP heads, parsed and rendered byte for byte."""

import pytest

from appliance.front.pipeline.heads import BadHead, parse_request_head, parse_upgrade, render_response_head
from appliance.front.pipeline.response import Response

UPGRADE = b"GET /ws?a=%20b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nX-Two: 1\r\nx-two: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "headers", "may_stay"),
    [
        (
            b"POST /a HTTP/1.1\r\nHost: x\r\nX-A: 1\r\nx-a: 2\r\nContent-Length: 3\r\n\r\n",
            {"host": "x", "x-a": "1, 2", "content-length": "3"},
            True,
        ),
        (
            b"POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\nX-B: caf\xe9\r\n\r\n",
            {"connection": "close", "content-length": "3", "x-b": "caf\xe9"},
            False,
        ),
        (
            b"POST /a HTTP/1.1\r\nConnection: Close\r\nContent-Length: 0\r\n\r\n",
            {"connection": "Close", "content-length": "0"},
            False,
        ),
        (b"POST /a HTTP/1.0\r\n\r\n", {}, False),
    ],
)
def test_a_request_is_read(head: bytes, headers: dict[str, str], may_stay: bool) -> None:
    assert parse_request_head(head) == (headers, may_stay)


@pytest.mark.parametrize("head", [b"POST /a HTTP/1.1\r\nno colon\r\n\r\n", b"\x16\x03\x01\r\n\r\n"])
def test_an_invalid_head_is_refused(head: bytes) -> None:
    with pytest.raises(BadHead, match=r"\w"):
        parse_request_head(head)


def test_an_upgrade_request_is_parsed() -> None:
    found = parse_upgrade(UPGRADE)
    assert found is not None
    assert (found.target, found.path) == ("/ws?a=%20b", "/ws")
    assert found.fields == [
        ("Host", "x"),
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("X-Two", "1"),
        ("x-two", "2"),
    ]
    assert found.headers == {
        "host": "x",
        "connection": "keep-alive, Upgrade",
        "upgrade": "websocket",
        "x-two": "1, 2",
    }


@pytest.mark.parametrize(
    "head",
    [
        UPGRADE.replace(b"GET", b"PUT"),
        UPGRADE.replace(b"websocket", b"h2c"),
        UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive"),
        UPGRADE.replace(b"1.1", b"1.0"),
        UPGRADE.replace(b"Host: x", b"no colon"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["no-get", "h2c", "connection-does-not-say-so", "http-1.0", "unreadable", "none"],
)
def test_any_other_request_is_not_an_upgrade(head: bytes) -> None:
    assert parse_upgrade(head) is None


@pytest.mark.parametrize(
    ("response", "may_stay", "written"),
    [
        (
            Response(),
            True,
            b"HTTP/1.1 200 OK\r\nDate: d\r\nContent-Length: 0\r\nContent-Type: application/json\r\nx-request-id: r\r\n\r\n",
        ),
        (
            Response(299, content_type="text/plain", headers=[("X-A", "caf\xe9 \u20ac")]),
            False,
            b"HTTP/1.1 299 Status\r\nDate: d\r\nContent-Length: 0\r\nContent-Type: text/plain\r\nX-A: caf\xe9 ?\r\nx-request-id: r\r\nConnection: close\r\n\r\n",
        ),
    ],
)
def test_a_response_head_is_rendered(response: Response, may_stay: bool, written: bytes) -> None:
    assert (
        render_response_head(
            response,
            "Content-Length: 0\r\n",
            "x-request-id: r\r\n",
            date_line="Date: d\r\n",
            may_stay=may_stay,
        )
        == written
    )
