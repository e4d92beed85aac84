"""What each address takes and answers. Addresses that are not here answer some JSON object."""

from dataclasses import dataclass, field

from appliance.front.openapi.schemas import (
    ANY_OBJECT,
    NUMBER,
    TEXT,
    WHOLE,
    YES_NO,
    Schema,
    either,
    listed,
    or_null,
    ref,
    shape,
)

SSE, NDJSON, PLAIN, HTML = "text/event-stream", "application/x-ndjson", "text/plain", "text/html"
METRICS = "application/openmetrics-text"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one address takes and answers.

    Attributes:
        body: Of the request; None = it takes none.
        is_body_optional: The request may have no body.
        query: The parameters of the query by name.
        answer: Of a success, as JSON; None = it is never JSON.
        others: Further media types of a success.
        statuses: Of a success.
    """

    body: Schema | None = None
    is_body_optional: bool = False
    query: dict[str, Schema] = field(default_factory=dict)
    answer: Schema | None = field(default_factory=lambda: ref("Object"))
    others: tuple[str, ...] = ()
    statuses: tuple[int, ...] = (200,)


OBJECT = Shape()
_FEED = Shape(answer=None, others=(SSE,))
_NAMED = Shape(ref("OllamaModel"))
_FILTERS: dict[str, Schema] = {
    "model": TEXT,
    "key": {"type": "string", "description": "Digits of the SHA-256 of a key, or `none`; never the key"},
    "status": {"type": "string", "description": "404, or 4xx"},
    "finish": {"enum": ["done", "client_left", "cut_off", "error"]},
    "since": {"type": "string", "description": "RFC 3339, seconds since 1970, or how long ago: 10m"},
    "until": {"type": "string", "description": "As `since`"},
}
_KEEP_ALIVE = either(TEXT, NUMBER)


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _list(name: str, of: str, *, is_paged: bool = False) -> Schema:
    return shape({name: listed(ref(of)), "count": WHOLE, **({"next": or_null(TEXT)} if is_paged else {})})


_V1 = "/api/v1"
_MONEY = either(NUMBER, TEXT)
_PASSWORD: Schema = {"type": "string", "minLength": 1, "maxLength": 1024}
_NEW_USER = {"email": TEXT, "password": _PASSWORD, "name": TEXT}
_LIMIT = {"limit": _whole(1, 1000)}
_BEFORE = {"before": {"type": "string", "description": "`next` of the page before"}}
_RENTED = f"{_V1}/gpu/instances/{{provider}}/{{id}}"
_RENTALS: dict[str, Schema] = {"live": {"enum": ["0", "1"]}, **_LIMIT}
_PRICES = shape({"prices": listed(ref("PriceRow"))})

SHAPES: dict[tuple[str, str], Shape] = {
    ("GET", "/admin"): Shape(answer=None, others=(HTML,), statuses=(303,)),
    ("GET", "/monitor"): Shape(answer=None, others=(HTML,), statuses=(302,)),
    ("GET", "/ui"): Shape(answer=None, others=(HTML,), statuses=(303,)),
    ("GET", "/ui/{file}"): Shape(answer=None, others=(HTML,)),
    ("GET", "/ui/api/feed"): _FEED,
    ("POST", "/ui/api/session"): Shape(shape({"key": TEXT})),
    # ---- health, metrics, receipts
    ("GET", "/healthz"): Shape(answer=ref("Status"), statuses=(200, 503)),
    ("GET", "/metrics"): Shape(answer=None, others=(PLAIN, METRICS)),
    ("GET", "/receipts"): Shape(
        answer=ref("Receipts"), query={"limit": _whole(1, 1000), "before": TEXT, **_FILTERS}
    ),
    ("GET", "/receipts/stream"): Shape(
        answer=None, others=(SSE,), query={"latest": _whole(0, 1000), **_FILTERS}
    ),
    ("GET", "/receipts/{id}"): Shape(answer=ref("Receipt")),
    ("GET", "/openapi.json"): OBJECT,
    ("GET", "/docs"): Shape(answer=None, others=(HTML,)),
    ("GET", "/docs/{file}"): Shape(answer=None, others=("text/javascript", PLAIN)),
    ("POST", "/v1/tickets"): Shape(shape({"path": TEXT}), answer=ref("Ticket")),
    # ---- backends
    ("GET", "/health"): Shape(answer=ref("Health"), statuses=(200, 503)),
    ("GET", "/api/v1/loadbalancer/strategy"): Shape(answer=ref("Strategy")),
    ("PUT", "/api/v1/loadbalancer/strategy"): Shape(shape({"strategy": TEXT}), answer=ref("Strategy")),
    ("GET", "/api/v1/loadbalancer/load"): Shape(query={"instance_id": TEXT}),
    # ---- models of this machine
    ("GET", "/v1/models/status/stream"): _FEED,
    ("GET", "/metrics/stream"): _FEED,
    ("GET", "/v1/models/{alias}/logs"): Shape(
        answer=ref("ModelLog"),
        others=(SSE,),
        query={"lines": _whole(0, 2000), "follow": {"enum": ["0", "1"]}, "port": _whole(1, 65_535)},
    ),
    ("POST", "/v1/models/eject"): Shape(shape({"model": TEXT}, {"force": YES_NO})),
    ("POST", "/v1/models/{alias}/load"): Shape(
        shape(None, {"keep_alive": _KEEP_ALIVE, "stream": YES_NO}), is_body_optional=True, others=(SSE,)
    ),
    # ---- downloads
    ("POST", "/v1/download_model"): Shape(ref("DownloadRequest"), statuses=(200, 202)),
    ("GET", "/v1/jobs/{id}/stream"): _FEED,
    ("POST", "/v1/downloads/verify"): Shape(ref("Folder")),
    ("POST", "/v1/downloads/repair"): Shape(ref("Folder"), statuses=(200, 202)),
    # ---- LoRA adapters
    ("POST", "/v1/load_lora_adapter"): Shape(
        shape({"lora_name": TEXT}, {"lora_path": TEXT, "source": TEXT, "base_model": TEXT}),
        others=(PLAIN,),
    ),
    ("POST", "/v1/unload_lora_adapter"): Shape(shape({"lora_name": TEXT}), others=(PLAIN,)),
    # ---- OpenAI
    ("GET", "/v1/models"): Shape(answer=ref("Models")),
    ("GET", "/v1/models/{model}"): Shape(answer=ref("ModelCard")),
    ("POST", "/v1/chat/completions"): Shape(ref("ChatRequest"), answer=ref("ChatCompletion"), others=(SSE,)),
    ("POST", "/v1/completions"): Shape(ref("CompletionRequest"), answer=ref("Completion"), others=(SSE,)),
    ("POST", "/v1/embeddings"): Shape(ref("EmbeddingRequest"), answer=ref("Embeddings")),
    ("POST", "/v1/responses"): Shape(ref("ResponsesRequest"), answer=ref("Response"), others=(SSE,)),
    ("POST", "/v1/responses/input_tokens"): Shape(ref("ResponsesRequest"), answer=ref("TokenCount")),
    ("GET", "/v1/responses/{id}"): Shape(answer=ref("Response"), query={"stream": TEXT}, others=(SSE,)),
    ("GET", "/v1/responses/{id}/input_items"): Shape(
        query={"limit": WHOLE, "order": {"enum": ["asc", "desc"]}, "after": TEXT}
    ),
    # ---- Anthropic
    ("POST", "/v1/messages"): Shape(ref("MessagesRequest"), answer=ref("AnthropicMessage"), others=(SSE,)),
    ("POST", "/v1/messages/count_tokens"): Shape(ref("MessagesRequest"), answer=ref("TokenCount")),
    # ---- Ollama
    ("GET", "/"): Shape(others=(PLAIN, HTML)),
    ("POST", "/api/show"): _NAMED,
    ("POST", "/api/chat"): Shape(ref("OllamaChatRequest"), answer=ref("OllamaChat"), others=(NDJSON,)),
    ("POST", "/api/generate"): Shape(
        ref("OllamaGenerateRequest"), answer=ref("OllamaGenerate"), others=(NDJSON,)
    ),
    ("POST", "/api/embed"): Shape(ref("OllamaEmbedRequest"), answer=ref("OllamaEmbed")),
    ("POST", "/api/embeddings"): Shape(shape({"model": TEXT, "prompt": TEXT})),
    ("POST", "/api/pull"): Shape(ref("OllamaModel"), others=(NDJSON,)),
    ("POST", "/api/push"): _NAMED,
    ("POST", "/api/create"): _NAMED,
    ("POST", "/api/copy"): Shape(shape({"source": TEXT, "destination": TEXT})),
    ("DELETE", "/api/delete"): _NAMED,
    ("POST", "/api/blobs/{digest}"): Shape(body={}, is_body_optional=True),
    # ---- accounts
    ("POST", f"{_V1}/auth/register"): Shape(shape(_NEW_USER), answer=ref("UserAnswer"), statuses=(201,)),
    ("POST", f"{_V1}/auth/login"): Shape(
        shape({"email": TEXT, "password": _PASSWORD}),
        answer=shape({"user": ref("User"), "tokens": ref("Tokens")}),
    ),
    ("POST", f"{_V1}/auth/refresh"): Shape(
        shape({"refresh_token": TEXT}), answer=shape({"tokens": ref("Tokens")})
    ),
    ("POST", f"{_V1}/auth/logout"): Shape(
        shape(None, {"refresh_token": TEXT, "all": YES_NO}), is_body_optional=True, answer=ref("Done")
    ),
    ("POST", f"{_V1}/auth/password"): Shape(
        shape({"old_password": _PASSWORD, "new_password": _PASSWORD}), answer=ref("Done")
    ),
    ("GET", f"{_V1}/auth/sessions"): Shape(answer=_list("sessions", "Session")),
    ("DELETE", f"{_V1}/auth/sessions"): Shape(answer=ref("Done")),
    ("DELETE", f"{_V1}/auth/sessions/{{id}}"): Shape(answer=ref("Done")),
    ("POST", f"{_V1}/auth/apikey"): Shape(
        shape(
            {"name": TEXT},
            {
                "expires_at": or_null(either(TEXT, NUMBER)),
                "scopes": or_null(listed(TEXT)),
                "models": or_null(listed(TEXT)),
                "limits": or_null(ref("Limits")),
                "stay_local": or_null(YES_NO),
            },
        ),
        answer=ref("NewApiKey"),
        statuses=(201,),
    ),
    ("GET", f"{_V1}/auth/apikey"): Shape(answer=_list("api_keys", "ApiKey")),
    ("GET", f"{_V1}/auth/apikey/{{id}}"): Shape(answer=ref("ApiKey")),
    ("DELETE", f"{_V1}/auth/apikey/{{id}}"): Shape(answer=ref("Done")),
    ("POST", f"{_V1}/auth/apikey/{{id}}/rotate"): Shape(
        shape(None, {"grace_s": or_null(NUMBER)}),
        is_body_optional=True,
        answer=ref("NewApiKey"),
        statuses=(201,),
    ),
    ("GET", f"{_V1}/user"): Shape(answer=ref("UserAnswer")),
    ("DELETE", f"{_V1}/user"): Shape(answer=ref("Done")),
    # ---- requests through the proxy
    ("POST", f"{_V1}/gpu/proxy"): Shape(
        shape(
            {"protocol": {"enum": ["http", "https", "mcp", "openinference"]}, "target_url": TEXT},
            {
                "method": or_null(TEXT),
                "headers": or_null(ANY_OBJECT),
                "body": {},
                "timeout": or_null(either(TEXT, NUMBER)),
                "stream_response": or_null(YES_NO),
                "follow": or_null(YES_NO),
            },
        ),
        answer=shape(
            {
                "status_code": WHOLE,
                "headers": ANY_OBJECT,
                "body": {},
                "duration": WHOLE,
                "duration_ms": NUMBER,
            },
            {"body_encoding": TEXT, "outputs": listed(ANY_OBJECT)},
        ),
    ),
    # ---- credits and limits on spending
    ("GET", f"{_V1}/billing/credits"): Shape(answer=ref("Credits")),
    ("GET", f"{_V1}/billing/credits/sessions"): Shape(query=_LIMIT, answer=_list("sessions", "UsageSession")),
    ("GET", f"{_V1}/billing/usage"): Shape(
        query={"group": TEXT, "since": TEXT, "until": TEXT, **_LIMIT, **_BEFORE},
        answer=_list("usage", "UsageRow"),
    ),
    ("GET", f"{_V1}/billing/ledger"): Shape(
        query={**_LIMIT, **_BEFORE}, answer=_list("entries", "LedgerEntry", is_paged=True)
    ),
    ("GET", f"{_V1}/guardrails/spending"): Shape(answer=ref("Spending")),
    ("POST", f"{_V1}/guardrails/record"): Shape(shape({"amount": _MONEY}), answer=ref("Spending")),
    ("POST", f"{_V1}/guardrails/check"): Shape(
        shape({"estimated_cost": _MONEY}), answer=ref("SpendingCheck"), statuses=(200, 402)
    ),
    ("POST", f"{_V1}/guardrails/reset"): Shape(
        shape(None, {"window_name": TEXT}), is_body_optional=True, answer=ref("Spending")
    ),
    # ---- for operators
    ("GET", f"{_V1}/admin/users"): Shape(
        query={"q": TEXT, "after": TEXT, "limit": _whole(1, 500)},
        answer=_list("users", "User", is_paged=True),
    ),
    ("POST", f"{_V1}/admin/users"): Shape(
        shape(_NEW_USER, {"is_admin": YES_NO}), answer=ref("UserAnswer"), statuses=(201,)
    ),
    ("GET", f"{_V1}/admin/users/{{id}}"): Shape(
        answer=shape(
            {
                "user": ref("User"),
                "credits": ref("Credits"),
                "usage_quota": ANY_OBJECT,
                "api_keys": listed(ref("ApiKey")),
            }
        )
    ),
    ("PATCH", f"{_V1}/admin/users/{{id}}"): Shape(
        shape(
            None,
            {
                "name": TEXT,
                "is_active": YES_NO,
                "is_admin": YES_NO,
                "plan": or_null(TEXT),
                "limits": or_null(ref("Limits")),
            },
        ),
        answer=ref("UserAnswer"),
    ),
    ("DELETE", f"{_V1}/admin/users/{{id}}"): Shape(answer=ref("Done")),
    ("POST", f"{_V1}/admin/users/{{id}}/password"): Shape(shape({"password": _PASSWORD}), answer=ref("Done")),
    ("POST", f"{_V1}/admin/users/{{id}}/grant"): Shape(
        shape({"amount": _MONEY}, {"note": TEXT}),
        answer=shape({"credits": ref("Credits"), "amount": NUMBER}),
    ),
    ("PATCH", f"{_V1}/admin/users/{{id}}/credits"): Shape(
        shape(None, {"plan": _MONEY, "cap": _MONEY, "auto_renew": YES_NO}),
        answer=shape({"credits": ref("Credits")}),
    ),
    ("PATCH", f"{_V1}/admin/users/{{id}}/quota"): Shape(
        shape({"max_requests": WHOLE}), answer=shape({"usage_quota": ANY_OBJECT})
    ),
    ("POST", f"{_V1}/admin/users/{{id}}/guardrails/reset"): Shape(
        shape(None, {"window_name": TEXT}), is_body_optional=True, answer=ref("Spending")
    ),
    ("GET", f"{_V1}/admin/prices"): Shape(
        query={"all": {"enum": ["0", "1"]}}, answer=_list("prices", "PriceRow")
    ),
    ("PUT", f"{_V1}/admin/prices"): Shape(
        _PRICES, answer=shape({"prices": listed(ref("PriceRow")), "added": WHOLE, "unchanged": WHOLE})
    ),
    ("GET", f"{_V1}/admin/money"): Shape(
        query={"since": TEXT, "check": {"enum": ["0", "1"]}},
        answer=shape(
            {"accounts": ANY_OBJECT, "wallets": ANY_OBJECT, "usage": ref("UsageRow")},
            {"differences": listed(ANY_OBJECT)},
        ),
    ),
    ("GET", f"{_V1}/admin/audit"): Shape(
        query={"subject": TEXT, "actor": TEXT, "action": TEXT, **_LIMIT, **_BEFORE},
        answer=_list("audit", "AuditRow", is_paged=True),
    ),
    # ---- renting GPUs
    ("GET", f"{_V1}/gpu/instances"): Shape(
        query={
            **dict.fromkeys(("provider", "gpu_model", "location"), TEXT),
            **dict.fromkeys(("min_vram", "max_price", "reliability"), NUMBER),
            "min_gpus": _whole(0, 1000),
            "verified": YES_NO,
        },
        answer=shape(
            {"instances": listed(ref("GpuOffer")), "count": WHOLE, "provider": TEXT},
            {"errors": listed(shape({"provider": TEXT, "message": TEXT}))},
        ),
    ),
    ("POST", f"{_RENTED}"): Shape(
        ref("RentConfig"), is_body_optional=True, answer=ref("RentedInstance"), statuses=(201,)
    ),
    ("GET", f"{_RENTED}"): Shape(answer=ref("Rental")),
    ("DELETE", f"{_RENTED}"): Shape(
        answer=shape({"message": TEXT, "rental": ref("Rental")}), statuses=(200, 202)
    ),
    ("POST", f"{_RENTED}/renew"): Shape(shape({"seconds": NUMBER}), answer=ref("Rental")),
    ("GET", f"{_RENTED}/logs"): Shape(query={"bytes": _whole(1, 1_048_576)}, answer=None, others=(PLAIN,)),
    ("POST", f"{_V1}/gpu/instances/batch"): Shape(
        shape(
            None,
            {
                "vastai_count": WHOLE,
                "ionet_count": WHOLE,
                "config": ref("RentConfig"),
                "filters": ref("OfferFilters"),
            },
        ),
        is_body_optional=True,
        answer=shape({"total_created": WHOLE, "errors": listed(TEXT)}),
        statuses=(201,),
    ),
    ("POST", f"{_V1}/gpu/instances/reserve"): Shape(
        shape(
            {"count": _whole(1, 16)},
            {"filters": ref("OfferFilters"), "config": ref("RentConfig"), "partial": YES_NO},
        ),
        answer=shape(
            {
                "reserved": listed(ANY_OBJECT),
                "count": WHOLE,
                "requested": WHOLE,
                "errors": listed(TEXT),
                "reservation_id": TEXT,
            }
        ),
        statuses=(201,),
    ),
    ("GET", f"{_V1}/gpu/rentals"): Shape(query=_RENTALS, answer=_list("rentals", "Rental")),
    ("GET", f"{_V1}/admin/rentals"): Shape(query=_RENTALS, answer=_list("rentals", "Rental")),
    ("DELETE", f"{_V1}/admin/rentals/{{provider}}/{{id}}"): Shape(answer=ref("Rental")),
    ("GET", f"{_V1}/admin/market"): Shape(answer=ref("MarketState")),
    ("POST", f"{_V1}/admin/market/freeze"): Shape(
        shape(None, {"reason": TEXT}), is_body_optional=True, answer=ref("MarketState")
    ),
    ("POST", f"{_V1}/admin/market/unfreeze"): Shape(answer=ref("MarketState")),
}
