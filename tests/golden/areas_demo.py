"""What the appliance answers with its demo engine: both dialects, the Responses API, and the HTTP front itself."""

import asyncio
from typing import Any

from tests.golden.instance import Instance, log_lines, serving, until
from tests.golden.wire import request_bytes

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "person",
        "schema": {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}},
    },
}
CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES = "/v1/messages"


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def openai() -> dict[str, Any]:
    """OpenAI's dialect."""
    async with serving() as instance:
        for name, body in {
            "whole": say("Hello"),
            "a named model": say("Hello", model="llama3.2-3b-instruct"),
            "an unknown model": say("Hello", model="somebody/else"),
            "stream": say("Hello", stream=True),
            "stream with usage": say("Hello", stream=True, stream_options={"include_usage": True}),
            "two choices": say("Hello", n=2),
            "two choices, stream": say("Hello", n=2, stream=True),
            "tools": say("demo: tool weather", tools=[WEATHER]),
            "tools, stream": say("demo: tool weather", tools=[WEATHER], stream=True),
            "tool required": say("Hello", tools=[WEATHER], tool_choice="required"),
            "tool not wanted": say("Hello", tools=[WEATHER], tool_choice="none"),
            "logprobs": say("Hello", logprobs=True, top_logprobs=1),
            "logprobs, stream": say("Hello", logprobs=True, stream=True),
            "thinking": say("demo: think"),
            "thinking, stream": say("demo: think", stream=True),
            "unicode": say("demo: unicode"),
            "unicode, stream": say("demo: unicode", stream=True),
            "cut short": say("demo: long 20", max_tokens=5),
            "stop": say("Hello", stop=["said"]),
            "schema": say("Hello", response_format=SCHEMA),
            "json": say("Hello", response_format={"type": "json_object"}),
            "parts": {
                "messages": [
                    {"role": "system", "content": "be kind"},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "Hello"},
                            {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                        ],
                    },
                ]
            },
            "unknown fields": say("Hello", flavour={"deep": [1]}, temperature=0, seed=1),
            "stream that breaks": say("demo: cut", stream=True),
            **{
                f"status {status}": say(f"demo: error {status}")
                for status in (400, 401, 403, 404, 429, 500, 503, 504)
            },
            "status 429, stream": say("demo: error 429", stream=True),
            "no messages": {"model": "demo"},
            "empty messages": {"messages": []},
            "a message of a wrong type": {"messages": ["x"]},
            "a message without a role": {"messages": [{"content": "x"}]},
            "content of a wrong type": {"messages": [{"role": "user", "content": 5}]},
            "stream of a wrong type": say("x", stream="yes"),
            "n of a wrong type": say("x", n=1.5),
            "n too large": say("x", n=500),
            "model of a wrong type": say("x", model=5),
            "no object": [1, 2],
            "bad json": "{'a': 1",
            "empty body": "",
            "blank body": "  ",
            "bytes": b"\xff\xfe",
        }.items():
            await instance.note(f"chat: {name}", "POST", CHAT, body)
        for name, body in {
            "whole": {"prompt": "Hello"},
            "stream": {"prompt": "Hello", "stream": True},
            "two prompts": {"prompt": ["a", "b"]},
            "tokens": {"prompt": [1, 2, 3]},
            "n": {"prompt": "Hello", "n": 2},
            "no prompt": {"model": "demo"},
            "prompt of a wrong type": {"prompt": {}},
            "stream with usage": {
                "prompt": "Hello",
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        }.items():
            await instance.note(f"completions: {name}", "POST", TEXT, body)
        for name, body in {
            "one": {"input": "Hello"},
            "two": {"input": ["a", "b"], "dimensions": 4},
            "base64": {"input": "Hello", "encoding_format": "base64", "dimensions": 4},
            "tokens": {"input": [[1, 2], [3]], "dimensions": 4},
            "no input": {"model": "demo"},
            "dimensions too many": {"input": "a", "dimensions": 9999},
            "input of a wrong type": {"input": 5},
        }.items():
            await instance.note(f"embeddings: {name}", "POST", "/v1/embeddings", body)
        await instance.note("models", "GET", "/v1/models")
        await instance.note("model", "GET", "/v1/models/meta-llama/llama-3.2-3b-instruct/fp-16-fast-vllm-1")
        await instance.note("model by an alias", "GET", "/v1/models/llama3.2-3b-instruct")
        await instance.note("unknown model", "GET", "/v1/models/somebody/else")
        await instance.note("priority: unknown", "POST", CHAT, say("x"), {"X-Request-Priority": "urgent"})
        await instance.note("priority: high", "POST", CHAT, say("x"), {"X-Request-Priority": "high"})
        await instance.note(
            "stay local: unknown", "POST", CHAT, say("x"), {"x-appliance-stay-local": "maybe"}
        )
        await instance.note("pinned to no backend", "POST", CHAT, say("x"), {"x-appliance-backend": "nobody"})
        return instance.record


async def openai_strict() -> dict[str, Any]:
    """Unknown models are refused, a model has another name."""
    async with serving(MODEL_STRICT="1", PUBLIC_MODEL="golden/model", MODEL_ALIASES="short") as instance:
        for name in ("golden/model", "short", "other", "golden/modle"):
            await instance.note(f"chat: {name}", "POST", CHAT, say("Hello", model=name))
            await instance.note(
                f"ollama: {name}", "POST", "/api/chat", say("Hello", model=name, stream=False)
            )
        await instance.note("models", "GET", "/v1/models")
        await instance.note("tags", "GET", "/api/tags")
        await instance.note("show: other", "POST", "/api/show", {"model": "other"})
        return instance.record


async def responses() -> dict[str, Any]:
    """OpenAI's Responses API."""
    async with serving() as instance:
        tool = {"type": "function", "name": "weather", "parameters": WEATHER["function"]["parameters"]}
        for name, body in {
            "whole": {"input": "Hello"},
            "stream": {"input": "Hello", "stream": True},
            "instructions": {"input": "Hello", "instructions": "be kind"},
            "items": {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}]},
            "tools": {"input": "demo: tool weather", "tools": [tool]},
            "tools, stream": {"input": "demo: tool weather", "tools": [tool], "stream": True},
            "thinking": {"input": "demo: think"},
            "thinking, stream": {"input": "demo: think", "stream": True},
            "cut short": {"input": "demo: long 20", "max_output_tokens": 5},
            "a failing stream": {"input": "demo: cut", "stream": True},
            "an error": {"input": "demo: error 429"},
            "no input": {"model": "demo"},
            "a former answer": {"input": "x", "previous_response_id": "resp_1"},
            "schema": {
                "input": "x",
                "text": {
                    "format": {"type": "json_schema", "name": "p", "schema": SCHEMA["json_schema"]["schema"]}
                },
            },
            "in the background": {"input": "x", "background": True},
            "stored": {"input": "x", "store": True},
            "not stored": {"input": "x", "store": False},
            "a custom tool": {"input": "demo: tool patch", "tools": [{"type": "custom", "name": "patch"}]},
            "a custom tool, stream": {
                "input": "demo: tool patch",
                "tools": [{"type": "custom", "name": "patch"}, {"type": "web_search"}],
                "stream": True,
            },
            "bad json": "{",
        }.items():
            await instance.note(name, "POST", RESPONSES, body)
        await instance.note("get", "GET", f"{RESPONSES}/resp_1")
        await instance.note("delete", "DELETE", f"{RESPONSES}/resp_1")
        await instance.note("cancel", "POST", f"{RESPONSES}/resp_1/cancel", {})
        await instance.note("input items", "GET", f"{RESPONSES}/resp_1/input_items")
        await instance.note("input tokens", "POST", f"{RESPONSES}/input_tokens", {"input": "Hello"})
        return instance.record


