"""What passes to a server as it came, who may send it, which headers change on the way. No I/O.

Paths that are known to do no more than compute an answer are for clients. Everything else is for operators:
engines have addresses that show other people's prompts, unload models or write files, and new versions bring
more.
"""

import re
from collections.abc import Iterable

from appliance.front.pipeline.access import Access

# Bytes of the fields that belong to one connection (RFC 9110, 7.6.1), and what a client shows to us and not
# to a server.
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
# Of a response: what our own server writes, and what tells a browser who may read it, which is for us to say.
RESPONSE_OURS = frozenset({"server", "date", "x-request-id", "server-timing", "via"})
CORS_PREFIX = "access-control-"
AGENT = "inference-appliance"

# Work that takes a slot of the server (llama.cpp, vLLM, SGLang). It may be done twice: nothing is changed by
# it.
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
        "/api/chat",
    }
)
# Questions that any client may ask, and that take no slot.
QUESTIONS = frozenset(
    {
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("POST", "/apply-template"),
        ("POST", "/v1/messages/count_tokens"),
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
    }
)
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_PINNED = re.compile(r"/backends/([^/?]+)(.*)", re.DOTALL)


def access_of(method: str, path: str) -> Access:
    """Return who may send a request.

    Args:
        path: As it came: one that is written in an unusual way is for operators.
    """
    if method == "POST" and path in WORK:
        return Access.CLIENT
    if ("GET" if method == "HEAD" else method, path) in QUESTIONS:
        return Access.CLIENT
    return Access.OPERATOR


def is_work(method: str, path: str) -> bool:
    """Whether a server needs one of its slots for it; such work can be repeated on another server."""
    return method == "POST" and path in WORK


def pinned(target: str) -> tuple[str, str] | None:
    """Read `/backends/{name}/rest?query` as (name as it came, /rest?query); None = another address."""
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
    """Return the fields of a request for the server.

    Args:
        fields: As they came.
        peer: The client's address.
        scheme: http or https, as the client called.
        host: As the client called it.
        own: The operator's fields for this server, such as its key.

    Returns:
        All that are end to end, without what is meant for the appliance alone (the client's key above all),
        and with Via, X-Forwarded-* and X-Request-Id; a chain of proxies before the appliance stays readable.
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
    """Return the fields of a server's response for the client: all that are end to end, in order."""
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
