"""Every address of the HTTP door in one table, with who may call it and in which dialect its errors are said."""

from appliance.front.balance import BASE, BalanceHandlers
from appliance.front.downloads import ROUTES as DOWNLOADS_ROUTES
from appliance.front.downloads import DownloadHandlers
from appliance.front.lora import ROUTES as LORA_ROUTES
from appliance.front.lora import LoraHandlers
from appliance.front.manager.handlers import ROUTES as MODELS_ROUTES
from appliance.front.manager.handlers import ManagerHandlers
from appliance.front.ollama.handlers import ROUTES as OLLAMA_ROUTES
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.openai.handlers import OpenAIHandlers
from appliance.front.openai.responses import ROUTES as RESPONSES_ROUTES
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.route import Route
from appliance.front.system import SystemHandlers


def all_routes(
    openai: OpenAIHandlers,
    responses: ResponsesHandlers,
    ollama: OllamaHandlers,
    system: SystemHandlers,
    balance: BalanceHandlers,
    models: ManagerHandlers | None = None,
    downloads: DownloadHandlers | None = None,
    lora: LoraHandlers | None = None,
) -> list[Route]:
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
        Route(
            ("GET",), "/receipts/{id}", system.receipt, access=Access.OPERATOR, is_open_while_draining=True
        ),
        Route(("GET",), "/v1/models", openai.models),
        *(
            Route(
                (method,),
                path,
                getattr(models, name),
                access=access,
                is_open_while_draining=method == "GET",
                is_ours=True,
            )
            for method, path, name, access in (MODELS_ROUTES if models else [])
        ),
        *(
            Route(
                (method,),
                path,
                getattr(downloads, name),
                access=access,
                is_open_while_draining=method != "POST",
                is_ours=True,
            )
            for method, path, name, access in (DOWNLOADS_ROUTES if downloads else [])
        ),
        *(
            Route(
                (method,),
                path,
                getattr(lora, name),
                access=access,
                is_open_while_draining=method == "GET",
                is_ours=True,
            )
            for method, path, name, access in (LORA_ROUTES if lora else [])
        ),
        Route(("GET",), "/v1/models/{model:.+}", openai.model),
        Route(("POST",), "/v1/chat/completions", openai.chat, is_hot=True),
        Route(("POST",), "/v1/completions", openai.completions, is_hot=True),
        Route(("POST",), "/v1/embeddings", openai.embeddings, is_hot=True),
        *(
            Route(_methods(methods), path, getattr(responses, name), is_hot=path == "/v1/responses")
            for methods, path, name in RESPONSES_ROUTES
        ),
        *(
            Route(
                _methods(methods),
                path,
                getattr(ollama, name),
                dialect="ollama",
                is_hot=path in hot_ollama,
                access=Access.PUBLIC if path == "/" else Access.CLIENT,
            )
            for methods, path, name in OLLAMA_ROUTES
        ),
    ]


def _methods(methods: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    return (methods,) if isinstance(methods, str) else tuple(methods)
