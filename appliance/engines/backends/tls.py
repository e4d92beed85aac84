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


def _make_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file or None)
    if tls.cert_file:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