async def anthropic() -> dict[str, Any]:
    """Anthropic's Messages API."""

    def ask(text: str, **more: Any) -> dict[str, Any]:
        return say(text, model="demo", max_tokens=50) | more

    tool = {"name": "weather", "input_schema": WEATHER["function"]["parameters"]}
    search = {"type": "web_search_20250305", "name": "web_search"}
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    async with serving() as instance:
        for name, body in {
            "whole": ask("Hello"),
            "stream": ask("Hello", stream=True),
            "system": ask("Hello", system=[{"type": "text", "text": "be kind"}]),
            "tools": ask("demo: tool weather", tools=[tool]),
            "tools, stream": ask("demo: tool weather", tools=[tool], stream=True),
            "a tool's result": ask(
                "x",
                tools=[tool],
                tool_choice={"type": "none"},
                messages=[
                    {"role": "user", "content": "weather?"},
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "t", "name": "weather", "input": {}}],
                    },
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "t", "content": "sunny"}],
                    },
                ],
            ),
            "an image": ask(
                "x", messages=[{"role": "user", "content": [{"type": "image", "source": source}]}]
            ),
            "thinking": ask("demo: think"),
            "thinking, stream": ask("demo: think", stream=True),
            "thinking, not wanted": ask("demo: think", thinking={"type": "disabled"}),
            "cut short": ask("demo: long 20", max_tokens=5),
            "a schema": ask(
                "x",
                output_config={"format": {"type": "json_schema", "schema": tool["input_schema"]}},
            ),
            "something left out": ask("Hello", tools=[tool, search], context_management={}),
            "a stream that breaks": ask("demo: cut", stream=True),
            **{f"status {status}": ask(f"demo: error {status}") for status in (400, 401, 404, 429, 500, 503)},
            "status 429, stream": ask("demo: error 429", stream=True),
            "no max_tokens": say("Hello"),
            "no messages": {"max_tokens": 5},
            "a document": ask(
                "x",
                messages=[{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}],
            ),
            "only tools that are not known": ask("x", tools=[search]),
            "bad json": "{",
        }.items():
            await instance.note(name, "POST", MESSAGES, body)
        await instance.note("with a query", "POST", f"{MESSAGES}?beta=true", ask("Hello"))
        await instance.note("count", "POST", f"{MESSAGES}/count_tokens", say("Hello"))
        await instance.note("count: no messages", "POST", f"{MESSAGES}/count_tokens", {})
        await instance.note("by GET", "GET", MESSAGES)
        await instance.note("unknown below it", "POST", f"{MESSAGES}/batches", {})
        version = {"anthropic-version": "2023-06-01"}
        await instance.note("models", "GET", "/v1/models", None, version)
        await instance.note("model", "GET", "/v1/models/llama3.2-3b-instruct", None, version)
        return instance.record


