"""The kinds of requests: where they go, what is sent, and what a right answer to each is."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.endurance.standin import vector_of

# The models of the run: two servers with an overflow to the hosted API, two without, the hosted API alone.
SHARED, OWN, FAR = "shared", "own", "far"
MODELS = (SHARED, OWN, FAR)
UPSTREAM_STATUSES = frozenset({400, 404, 429, 500, 501, 502, 503, 504})  # where all servers may have failed
INTERNAL = "Something failed inside the appliance"


@dataclass(frozen=True)
class Reading:
    """What a response of status 200 says.

    Attributes:
        text: Its text, or what arrived of it.
        is_complete: It says that it is whole.
        error: The words of its error event; "" = none.
    """

    text: str
    is_complete: bool
    error: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    Attributes:
        name: In the report.
        path: Where it goes.
        build: (model, mark) → the body.
        read: What a body of status 200 says; None = it is only looked through for foreign marks.
        dialect: How its errors look: openai, ollama, anthropic, any.
        statuses: What may come instead of 200.
        is_stream: Whether the answer comes in pieces.
        reaches_servers: Whether it may be sent on.
        method: POST, or GET without a body.
        key: Which key it has: good, wrong, none.
        may_be_cut: An answer may be broken off as the server's was (passthrough).
    """

    name: str
    path: str
    build: Callable[[str, str], Any]
    read: Callable[[bytes], Reading] | None = None
    dialect: str = "openai"
    statuses: frozenset[int] = UPSTREAM_STATUSES
    is_stream: bool = False
    reaches_servers: bool = True
    method: str = "POST"
    key: str = "good"
    may_be_cut: bool = False


def _messages(mark: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"Repeat {mark}."}]


