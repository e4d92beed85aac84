"""What a download may do, and which credentials go where."""

from pathlib import Path

import pytest

from appliance.base.errors import Forbidden, Invalid
from appliance.base.reach import HostPolicy
from appliance.downloads.contract import DownloadRequest
from appliance.downloads.rules import DownloadRules
from appliance.downloads.sources.table import split_source
from tests.downloads.engines import settings

ENV = {
    "hf_auth_token": "hf_of_the_operator",
    "access_key": "AKIAOPERATOR",
    "secret_key": "secretoperator",
    "ms_token": "ms_of_the_operator",
    "endpoint": "https://store.example.com",
}


def rules(*, is_trusted: bool = False, **values: object) -> DownloadRules:
    return DownloadRules(settings(**values), None, is_trusted)


def config(
    source: str, given: dict[str, str], *, is_trusted: bool = False, **values: object
) -> dict[str, str]:
    return rules(is_trusted=is_trusted, **values).choose_config(
        DownloadRequest(source, Path("/x"), config=given), split_source(source)[0]
    )


def test_a_requests_config_wins_over_the_settings() -> None:
    chosen = config(
        "ns/repo",
        {"hf_token": "hf_of_the_caller", "hf_revision": "v2"},
        hf_revision="v1",
        ms_revision="v3",
        **ENV,
    )
    assert (chosen["hf_token"], chosen["hf_revision"], chosen["ms_revision"]) == (
        "hf_of_the_caller",
        "v2",
        "v3",
    )
    assert config("ns/repo", {}, **ENV)["hf_token"] == "hf_of_the_operator"
    assert config("ns/repo", {})["hf_endpoint"] == "https://huggingface.co"


@pytest.mark.parametrize(
    ("source", "given", "kept_back"),
    [
        ("ns/repo", {"hf_endpoint": "https://evil.example"}, {"hf_token"}),
        ("s3://b/p", {"endpoint": "https://evil.example"}, {"access_key", "secret_key"}),
        ("ms://ns/repo", {"ms_endpoint": "https://evil.example"}, {"ms_token"}),
        ("s3://b/p", {"access_key": "AKIACALLER"}, {"secret_key"}),
        ("ns/repo", {"hf_endpoint": "https://huggingface.co"}, set()),
    ],
)
def test_own_credentials_go_to_own_endpoints_only(
    source: str, given: dict[str, str], kept_back: set[str]
) -> None:
    chosen = config(source, given, **ENV)
    assert {"hf_token", "access_key", "secret_key", "ms_token"} - set(chosen) == kept_back
    if "access_key" not in given:
        assert set(config(source, given, is_trusted=True, **ENV)) >= {
            "hf_token",
            "access_key",
            "secret_key",
            "ms_token",
        }


def test_invalid_config_is_refused() -> None:
    with pytest.raises(Invalid, match="Did you mean hf_token"):
        config("ns/repo", {"hf_tokn": "x"})
    for address in (
        "ftp://x",
        "huggingface.co",
        "https://u:p@x.example",
        "https://x.example/?a=b",
        "https://x:99999999",
    ):
        with pytest.raises(Invalid, match="`hf_endpoint` must be") as caught:
            config("ns/repo", {"hf_endpoint": address})
        assert "u:p" not in caught.value.message


def test_only_the_operators_endpoint_may_be_private() -> None:
    here = rules(hf_endpoint="http://10.0.0.5:8080")
    assert here.reach_of("hf", {"hf_endpoint": "http://10.0.0.5:8080"}).refusal_reason("10.0.0.5") == ""
    assert "private" in here.reach_of("hf", {"hf_endpoint": "http://10.0.0.6"}).refusal_reason("10.0.0.6")
    listed = rules(download_allowed_hosts="10.0.0.0/24")
    assert listed.reach_of("hf", {"hf_endpoint": "http://10.0.0.6"}).refusal_reason("10.0.0.6") == ""
    assert rules(is_trusted=True).reach_of("https", {}).is_open
    assert not rules(is_trusted=True, download_allowed_hosts="a.example").reach_of("https", {}).is_open


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "10.1.2.3",
        "192.168.1.1",
        "100.64.0.1",
        "0.0.0.0",
        "::",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "2002:7f00:1::",
        "224.0.0.1",
        "fd00::1",
        "nonsense",
    ],
)
def test_addresses_that_are_not_public_are_refused_unless_listed(address: str) -> None:
    assert HostPolicy.listed(["*"]).refusal_reason(address)
    assert HostPolicy.unrestricted().refusal_reason(address) == ""


def test_listed_names_are_patterns() -> None:
    reach = HostPolicy.listed(["files.example.com", "*.Example.org", "10.0.0.0/8"])
    for host in ("files.example.com", "a.b.example.org", "FILES.example.com.", "10.9.9.9"):
        reach.check_host(host)
    for host in ("example.com", "xfiles.example.com", "example.org", "11.0.0.1", ""):
        with pytest.raises(Forbidden):
            reach.check_host(host)