async def ollama() -> dict[str, Any]:
    """Ollama's dialect."""
    async with serving() as instance:
        for name, body in {
            "stream": say("Hello", model="demo"),
            "whole": say("Hello", stream=False),
            "tools": say("demo: tool weather", tools=[WEATHER], stream=False),
            "tools, stream": say("demo: tool weather", tools=[WEATHER]),
            "thinking": say("demo: think", think=True, stream=False),
            "thinking, stream": say("demo: think", think=True),
            "options": say("demo: long 20", options={"num_predict": 5, "temperature": 0}, stream=False),
            "format": say("Hello", format="json", stream=False),
            "schema": say("Hello", format=SCHEMA["json_schema"]["schema"], stream=False),
            "load": {"model": "demo"},
            "load, empty": {"model": "demo", "messages": []},
            "unload": {"model": "demo", "messages": [], "keep_alive": 0},
            "a stream that breaks": say("demo: cut"),
            "status 429": say("demo: error 429"),
            "status 500": say("demo: error 500", stream=False),
            "messages of a wrong type": {"messages": "x"},
            "images": {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}], "stream": False},
            "keep_alive of a wrong kind": say("x", keep_alive="soon"),
            "bad json": "{",
            "num_ctx": say("x", options={"num_ctx": 4096}, stream=False),
        }.items():
            await instance.note(f"chat: {name}", "POST", "/api/chat", body)
        for name, body in {
            "stream": {"prompt": "Hello"},
            "whole": {"prompt": "Hello", "stream": False},
            "system": {"prompt": "Hello", "system": "be kind", "stream": False},
            "raw": {"prompt": "Hello", "raw": True, "stream": False},
            "load": {"model": "demo"},
            "unload": {"model": "demo", "keep_alive": 0},
            "template": {"prompt": "Hello", "template": "{{ .Prompt }}", "stream": False},
            "prompt of a wrong type": {"prompt": 5},
            "suffix": {"prompt": "a", "suffix": "b", "stream": False},
            "context": {"prompt": "a", "context": [1, 2], "stream": False},
        }.items():
            await instance.note(f"generate: {name}", "POST", "/api/generate", body)
        await instance.note("embed: one", "POST", "/api/embed", {"model": "demo", "input": "Hello"})
        await instance.note("embed: two", "POST", "/api/embed", {"model": "demo", "input": ["a", "b"]})
        await instance.note("embed: nothing", "POST", "/api/embed", {"model": "demo"})
        await instance.note("embeddings", "POST", "/api/embeddings", {"model": "demo", "prompt": "Hello"})
        await instance.note("embeddings: nothing", "POST", "/api/embeddings", {"model": "demo"})
        for path in ("tags", "ps", "version"):
            await instance.note(path, "GET", f"/api/{path}")
        await instance.note("tags, HEAD", "HEAD", "/api/tags")
        await instance.note("version, HEAD", "HEAD", "/api/version")
        await instance.note("show", "POST", "/api/show", {"model": "demo"})
        await instance.note("show: verbose", "POST", "/api/show", {"name": "demo", "verbose": True})
        await instance.note("show: nothing", "POST", "/api/show", {})
        for verb in ("push", "create", "copy"):
            await instance.note(
                verb, "POST", f"/api/{verb}", {"model": "demo", "source": "demo", "destination": "x"}
            )
        await instance.note("blobs", "POST", "/api/blobs/sha256:00", b"x")
        await instance.note("blobs, HEAD", "HEAD", "/api/blobs/sha256:00")
        await instance.note("pull: what is here", "POST", "/api/pull", {"model": "demo"})
        await instance.note(
            "pull: what is here, whole", "POST", "/api/pull", {"model": "demo", "stream": False}
        )
        await instance.note("pull: nothing", "POST", "/api/pull", {})
        await instance.note(
            "pull: no name of a hub", "POST", "/api/pull", {"model": "hf.co/nothing", "stream": False}
        )
        await instance.note("delete", "DELETE", "/api/delete", {"model": "demo"})
        await instance.note("chat by GET", "GET", "/api/chat")
        return instance.record


