"""Which proxy an address is asked through: the variables of the environment, and NO_PROXY's entries."""

import pytest

from appliance.base.errors import UpstreamFailed
from appliance.base.proxies import Proxies

BOTH = {"HTTP_PROXY": "http://plain.test:1", "HTTPS_PROXY": "http://secure.test:2"}


def chosen(url: str, **environ: str) -> str:
    proxy = Proxies.from_environ(environ).find(url)
    return f"{proxy.variable} {proxy.url}" if proxy is not None else ""


@pytest.mark.parametrize(
    ("environ", "url", "wanted"),
    [
        (BOTH, "http://host.test/x", "HTTP_PROXY http://plain.test:1"),
        (BOTH, "https://host.test/x", "HTTPS_PROXY http://secure.test:2"),
        ({"https_proxy": "p.test:8"}, "https://host.test", "https_proxy http://p.test:8"),
        (
            {"https_proxy": "http://small.test:1", "HTTPS_PROXY": "http://large.test:1"},
            "https://host.test",
            "https_proxy http://small.test:1",
        ),
        (
            {"https_proxy": " ", "HTTPS_PROXY": "http://large.test"},
            "https://host.test",
            "HTTPS_PROXY http://large.test:80",
        ),
        ({"ALL_PROXY": "https://all.test"}, "http://host.test", "ALL_PROXY https://all.test:443"),
        (
            {"all_proxy": "http://all.test:1", "HTTP_PROXY": "http://plain.test:1"},
            "https://host.test",
            "all_proxy http://all.test:1",
        ),
        (
            {"all_proxy": "http://all.test:1", "HTTP_PROXY": "http://plain.test:1"},
            "http://host.test",
            "HTTP_PROXY http://plain.test:1",
        ),
        (
            {"HTTP_PROXY": "http://[2001:db8::1]:3128"},
            "http://host.test",
            "HTTP_PROXY http://[2001:db8::1]:3128",
        ),
        ({"HTTP_PROXY": "http://plain.test:1"}, "https://host.test", ""),
        ({}, "https://host.test", ""),
    ],
)
def test_proxy_variable_is_chosen_by_scheme_and_case(environ: dict[str, str], url: str, wanted: str) -> None:
    assert chosen(url, **environ) == wanted


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:9000/x",
        "http://127.0.0.1/",
        "https://127.8.9.1",
        "http://[::1]:80",
        "http://a.localhost",
    ],
)
def test_this_machine_is_never_contacted_by_proxy(url: str) -> None:
    assert chosen(url, **BOTH) == ""


@pytest.mark.parametrize(
    ("entry", "direct", "proxied"),
    [
        ("*", ["https://host.test", "http://10.0.0.1"], []),
        (
            "host.test",
            ["https://host.test", "https://HOST.test:8443/x", "https://a.b.host.test", "https://host.test."],
            ["https://ahost.test"],
        ),
        (".host.test", ["https://a.host.test", "https://host.test"], ["https://host.test.evil"]),
        ("*.Host.Test", ["https://a.host.test"], ["https://ahost.test"]),
        ("host.test:8443", ["https://host.test:8443"], ["https://host.test", "https://host.test:443"]),
        ("host.test:443", ["https://host.test"], ["https://host.test:8443"]),
        ("10.1.2.3", ["http://10.1.2.3:9000"], ["http://10.1.2.4", "http://x.10.1.2.3"]),
        ("10.1.0.0/16", ["http://10.1.2.3", "https://10.1.255.255"], ["http://10.2.0.1", "http://host.test"]),
        ("2001:db8::/32", ["http://[2001:db8::7]:80"], ["http://[2001:db9::7]"]),
        ("[2001:db8::7]:80", ["http://[2001:db8::7]"], ["http://[2001:db8::7]:81"]),
        ("a.test, host.test  b.test,,", ["https://host.test", "https://b.test"], ["https://c.test"]),
        (" , ", [], ["https://host.test"]),
        (".", [], ["https://host.test"]),
        ("10.1.0.0/99", [], ["http://10.1.0.0"]),
    ],
)
def test_no_proxy_entries(entry: str, direct: list[str], proxied: list[str]) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert [url for url in [*direct, *proxied] if not chosen(url, **BOTH, **{name: entry})] == direct


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("socks5://me:topsecret@p.test:1080", "names a socks5:// proxy"),
        ("http://", "is not the URL of a proxy"),
        ("http://me:topsecret@p.test:99999", "is not the URL of a proxy"),
        ("http://me:topsecret@p.test/path", "is not the URL of a proxy"),
        ("http://[me:topsecret", "is not the URL of a proxy"),
        ("a b", "is not the URL of a proxy"),
    ],
)
def test_unusable_proxy_is_an_error_only_when_needed(value: str, said: str) -> None:
    proxies = Proxies.from_environ({"HTTPS_PROXY": value, "NO_PROXY": "inside.test"})
    assert proxies.find("https://inside.test") is proxies.find("http://host.test") is None
    with pytest.raises(UpstreamFailed, match=f"^HTTPS_PROXY {said}") as caught:
        proxies.find("https://host.test")
    assert caught.value.code == "unusable_proxy"
    assert "topsecret" not in caught.value.message + repr(proxies)


def test_credentials_are_parsed_and_never_shown() -> None:
    proxies = Proxies.from_environ({"HTTPS_PROXY": "http://me%40corp:pass%3Aword%2F@p.test:3128"})
    proxy = proxies.find("https://host.test")
    assert proxy is not None
    assert (proxy.user, proxy.password) == ("me@corp", "pass:word/")
    assert proxy.url_with_credentials == "http://me%40corp:pass%3Aword%2F@p.test:3128"
    assert str(proxy) == "the proxy of HTTPS_PROXY (http://p.test:3128)"
    assert "pass" not in repr(proxy) + repr(proxies)
    assert {"me%40corp:pass%3Aword%2F", "pass%3Aword%2F", "pass:word/"} <= set(proxies.secrets)
    assert Proxies.from_environ({"HTTP_PROXY": "me:word@p.test:1"}).secrets == ["me:word", "word", "word"]


@pytest.mark.parametrize(
    ("status", "may_pass"), [(407, False), (403, False), (405, False), (429, True), (502, True), (503, True)]
)
def test_temporary_refusals_are_retryable(status: int, may_pass: bool) -> None:
    proxy = Proxies.from_environ({"HTTPS_PROXY": "http://p.test:1"}).find("https://host.test")
    assert proxy is not None
    error = proxy.error_for(status, "host.test")
    assert (error.retryable, error.code) == (may_pass, "proxy_refused")
    assert "HTTPS_PROXY (http://p.test:1)" in error.message or "HTTPS_PROXY to http://user" in error.message
