"""Which servers get a TLS context of their own."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from appliance.base.http import HttpClient, iter_body
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolLimits, Target, Timeouts, Unreachable
from appliance.engines.backends.tls import TlsContexts
from appliance.engines.specs import BackendSpec
from tests.fakes.raw_server import OK, RawServer, answering


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


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize(
    ("server_name", "is_fine"), [("gpu.example", True), ("other.example", False), ("", False)]
)
def test_certificate_must_have_the_name_that_is_given(
    tmp_path: Path, run: Callable[[Any], Any], server_name: str, is_fine: bool
) -> None:
    """By both clients: that of the hot path, and that of passthrough."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("gpu.example").configure_cert(serving)
    context = TlsContexts().context_for(spec(ca_file=str(tmp_path / "ca.pem"), server_name=server_name))

    async def ask(server: RawServer) -> list[bytes]:
        target, http = Target.parse(server.address, ssl_context=context), HttpClient()
        async with ConnectionPool(PoolLimits(Timeouts(connect_s=5))) as wire:
            found = [await (await wire.send(target, path=b"/x", body=b"{}")).read()]
        try:
            response = await http.open(
                "GET",
                server.address,
                headers=[],
                body=None,
                ssl_context=context,
                is_repeatable=True,
                connect_s=5,
                first_byte_s=5,
            )
            return [*found, b"".join([piece async for piece in iter_body(response, idle_s=5)])]
        finally:
            await http.close()

    async def main() -> None:
        async with RawServer(answering(OK), tls=serving) as server:
            if is_fine:
                assert await ask(server) == [b"hello"] * 2
            else:
                with pytest.raises(Unreachable, match="certificate"):
                    await ask(server)

    run(main())
