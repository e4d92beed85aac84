"""Which servers get a TLS context of their own."""

import ssl
from pathlib import Path

import pytest
import trustme

from appliance.engines.backends.tls import TlsContexts
from appliance.engines.specs import BackendSpec


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def spec(url: str = "https://x", **tls: object) -> BackendSpec:
    return BackendSpec.model_validate({"url": url, "tls": tls})


@pytest.mark.parametrize("plain", [spec(), spec("http://x", verify=False)])
def test_plain_servers_use_the_pools_own(plain: BackendSpec) -> None:
    assert TlsContexts().context_for(plain) is None


def test_backends_with_the_same_settings_share_a_context(ca_file: str) -> None:
    contexts = TlsContexts()
    one = contexts.context_for(spec("https://a", ca_file=ca_file))
    assert one is not None
    assert one is contexts.context_for(spec("https://b", ca_file=ca_file))
    assert one is not contexts.context_for(spec("https://b", verify=False))
    assert (one.verify_mode, one.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_verification_can_be_switched_off() -> None:
    context = TlsContexts().context_for(spec(verify=False))
    assert context is not None
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
