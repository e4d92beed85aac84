"""The HTTP client inside Hugging Face's official client, with our reading of the environment's proxies instead of its own.

The official client has one HTTP client for the whole process, used by all threads; which proxies hold is said per thread (`use`), and chosen
for each request by its address. It reads nothing else from the environment, neither; its ~/.netrc would send passwords behind our back.
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


class Routed(httpx2.BaseTransport):
    """Sends each request directly or through the proxy for its address; connections to each are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ways: dict[Proxy | None, httpx2.HTTPTransport] = {}

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._way(PROXIES.get().find(str(request.url))).handle_request(request)

    def _way(self, proxy: Proxy | None) -> httpx2.HTTPTransport:
        with self._lock:
            if proxy not in self._ways:
                auth = (proxy.user, proxy.password) if proxy is not None and proxy.user else None
                self._ways[proxy] = httpx2.HTTPTransport(
                    proxy=None if proxy is None else httpx2.Proxy(proxy.url, auth=auth)
                )
            return self._ways[proxy]

    def close(self) -> None:
        for way in self._ways.values():
            way.close()


def use_proxies(proxies: Proxies) -> None:
    """Let the official client ask through these, in this thread's context."""
    global _is_set
    PROXIES.set(proxies)
    with _LOCK:
        if not _is_set:
            set_client_factory(_client)
            _is_set = True


def _client() -> httpx2.Client:
    """Build what the official client would, without the environment."""
    return httpx2.Client(
        transport=Routed(),
        event_hooks={"request": [hf_request_event_hook]},
        follow_redirects=True,
        timeout=None,
        trust_env=False,
    )
