"""The TLS contexts of servers with TLS settings of their own."""

import ssl

from appliance.base.logs import get_logger
from appliance.engines.specs import BackendSpec, Tls

log = get_logger("fleet")
PLAIN = Tls()


class TlsContexts:
    """Makes contexts; backends with the same settings share one."""

    def __init__(self) -> None:
        self._contexts: dict[Tls, ssl.SSLContext] = {}

    def context_for(self, spec: BackendSpec) -> ssl.SSLContext | None:
        """Return the context of a backend; None = the connection pool's own.

        Raises:
            OSError: A file cannot be read, or is not valid PEM.
        """
        tls = spec.tls
        if tls == PLAIN or not spec.url.startswith("https:"):
            return None
        context = self._contexts.get(tls)
        if context is None:
            context = self._contexts[tls] = _make_context(tls)
            if not tls.verify:
                log.warning("tls_not_verified", backend=spec.name)
        return context


class _NamedContext(ssl.SSLContext):
    """A context that asks for a certificate of one name, whatever the address's host is.

    All clients of a server (connection pool, passthrough, tunnels) take a context, and a loop calls
    `wrap_bio`; a name beside it would have to go through each of them.
    """

    server_name = ""

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """Begin a connection with the context's own name in place of `server_hostname`."""
        return super().wrap_bio(incoming, outgoing, server_side, self.server_name, session)


def _make_context(tls: Tls) -> ssl.SSLContext:
    if tls.server_name:
        context: ssl.SSLContext = _NamedContext(
            ssl.PROTOCOL_TLS_CLIENT
        )  # which verifies certificate and name
        context.server_name = tls.server_name  # type: ignore[attr-defined]
        if tls.ca_file:
            context.load_verify_locations(tls.ca_file)
        else:
            context.load_default_certs()
    else:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
    if tls.cert_file:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
