"""Every address of the HTTP door in one table, with who may call it and in which dialect its errors are said."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache

from appliance.front.access import Access
from appliance.front.balance import BASE, BalanceDoor
from appliance.front.call import Answer, Call
from appliance.front.downloads import ROUTES as DOWNLOADS_ROUTES
from appliance.front.downloads import DownloadsDoor
from appliance.front.lora import ROUTES as LORA_ROUTES
from appliance.front.lora import LoraDoor
from appliance.front.models import ROUTES as MODELS_ROUTES
from appliance.front.models import ModelsDoor
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

    methods  in upper case; path: `{name}` one piece, `{name:.+}` one or more, `{name:a|b}` one of these; the first that fits is taken
    dialect  openai | ollama | detail: how errors are said
    is_hot   served straight from the socket where the request allows it (see lane.py)
    is_ours  no engine has this address: a method that we have not is refused there, and does not go through
    """

    methods: tuple[str, ...]
    path: str
    handler: Handler
    dialect: str = "openai"
    access: Access = Access.CLIENT
    is_hot: bool = False
    is_open_while_draining: bool = False
    is_ours: bool = False

    def fits(self, path: str) -> bool:
        """Whether `path` is this address."""
        return _shape(self.path).fullmatch(path) is not None


def all_routes(openai: OpenAIDoor, responses: ResponsesDoor, ollama: OllamaDoor, system: SystemDoor,
               balance: BalanceDoor, models: ModelsDoor | None = None, downloads: DownloadsDoor | None = None,
               lora: LoraDoor | None = None) -> list[Route]:
    """Give the table. `models` None: no models of our own, so the manager's addresses are not in it; likewise `downloads`, `lora`."""
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
        *(Route((method,), path, getattr(models, name), access=access, is_open_while_draining=method == "GET", is_ours=True)
          for method, path, name, access in (MODELS_ROUTES if models else [])),
        *(Route((method,), path, getattr(downloads, name), access=access, is_open_while_draining=method != "POST", is_ours=True)
          for method, path, name, access in (DOWNLOADS_ROUTES if downloads else [])),
        *(Route((method,), path, getattr(lora, name), access=access, is_open_while_draining=method == "GET", is_ours=True)
          for method, path, name, access in (LORA_ROUTES if lora else [])),
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


@cache
def _shape(pattern: str) -> re.Pattern[str]:
    """Give a route's path as an expression: `{name}` is one piece, `{name:expression}` whatever fits it."""
    pieces = re.split(r"\{\w+(?::([^{}]+))?\}", pattern)       # fixed text and expressions (None = one piece) take turns
    return re.compile("".join(re.escape(piece or "") if number % 2 == 0 else f"(?:{piece or '[^/]+'})" for number, piece in enumerate(pieces)))


def _methods(methods: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (methods,) if isinstance(methods, str) else tuple(methods)