async def http() -> dict[str, Any]:
    """Addresses about the appliance, and requests that are not as they should be."""
    async with serving(
        CORS_ORIGINS="https://app.example",
        MAX_BODY_BYTES="2048",
        MAX_HEADER_BYTES="4096",
        HEADER_TIMEOUT_S="30",
    ) as instance:
        await instance.note("root", "GET", "/")
        await instance.note("root, HEAD", "HEAD", "/")
        await instance.note("root as JSON", "GET", "/", None, {"Accept": "application/json"})
        await instance.note("one chat", "POST", CHAT, say("Hello"))
        await instance.note("one stream", "POST", CHAT, say("Hello", stream=True))
        await instance.note("one refused", "POST", CHAT, say("demo: error 500"))
        for path in ("/healthz", "/health"):
            await instance.note(path, "GET", path)
            await instance.note(f"{path}, HEAD", "HEAD", path)
        await instance.note("receipts", "GET", "/receipts")
        newest = (await instance.json("GET", "/receipts"))["receipts"][0]["id"]
        await instance.note("one receipt", "GET", f"/receipts/{newest}")
        await instance.note("no such receipt", "GET", "/receipts/req_0")
        await _balance(instance)
        await _cors(instance)
        for name, (method, path) in {
            "unknown": ("GET", "/nothing"),
            "unknown, POST": ("POST", "/nothing"),
            "unknown below /v1": ("POST", "/v1/nothing"),
            "unknown below /api": ("GET", "/api/nothing"),
            "chat by GET": ("GET", CHAT),
            "chat by PUT": ("PUT", CHAT),
            "healthz by POST": ("POST", "/healthz"),
            "models by DELETE": ("DELETE", "/v1/models"),
            "an engine's address": ("POST", "/tokenize"),
            "one backend's address": ("GET", "/backends/demo/slots"),
            "no backend's address": ("GET", "/backends/nobody/slots"),
            "a slash too many": ("POST", CHAT + "/"),
            "double slash": ("GET", "//v1/models"),
            "query": ("GET", "/v1/models?x=1"),
            "chat with a query": ("POST", CHAT + "?x=1"),
            "escaped": ("GET", "/v1%2Fmodels"),
            "dots": ("GET", "/v1/../healthz"),
            "options": ("OPTIONS", CHAT),
            "trace": ("TRACE", "/healthz"),
            "an own method": ("BREW", "/coffee"),
            "jobs": ("GET", "/v1/jobs"),
            "adapters": ("GET", "/v1/lora_adapters"),
            "models' status without a table": ("GET", "/v1/models/status"),
            "vram without a table": ("GET", "/vram"),
        }.items():
            await instance.note(
                f"address: {name}", method, path, say("x") if method in {"POST", "PUT"} else None
            )
        await _heads(instance)
        await instance.note_metrics()
        await until(lambda: instance.log.count('"event":"request"') >= 20, what="the access log is written")
        instance.put("log", _log_shape(instance))
        return instance.record


