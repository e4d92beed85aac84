"""Every address of the HTTP door in one table, with who may call it and in which dialect its errors are said."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.front.access import Access
from appliance.front.balance import BASE, BalanceDoor
from appliance.front.call import Answer, Call
from appliance.front.ollama import ROUTES as OLLAMA_ROUTES
from appliance.front.ollama import OllamaDoor
from appliance.front.openai import OpenAIDoor
from appliance.front.responses import ROUTES as RESPONSES_ROUTES
from appliance.front.responses import ResponsesDoor
from appliance.front.system import SystemDoor

Handler = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Route:
    """One address.

    methods  in upper case; path: `{name}` one piece, `{name:.+}` any rest; dialect: openai | ollama
    is_hot   served straight from the socket where the request allows it (see lane.py)
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    dialect: str = "openai"
    access: Access = Access.CLIENT
    is_hot: bool = False
    is_open_while_draining: bool = False


def all_routes(openai: OpenAIDoor, responses: ResponsesDoor, ollama: OllamaDoor, system: SystemDoor,
               balance: BalanceDoor) -> list[Route]:
    """Give the table."""
    hot_ollama = {"/api/chat", "/api/generate"}
    return [
        Route(("GET", "HEAD"), "/healthz", system.healthz, access=Access.PUBLIC, is_open_while_draining=True),
        Route(("GET", "HEAD"), "/health", balance.health, is_open_while_draining=True),
        Route(("GET",), f"{BASE}/strategy", balance.strategy),
        Route(("PUT",), f"{BASE}/strategy", balance.put_strategy, access=Access.OPERATOR),
        Route(("GET",), f"{BASE}/loads", balance.loads),
        Route(("GET",), f"{BASE}/load", balance.load),
        Route(("GET",), "/metrics", system.metrics, is_open_while_draining=True),
        Route(("GET",), "/receipts", system.receipts, access=Access.OPERATOR, is_open_while_draining=True),
        Route(("GET",), "/receipts/{id}", system.receipt, access=Access.OPERATOR, is_open_while_draining=True),
        Route(("GET",), "/v1/models", openai.models),
        Route(("GET",), "/v1/models/{model:.+}", openai.model),
        Route(("POST",), "/v1/chat/completions", openai.chat, is_hot=True),
        Route(("POST",), "/v1/completions", openai.completions, is_hot=True),
        Route(("POST",), "/v1/embeddings", openai.embeddings, is_hot=True),
        *(Route(_methods(methods), path, getattr(responses, name), is_hot=path == "/v1/responses")
          for methods, path, name in RESPONSES_ROUTES),
        *(Route(_methods(methods), path, getattr(ollama, name), dialect="ollama", is_hot=path in hot_ollama,
                access=Access.PUBLIC if path == "/" else Access.CLIENT)
          for methods, path, name in OLLAMA_ROUTES),
    ]


def _methods(methods: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (methods,) if isinstance(methods, str) else tuple(methods)
