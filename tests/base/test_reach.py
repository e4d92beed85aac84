"""Which hosts may be contacted and which folders may be read."""

from pathlib import Path

import pytest

from appliance.base.errors import Forbidden, Unavailable
from appliance.base.reach import FolderPolicy, HostPolicy, check_url


@pytest.mark.parametrize(
    ("entries", "address", "is_allowed"),
    [
        (["*"], "93.184.216.34", True),
        (["*"], "2606:2800::1", True),
        (["*"], "10.0.0.1", False),
        (["*"], "::ffff:10.0.0.1", False),
        (["*", "10.0.0.0/8"], "10.0.0.1", True),
        (["*", "10.0.0.0/8"], "::ffff:10.0.0.1", True),
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["[fd00::]/8"], "fd00::1", False),
        (["fd00::/8"], "fd00::1", True),
        (["*"], "64:ff9b::7f00:1", False),
        (["*"], "64:ff9b::808:808", False),
        (["*", "64:ff9b::/96"], "64:ff9b::808:808", True),
        (["*"], "64:ff9b:1::a00:1", False),
        (["*"], "::127.0.0.1", False),
        (["*"], "::8.8.8.8", False),
        (["*"], "::ffff:0:7f00:1", False),
        (["*"], "::ffff:127.0.0.1", False),
        (["*"], "::ffff:8.8.8.8", True),
        (["*"], "fec0::1", False),
        (["*"], "feff::1", False),
        (["*"], "192.0.0.1", False),
        (["*"], "192.0.0.9", False),
        (["*"], "2002:7f00:1::", False),
        (["*"], "2002:808:808::1", False),
        (["*"], "224.0.0.1", False),
        (["*"], "239.255.255.250", False),
        (["*"], "ff02::1", False),
        (["*"], "::", False),
        (["*"], "::1", False),
        (["*"], "0.0.0.0", False),
        (["*"], "100.64.0.1", False),
        (["*"], "169.254.169.254", False),
        (["*"], "fe80::1%eth0", False),
        (["*"], "255.255.255.255", False),
    ],
)
def test_private_addresses_must_be_listed(entries: list[str], address: str, is_allowed: bool) -> None:
    assert (HostPolicy.listed(entries).refusal_reason(address) == "") is is_allowed


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.0.0.1", "10.0.0.1 is a private, loopback or link-local address"),
        ("name.test", "name.test is not an IP address"),
    ],
)
def test_refusal_says_why(address: str, reason: str) -> None:
    assert reason in HostPolicy.listed(["*"]).refusal_reason(address)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "127.0.1", "0x7f.1"])
@pytest.mark.parametrize("policy", [HostPolicy.listed(["*"]), HostPolicy.listed([], any_name=True)])
def test_an_address_in_an_unusual_form_is_refused_at_once(host: str, policy: HostPolicy) -> None:
    with pytest.raises(Forbidden, match=f"{host} is not a canonical address"):
        policy.check_host(host)
    policy.check_host("127.0.0.1.example")


@pytest.mark.parametrize("host", ["evil.test", "a.files.test", "10.0.0.1", ""])
def test_unlisted_host_is_refused_with_the_variable_to_set(host: str) -> None:
    policy = HostPolicy.listed(["files.test", "*.hub.test", "192.168.0.0/16"])
    with pytest.raises(Forbidden, match=r"are not allowed.*DOWNLOAD_ALLOWED_HOSTS") as caught:
        policy.check_host(host)
    assert caught.value.code == "host_not_allowed"
    for listed in ("files.test", "a.hub.test", "192.168.1.1", "FILES.TEST."):
        policy.check_host(listed)
    HostPolicy.listed([], any_name=True).check_host(host)


async def test_check_url_resolves_the_name() -> None:
    policy = HostPolicy.listed(["*"])
    with pytest.raises(Forbidden, match="Access to localhost is not allowed"):
        await check_url("http://localhost:1/x", reach=policy, what="x")
    with pytest.raises(Unavailable, match=r"^x: the name no-such-host\.invalid cannot be resolved"):
        await check_url("https://no-such-host.invalid", reach=policy, what="x")
    await check_url("https://no-such-host.invalid", reach=policy, what="x", is_proxied=True)
    await check_url("http://localhost", reach=HostPolicy.unrestricted(), what="x")


def test_only_listed_folders_may_be_read(tmp_path: Path) -> None:
    inside, outside = tmp_path / "models", tmp_path / "other"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    policy = FolderPolicy.listed([inside])
    policy.check(inside / "a.gguf", what="a.gguf")
    for path in (outside / "a", inside / "link" / "a", inside / ".." / "other"):
        with pytest.raises(
            Forbidden, match=r"^It is not in an allowed folder\..*DOWNLOAD_ALLOWED_DIRS"
        ) as caught:
            policy.check(path, what="It")
        assert caught.value.code == "folder_not_allowed"
    assert FolderPolicy(None).allows(outside)
    assert not FolderPolicy().allows(inside)
