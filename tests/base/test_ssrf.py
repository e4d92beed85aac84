"""A URL that a caller chose never leads to an address that is not public, however it is written."""

import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.errors import ApplianceError, Forbidden, Invalid
from appliance.base.http import HttpClient
from appliance.base.ssrf import CallTarget, TargetPolicy, read_target

PUBLIC = TargetPolicy.of(own_ports=(8080, 9091, 0))


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://example.com", "http://example.com/"),
        ("HTTPS://Example.COM:443/a b".replace(" ", "%20"), "https://example.com/a%20b"),
        ("http://example.com:80/?q=1#part", "http://example.com/?q=1"),
        ("https://example.com:65535/x?y=a%2Fb", "https://example.com:65535/x?y=a%2Fb"),
        ("http://8.8.8.8:1024/", "http://8.8.8.8:1024/"),
        ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
        ("http://bücher.example/ä", "http://xn--bcher-kva.example/%C3%A4"),
        ("http://a_b.example-host.com", "http://a_b.example-host.com/"),
        ("http://127.0.0.1.nip.example", "http://127.0.0.1.nip.example/"),  # its addresses are checked later
    ],
)
def test_usual_addresses_are_taken(url: str, sent: str) -> None:
    assert PUBLIC.check(url).url == sent


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "ftp://example.com",
        "file:///etc/passwd",
        "gopher://example.com",
        "http://",
        "http:///x",
        "http://exa mple.com",
        "http://example.com\\@127.0.0.1",
        "http://example.com\r\nHost: x",
        "http://example.com\t",
        "http://example.com:99999",
        "http://example.com:x",
        "http://[::1",
        "http://[8.8.8.8]",
        "http://" + "a" * 9000,
    ],
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(Invalid) as refusal:
        PUBLIC.check(url)
    assert refusal.value.code == "invalid_target"


@pytest.mark.parametrize(
    "host",
    [
        # not public
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.1.2.3", "240.0.0.1", "255.255.255.255",
        "[::]", "[::1]", "[fe80::1]", "[fe80::1%25eth0]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]",
        "[ff02::1]", "[2001:db8::1]", "[100::1]",
        # an IPv4 address inside
        "[::ffff:127.0.0.1]", "[::ffff:8.8.8.8]", "[::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b:1::1]",
        "[2002:7f00:1::]", "[2001:0:4136:e378:8000:63bf:3fff:fdd2]", "[::ffff:0:127.0.0.1]",
        # written otherwise
        "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "127.0.0.01",
        "127.0.0.1.", "127.0.0.0x1", "8.8.8.8.", "0x8.8.8.8", "010.8.8.8", "256.1.1.1", "1.1.1.1.1", "999",
        "１２７.0.0.1", "①②⑦.⓪.⓪.①", "127。0。0。1", "８.8.8.8",
        # no name
        "example.com.", "example..com", ".example.com", "-a.example", "exa%6dple.com", "example.com,b", "a$b.com",
        "localhost.", "%31%32%37.0.0.1", "user@example.com", "user:pw@example.com", "@example.com",
        "[::1]x",
    ],
)  # fmt: skip
def test_every_hidden_or_private_host_is_refused(host: str) -> None:
    with pytest.raises(Forbidden) as refusal:
        PUBLIC.check(f"http://{host}/")
    assert refusal.value.code == "target_refused"


@pytest.mark.parametrize("port", [0, 1, 21, 22, 25, 81, 444, 1023, 8080, 9091])
def test_ports_of_other_services_and_our_own_are_refused(port: int) -> None:
    with pytest.raises(Forbidden, match="Its port is not allowed"):
        PUBLIC.check(f"http://example.com:{port}/")


def test_patterns_narrow_the_hosts() -> None:
    policy = TargetPolicy.of(["*.Example.com", "8.8.8.8"])
    assert policy.check("https://api.example.com/x").host == "api.example.com"
    assert policy.check("http://8.8.8.8/").host == "8.8.8.8"
    for url in ("https://example.com", "https://api.example.com.evil.org", "http://8.8.4.4"):
        with pytest.raises(Forbidden, match="GPU_PROXY_ALLOW"):
            policy.check(url)


def test_networks_of_the_operator_are_allowed_too() -> None:
    policy = TargetPolicy.of([], ["10.1.0.0/16", "::1"])
    assert policy.check("http://10.1.2.3:9000/").port == 9000
    assert policy.check("http://[::1]:9000/").host == "::1"
    for host in ("10.2.0.1", "127.0.0.1", "[::ffff:10.1.2.3]"):
        with pytest.raises(Forbidden):
            policy.check(f"http://{host}:9000/")


@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_address_passes_that_is_not_public(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    is_allowed = PUBLIC.refusal_reason(str(address)) == ""
    assert is_allowed <= (address.is_global and not address.is_multicast)
    for written in (
        str(number),
        hex(number),
        f"0{number:o}",
        f"::ffff:{address}",
        f"2002:{number >> 16:x}:{number & 65535:x}::",
    ):
        host = f"[{written}]" if ":" in written else written
        with pytest.raises(ApplianceError):
            PUBLIC.check(f"http://{host}/")


@given(st.text(max_size=60))
def test_any_text_is_refused_or_read_the_same_again(text: str) -> None:
    try:
        target = PUBLIC.check("http://" + text)
    except (Invalid, Forbidden):
        return
    assert read_target(target.url) == target
    assert isinstance(target, CallTarget)


class ChangingResolver(AbstractResolver):
    """Answers with another address each time: first a public one, then one of this machine."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [
            ResolveResult(hostname=host, host=one, port=port, family=socket.AF_INET, proto=0, flags=0)
            for one in found
        ]

    async def close(self) -> None:
        pass


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Host"])

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def test_the_address_that_was_checked_is_the_one_called(port: int) -> None:
    policy = TargetPolicy.of([], ["127.0.0.1/32"])
    resolver = ChangingResolver(["127.0.0.1"], ["10.0.0.1"])
    async with HttpClient(refusal_reason=policy.refusal_reason, resolver=resolver) as client:
        response = await client.open(
            "GET",
            f"http://a.example:{port}/",
            headers=[],
            body=None,
            is_repeatable=False,
            connect_s=5,
            first_byte_s=5,
        )
        assert (await response.read()).decode() == f"a.example:{port}"
        response.close()
    assert resolver.asked == 1


@pytest.mark.parametrize("found", [["127.0.0.1"], ["93.184.215.14", "127.0.0.1"], ["::1"]])
async def test_a_name_with_one_private_address_is_refused(port: int, found: list[str]) -> None:
    resolver = ChangingResolver(found)
    async with HttpClient(refusal_reason=PUBLIC.refusal_reason, resolver=resolver) as client:
        with pytest.raises(Forbidden):
            await client.open(
                "GET",
                f"http://a.example:{port}/",
                headers=[],
                body=None,
                is_repeatable=False,
                connect_s=5,
                first_byte_s=5,
            )
