"""What each address takes and answers. Addresses that are not here answer some JSON object."""

from dataclasses import dataclass, field

from appliance.front.openapi.schemas import NUMBER, TEXT, WHOLE, YES_NO, Schema, either, ref, shape

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


SHAPES: dict[tuple[str, str], Shape] = {
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
}