def chat(model: str, mark: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": _messages(mark), **more}


def _chat(**more: Any) -> Callable[[str, str], Any]:
    return lambda model, mark: chat(model, mark, **more)


def _prompt(**more: Any) -> Callable[[str, str], Any]:
    return lambda model, mark: {"model": model, "prompt": f"Repeat {mark}.", **more}


def _responses(**more: Any) -> Callable[[str, str], Any]:
    return lambda model, mark: {"model": model, "input": f"Repeat {mark}.", **more}


# ---- reading


def data_lines(body: bytes) -> list[str]:
    return [line[5:].strip() for line in body.decode().split("\n") if line.startswith("data:")]


def read_openai_whole(body: bytes) -> Reading:
    choice = json.loads(body)["choices"][0]
    return Reading(choice["message"]["content"] if "message" in choice else choice["text"], True)


def read_openai_stream(body: bytes) -> Reading:
    text, error = "", ""
    lines = data_lines(body)
    for line in lines:
        if line == "[DONE]":
            continue
        value = json.loads(line)
        if "error" in value:
            error = value["error"]["message"] or "?"
        for choice in value.get("choices") or ():
            text += (choice["delta"].get("content") if "delta" in choice else choice["text"]) or ""
    return Reading(text, bool(lines) and lines[-1] == "[DONE]" and not error, error)


def read_ollama(body: bytes) -> Reading:
    text, error, is_done = "", "", False
    for line in body.decode().splitlines() if b"\n" in body.strip() else [body.decode()]:
        if not line.strip():
            continue
        value = json.loads(line)
        error = error or value.get("error", "")
        text += value.get("response") or (value.get("message") or {}).get("content") or ""
        is_done = bool(value.get("done"))
    return Reading(text, is_done and not error, error)


def read_messages_whole(body: bytes) -> Reading:
    return Reading("".join(block["text"] for block in json.loads(body)["content"]), True)


def read_messages_stream(body: bytes) -> Reading:
    text, error, is_done = "", "", False
    for value in map(json.loads, data_lines(body)):
        if value["type"] == "content_block_delta":
            text += value["delta"].get("text", "")
        elif value["type"] == "error":
            error = value["error"]["message"]
        is_done = value["type"] == "message_stop"
    return Reading(text, is_done and not error, error)


def read_responses_whole(body: bytes) -> Reading:
    value = json.loads(body)
    text = "".join(part["text"] for item in value["output"] for part in item["content"])
    return Reading(text, value["status"] == "completed")


def read_responses_stream(body: bytes) -> Reading:
    text, error, is_done = "", "", False
    for value in map(json.loads, data_lines(body)):
        if value["type"] == "response.output_text.delta":
            text += value["delta"]
        elif value["type"] == "response.failed":
            error = value["response"]["error"]["message"] or "?"
        elif value["type"] == "error":
            error = error or value.get("message") or value["error"]["message"]
        is_done = value["type"] == "response.completed"
    return Reading(text, is_done and not error, error)


def read_vectors(body: bytes) -> Reading:
    """The number of the mark is the ratio of the two values, also where the vector was made of length 1."""
    value = json.loads(body)
    vector = value["data"][0]["embedding"] if "data" in value else value["embeddings"][0]
    return Reading(str(round(vector[0] / vector[1])), True)


def right_text(kind: "Kind", mark: str, text: str) -> str:
    """What the text of a complete answer must be."""
    return str(round(vector_of(mark)[0])) if kind.read is read_vectors else text


def has_error_shape(dialect: str, body: bytes) -> bool:
    """Whether a body is an error of a dialect."""
    if dialect == "any":
        return True
    try:
        value = json.loads(body)
    except ValueError:
        return False
    if dialect == "ollama":
        return isinstance(value.get("error"), str)
    if dialect == "anthropic":
        return value.get("type") == "error" and isinstance(value["error"].get("message"), str)
    return isinstance(value.get("error"), dict) and isinstance(value["error"].get("message"), str)


# ---- the table: kinds with their shares

CHAT, OLLAMA, MESSAGES, RESPONSES = "/v1/chat/completions", "/api/chat", "/v1/messages", "/v1/responses"
LIMITED = {"max_tokens": 100}
REFUSED = {400: frozenset({400}), 401: frozenset({401}), 403: frozenset({403}), 404: frozenset({404})}

KINDS: dict[Kind, int] = {
    Kind("chat", CHAT, _chat(), read_openai_whole): 14,
    Kind("chat_stream", CHAT, _chat(stream=True), read_openai_stream, is_stream=True): 18,
    Kind(
        "chat_stream_usage",
        CHAT,
        _chat(stream=True, stream_options={"include_usage": True}),
        read_openai_stream,
        is_stream=True,
    ): 4,
    Kind("completion", "/v1/completions", _prompt(), read_openai_whole): 3,
    Kind("completion_stream", "/v1/completions", _prompt(stream=True), read_openai_stream, is_stream=True): 3,
    Kind("ollama_chat", OLLAMA, _chat(stream=False), read_ollama, "ollama"): 4,
    Kind("ollama_chat_stream", OLLAMA, _chat(), read_ollama, "ollama", is_stream=True): 5,
    Kind("ollama_generate", "/api/generate", _prompt(), read_ollama, "ollama", is_stream=True): 3,
    Kind("messages", MESSAGES, _chat(**LIMITED), read_messages_whole, "anthropic"): 4,
    Kind(
        "messages_stream",
        MESSAGES,
        _chat(stream=True, **LIMITED),
        read_messages_stream,
        "anthropic",
        is_stream=True,
    ): 6,
    Kind("responses", RESPONSES, _responses(), read_responses_whole): 3,
    Kind(
        "responses_stream",
        RESPONSES,
        _responses(stream=True, store=False),
        read_responses_stream,
        is_stream=True,
    ): 5,
    Kind(
        "embeddings", "/v1/embeddings", lambda model, mark: {"model": model, "input": mark}, read_vectors
    ): 4,
    Kind(
        "ollama_embed",
        "/api/embed",
        lambda model, mark: {"model": model, "input": mark},
        read_vectors,
        "ollama",
    ): 3,
    Kind(
        "passthrough",
        "/v1/rerank",
        lambda model, mark: {"model": OWN, "query": mark},
        read_openai_whole,
        "any",
        UPSTREAM_STATUSES | {302, 401, 299},
        may_be_cut=True,
    ): 3,
    # Refused, each at another place.
    Kind(
        "bad_json",
        CHAT,
        lambda model, mark: '{"messages": [' + mark,
        statuses=REFUSED[400],
        reaches_servers=False,
    ): 2,
    Kind(
        "bad_messages",
        MESSAGES,
        lambda model, mark: {"model": model, "messages": 5, "max_tokens": 5},
        dialect="anthropic",
        statuses=REFUSED[400],
        reaches_servers=False,
    ): 1,
    Kind(
        "unknown_model",
        OLLAMA,
        lambda model, mark: chat("nothing", mark),
        dialect="ollama",
        statuses=REFUSED[404],
        reaches_servers=False,
    ): 2,
    Kind("wrong_key", CHAT, _chat(), statuses=REFUSED[401], reaches_servers=False, key="wrong"): 2,
    Kind(
        "no_key",
        MESSAGES,
        _chat(**LIMITED),
        dialect="anthropic",
        statuses=REFUSED[401],
        reaches_servers=False,
        key="none",
    ): 1,
    Kind("other_engine_address", "/slots", _chat(), statuses=REFUSED[403], reaches_servers=False): 1,
    Kind("models", "/v1/models", _chat(), statuses=frozenset(), reaches_servers=False, method="GET"): 1,
    Kind("health", "/healthz", _chat(), statuses=frozenset(), reaches_servers=False, method="GET"): 1,
    Kind(
        "wrong_method",
        "/api/chat",
        _chat(),
        dialect="ollama",
        statuses=frozenset({405}),
        reaches_servers=False,
        method="GET",
    ): 1,
}
BY_NAME = {kind.name: kind for kind in KINDS}


def choose(rng: random.Random) -> Kind:
    return rng.choices(list(KINDS), list(KINDS.values()))[0]