async def _balance(instance: Instance) -> None:
    base = "/api/v1/loadbalancer"
    await instance.note("strategy", "GET", f"{base}/strategy")
    await instance.note("loads", "GET", f"{base}/loads")
    await instance.note("load", "GET", f"{base}/load?instance_id=demo")
    await instance.note("load of nobody", "GET", f"{base}/load?instance_id=nobody")
    await instance.note("load without a name", "GET", f"{base}/load")
    for name, body in {
        "round_robin": {"strategy": "round_robin"},
        "unknown": {"strategy": "cleverest"},
        "a wrong type": {"strategy": 5},
        "nothing": {},
    }.items():
        await instance.note(f"switch the strategy: {name}", "PUT", f"{base}/strategy", body)
    await instance.note("strategy afterwards", "GET", f"{base}/strategy")


async def _cors(instance: Instance) -> None:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    for name, origin in {"known": "https://app.example", "unknown": "https://evil.example"}.items():
        await instance.note(f"cors: preflight, {name}", "OPTIONS", CHAT, None, {"Origin": origin, **asked})
        await instance.note(
            f"cors: preflight of receipts, {name}", "OPTIONS", "/receipts", None, {"Origin": origin, **asked}
        )
        await instance.note(f"cors: chat, {name}", "POST", CHAT, say("x"), {"Origin": origin})
        await instance.note(f"cors: stream, {name}", "POST", CHAT, say("x", stream=True), {"Origin": origin})
        await instance.note(f"cors: models, {name}", "GET", "/v1/models", None, {"Origin": origin})
        await instance.note(f"cors: error, {name}", "POST", CHAT, "{", {"Origin": origin})
        await instance.note(f"cors: receipts, {name}", "GET", "/receipts", None, {"Origin": origin})
    await instance.note(
        "another site's page at an operator's address",
        "GET",
        "/receipts",
        None,
        {"Sec-Fetch-Site": "cross-site"},
    )
    await instance.note(
        "a proxy at an operator's address", "GET", "/receipts", None, {"X-Forwarded-For": "10.0.0.1"}
    )
    await instance.note(
        "a name that leads here at an operator's address",
        "GET",
        "/receipts",
        None,
        {"Host": "evil.example:80"},
    )


