"""The HTTP client inside Hugging Face's official client, with our reading of the environment's proxies.

The official client has one HTTP client for the whole process, used by all threads. The proxies are set for
each thread (`use_proxies`), and one is chosen for each request by its address. Nothing else is read from the
environment: ~/.netrc could add credentials that were not configured.
"""

import threading
from contextvars import ContextVar

import httpx2
from huggingface_hub import set_client_factory
from huggingface_hub.utils._http import hf_request_event_hook

from appliance.base.proxies import Proxies, Proxy

PROXIES: ContextVar[Proxies] = ContextVar("proxies", default=Proxies())  # noqa: B039 - frozen
_LOCK = threading.Lock()
_is_set = False


class ProxyTransport(httpx2.BaseTransport):
    """Sends each request directly or through the proxy for its address; connections to each are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transports: dict[Proxy | None, httpx2.HTTPTransport] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request."""
        return self._transport(PROXIES.get().find(str(request.url))).handle_request(request)

    def _transport(self, proxy: Proxy | None) -> httpx2.HTTPTransport:
        with self._lock:
            if proxy not in self._transports:
                auth = (proxy.user, proxy.password) if proxy is not None and proxy.user else None
                self._transports[proxy] = httpx2.HTTPTransport(
                    proxy=None if proxy is None else httpx2.Proxy(proxy.url, auth=auth)
                )
            return self._transports[proxy]

    def close(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            transport.close()


def use_proxies(proxies: Proxies) -> None:
    """Let the official client use these proxies, in this thread's context."""
    global _is_set
    PROXIES.set(proxies)
    with _LOCK:
        if not _is_set:
            set_client_factory(_client)
            _is_set = True


def _client() -> httpx2.Client:
    """Build what the official client would, without the environment."""
    return httpx2.Client(
        transport=ProxyTransport(),
        event_hooks={"request": [hf_request_event_hook]},
        follow_redirects=True,
        timeout=None,
        trust_env=False,
    )
