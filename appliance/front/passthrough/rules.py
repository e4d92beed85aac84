"""Which requests are passed to a server, who may send them, and which header fields change. No I/O.

Paths that only compute a response are for clients. Everything else is for operators: engines have addresses
that show other clients' prompts, unload models or write files, and new versions of them add more.
"""

import re
from collections.abc import Iterable

from appliance.engines.upstream.request_settings import settles
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.heads import AGENT

# Fields that belong to one connection (RFC 9110, 7.6.1).
HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
# Fields of a request that are meant for the appliance, or that it sets itself.
OURS = frozenset(
    {
        "authorization",
        "x-api-key",
        "api-key",
        "cookie",
        "host",
        "expect",
        "x-request-id",
        "x-request-priority",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "via",
    }
)
OUR_PREFIX = "x-appliance-"
# Fields of a response that the appliance writes itself; so are those of CORS, since it decides who may read.
RESPONSE_OURS = frozenset({"server", "date", "x-request-id", "server-timing", "via"})
CORS_PREFIX = "access-control-"

# Work that takes a slot of the server (llama.cpp, vLLM, SGLang, servers of audio and images). It changes
# nothing, so it may be repeated.
WORK = frozenset(
    {
        "/completion",
        "/completions",
        "/infill",
        "/embedding",
        "/embeddings",
        "/rerank",
        "/reranking",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/reranking",
        "/v1/messages",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/audio/speech",
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/inference",  # whisper.cpp
        "/sdapi/v1/txt2img",  # stable-diffusion.cpp
        "/sdapi/v1/img2img",
        "/v1/score",
        "/score",
        "/pooling",
        "/classify",
        "/v1/classify",
        "/invocations",
        "/generate",
        "/encode",
        "/chat/completions",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/responses",
        "/api/chat",
    }
)
EMBEDDINGS = frozenset({"/embedding", "/embeddings", "/v1/embeddings", "/encode"})
# Requests that any client may send, and that take no slot.
QUESTIONS = frozenset(
    {
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/apply-template"),
        ("POST", "/v1/messages/count_tokens"),
        ("POST", "/v1/responses/input_tokens"),
        ("POST", "/responses/input_tokens"),
        ("POST", "/v1/chat/completions/input_tokens"),
        ("POST", "/chat/completions/input_tokens"),
        ("GET", "/props"),
        ("GET", "/models"),
        ("GET", "/version"),
        ("GET", "/ping"),
        ("POST", "/ping"),
        ("GET", "/v1/health"),
        ("GET", "/lora-adapters"),
        ("GET", "/load"),
        ("GET", "/is_sleeping"),
        ("GET", "/tokenizer_info"),
        ("GET", "/get_model_info"),
        ("GET", "/model_info"),
        ("GET", "/health_generate"),
        ("POST", "/parse_function_call"),
        ("POST", "/separate_reasoning"),
        ("GET", "/v1/realtime"),
        ("GET", "/v1/audio/voices"),
        ("GET", "/sdapi/v1/loras"),
    }
)
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
ROUTE = "passage"  # the label of passthrough in metrics and receipts, where dashboards know it by this word
_PINNED = re.compile(r"/backends/([^/?]+)(.*)", re.DOTALL)


def access_of(method: str, path: str) -> Access:
    """Return who may send a request.

    Args:
        path: Not decoded: any other spelling of a listed path is for operators.
    """
    if method == "POST" and path in WORK:
        return Access.CLIENT
    if ("GET" if method == "HEAD" else method, path) in QUESTIONS:
        return Access.CLIENT
    return Access.OPERATOR


def client_methods(path: str) -> list[str]:
    """Return the methods that clients may send to a path, in order, with HEAD and OPTIONS; [] = none."""
    found = {method for method, listed_path in QUESTIONS if listed_path == path}
    found |= {"POST"} if path in WORK else set()
    found |= {"HEAD"} if "GET" in found else set()
    return sorted(found | {"OPTIONS"}) if found else []


def is_work(method: str, path: str) -> bool:
    """Whether a request takes a slot of the server; such work can be repeated on another server."""
    return method == "POST" and path in WORK


def is_counted_elsewhere(path: str) -> bool:
    """Whether work at an engine's own address is text or embeddings, whose tokens our addresses count."""
    return settles(path) or path in EMBEDDINGS


def pinned(target: str) -> tuple[str, str] | None:
    """Read `/backends/{name}/rest?query` as (name, not decoded; /rest?query); None = another address."""
    found = _PINNED.fullmatch(target)
    if found is None:
        return None
    rest = found[2]
    return found[1], rest if rest.startswith("/") else "/" + rest


def request_fields(
    fields: Iterable[tuple[str, str]],
    *,
    peer: str,
    scheme: str,
    host: str,
    request_id: str,
    own: Iterable[tuple[str, str]],
) -> list[tuple[str, str]]:
    """Return the header fields of a request as they are sent to the server.

    Args:
        fields: Of the client's request.
        peer: The client's address.
        scheme: http or https: how the client connected.
        host: The client's `Host`.
        own: The operator's fields for this server, such as its key.

    Returns:
        The end-to-end fields, without those meant for the appliance alone (above all the client's key), and
        with Via, X-Forwarded-* and X-Request-Id; entries of proxies before the appliance are kept.
    """
    rows = list(fields)
    named = {name.lower(): value for name, value in rows}
    dropped = HOP | OURS | listed(value for name, value in rows if name.lower() == "connection")
    out = [
        (name, value)
        for name, value in rows
        if (key := name.lower()) not in dropped and not key.startswith(OUR_PREFIX)
    ]
    out += [
        ("X-Forwarded-For", f"{named['x-forwarded-for']}, {peer}" if named.get("x-forwarded-for") else peer),
        ("X-Forwarded-Proto", named.get("x-forwarded-proto") or scheme),
        ("X-Forwarded-Host", named.get("x-forwarded-host") or host),
        ("Via", f"{named['via']}, 1.1 {AGENT}" if named.get("via") else f"1.1 {AGENT}"),
        ("X-Request-Id", request_id),
    ]
    return [*out, *own]


def response_fields(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the header fields of a server's response for the client: those that are end to end, in order."""
    rows = list(fields)
    dropped = HOP | RESPONSE_OURS | listed(value for name, value in rows if name.lower() == "connection")
    return [
        (name, value)
        for name, value in rows
        if (key := name.lower()) not in dropped and not key.startswith(CORS_PREFIX)
    ]


def listed(values: Iterable[str]) -> set[str]:
    """Return the names that `Connection` lists: they end at this hop."""
    return {name.strip().lower() for value in values for name in value.split(",") if name.strip()}