async def _heads(instance: Instance) -> None:
    body = b'{"messages":[{"role":"user","content":"x"}]}'
    head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nHost: x\r\n"
    long = request_bytes("POST", CHAT, body=say("x" * 3000))
    one, stream = (
        request_bytes("POST", CHAT, body=say("x")),
        request_bytes("POST", CHAT, body=say("x", stream=True)),
    )
    await instance.note_raw("two after one another on a connection", one + one, answers=2)
    await instance.note_raw(
        "a stream, then a question", stream + request_bytes("GET", "/v1/models"), answers=2
    )
    await instance.note_raw(
        "connection: close", request_bytes("POST", CHAT, body=say("x"), headers={"Connection": "close"})
    )
    await instance.note_raw(
        "HTTP/1.0", b"POST " + CHAT.encode() + b" HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    await instance.note_raw(
        "a body in chunks",
        head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body) + body + b"\r\n0\r\n\r\n",
    )
    await instance.note_raw("a body too large", long)
    await instance.note("a body too large at a cold address", "POST", "/api/show", {"model": "x" * 3000})
    await instance.note("a body too large in Ollama's dialect", "POST", "/api/chat", say("x" * 3000))
    await instance.note_raw(
        "a head too large", head + b"X-Long: " + b"x" * 6000 + b"\r\nContent-Length: 2\r\n\r\n{}"
    )
    await instance.note_raw("a length that is no number", head + b"Content-Length: many\r\n\r\n" + body)
    await instance.note_raw("a negative length", head + b"Content-Length: -1\r\n\r\n" + body)
    await instance.note_raw("two lengths", head + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}")
    await instance.note_raw(
        "length and chunks", head + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    await instance.note_raw("no length", head + b"\r\n")
    await instance.note_raw("a line that is no field", head + b"no colon here\r\nContent-Length: 2\r\n\r\n{}")
    await instance.note_raw(
        "a control character in a field", head + b"X-A: a\x01b\r\nContent-Length: 2\r\n\r\n{}"
    )
    await instance.note_raw("no HTTP", b"HELLO\r\n\r\n")
    await instance.note_raw(
        "expect: 100-continue",
        head + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
        answers=2,
    )
    await instance.note_raw(
        "own request id", head + b"X-Request-Id: mine-1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    await instance.note_raw(
        "upgrade at an address of ours",
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )
    await instance.note_raw(
        "upgrade at an engine's address",
        b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )


def _log_shape(instance: Instance) -> dict[str, Any]:
    """The keys of each event's lines; what the demo engine says at its start is not JSON and not recorded."""
    found: dict[str, Any] = {}
    for line in log_lines(instance.log):
        found.setdefault(str(line.get("event")), set()).add(tuple(sorted(line)))
    return {event: sorted(map(list, shapes)) for event, shapes in found.items()}


async def keys() -> dict[str, Any]:
    """Who may call what, by key."""
    client, operator = "client-key-1", "operator-key-1"
    async with serving(APPLIANCE_API_KEYS=client, OPERATOR_API_KEYS=operator) as instance:
        for name, headers in {
            "none": {},
            "wrong": {"Authorization": "Bearer wrong-key-1"},
            "client": {"Authorization": f"Bearer {client}"},
            "client by x-api-key": {"X-API-Key": client},
            "operator": {"Authorization": f"Bearer {operator}"},
            "basic": {"Authorization": "Basic Zm9vOmJhcg=="},
        }.items():
            for method, path, body in (
                ("GET", "/v1/models", None),
                ("POST", CHAT, say("x")),
                ("POST", CHAT, say("x", stream=True)),
                ("GET", "/api/tags", None),
                ("POST", "/api/chat", say("x", stream=False)),
                ("GET", "/receipts", None),
                ("GET", "/healthz", None),
                ("GET", "/", None),
                ("PUT", "/api/v1/loadbalancer/strategy", {"strategy": "least_busy"}),
                ("GET", "/v1/jobs", None),
                ("POST", "/tokenize", {}),
                ("GET", "/slots", None),
                ("POST", "/api/pull", {"model": "hf.co/nothing"}),
                ("GET", "/nothing", None),
            ):
                heard = await instance.ask(method, path, body, headers)
                found = instance.normaliser.answer(heard)
                shown = found["body"] if heard.status >= 400 else "…"
                instance.put(
                    f"{name}: {method} {path}{' stream' if body and body.get('stream') else ''}",
                    {
                        "status": found["status"],
                        "body": shown,
                        "headers": found["headers"] if heard.status >= 400 else sorted(found["headers"]),
                    },
                )
    async with serving(APPLIANCE_API_KEYS=client) as alone:
        for name, headers in {"none": {}, "client": {"X-API-Key": client}}.items():
            heard = await alone.ask("GET", "/receipts", None, headers)
            instance.put(f"only client keys, {name}: GET /receipts", alone.normaliser.answer(heard))
    return instance.record


async def passthrough_off() -> dict[str, Any]:
    """PASSTHROUGH=0, and every origin may call."""
    async with serving(PASSTHROUGH="0", CORS_ORIGINS="*") as instance:
        await instance.note("an engine's address", "POST", "/tokenize", {})
        await instance.note("one backend's address", "GET", "/backends/demo/slots")
        await instance.note("cors", "GET", "/v1/models", None, {"Origin": "https://any.example"})
        await instance.note(
            "cors: preflight",
            "OPTIONS",
            "/api/chat",
            None,
            {"Origin": "https://any.example", "Access-Control-Request-Method": "POST"},
        )
        await instance.note("cors: chat", "POST", CHAT, say("x"), {"Origin": "https://any.example"})
        slow = asyncio.create_task(instance.ask("POST", CHAT, say("demo: stall", stream=True), events=2))
        instance.put("a stalling stream, left after two events", instance.normaliser.answer(await slow))
        return instance.record
