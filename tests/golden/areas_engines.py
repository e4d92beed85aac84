"""What the appliance answers, and what it sends on, with stand-ins of a hosted API and of engines behind it."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from tests.fakes import hosted_api as how
from tests.fakes.engine_server import EngineServer
from tests.fakes.hosted_api import KEY, HostedApi, Record
from tests.fakes.lora_engines import LoraEngine
from tests.golden.areas_demo import CHAT, RESPONSES, TEXT, WEATHER, say
from tests.golden.instance import Instance, serving, until
from tests.golden.normalise import Normaliser
from tests.golden.paced import HeldEngine, HeldHosted

CLIENT_HEADERS = {
    "Authorization": "Bearer client-secret-1",
    "X-API-Key": "client-secret-2",
    "Cookie": "a=b",
    "User-Agent": "golden/1",
    "Accept": "text/event-stream",
    "Accept-Language": "th",
    "X-Custom": "kept?",
    "X-Request-Id": "mine-1",
    "X-Forwarded-For": "10.1.2.3",
    "Via": "1.1 proxy",
    "OpenAI-Organization": "org",
    "OpenAI-Beta": "x=1",
    "X-Stainless-Lang": "python",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "X-Request-Priority": "low",
    "x-appliance-stay-local": "0",
    "TE": "trailers",
    "Origin": "https://app.example",
    "Referer": "https://app.example/",
    "Accept-Encoding": "gzip",
}


def host_of(url: str) -> str:
    return url.split("/")[2]


async def hosted_relay() -> dict[str, Any]:
    """A hosted API with real streams; two endpoints, tried in order."""
    return await _hosted("relay")


async def hosted_simulate() -> dict[str, Any]:
    """A hosted API that is asked for whole answers; streams are paced out of them."""
    return await _hosted("simulate")


async def hosted_auto() -> dict[str, Any]:
    """The default: streams as they come, and paced out of what comes in one piece."""
    async with HostedApi() as api, _before([api], UPSTREAM_STREAMING="auto") as instance:
        await _asked(instance, [api], "stream", "POST", CHAT, say("Hello", stream=True))
        await _asked(instance, [api], "one piece", "POST", CHAT, say("Hello", stream=True), how.OnePiece())
        await _asked(
            instance,
            [api],
            "one piece, usage",
            "POST",
            CHAT,
            say("Hello", stream=True, stream_options={"include_usage": True}),
            how.OnePiece(),
        )
        await _asked(
            instance,
            [api],
            "one piece in Ollama's dialect",
            "POST",
            "/api/chat",
            say("Hello"),
            how.OnePiece(),
        )
        await _asked(instance, [api], "odd stream", "POST", CHAT, say("Hello", stream=True), how.OddStream())
        await _asked(instance, [api], "no done", "POST", CHAT, say("Hello", stream=True), how.NoDone())
        return instance.record


def _before(apis: list[HostedApi], **variables: str) -> Any:
    known = {host_of(api.base_url): f"<hosted-{number}>" for number, api in enumerate(apis)}
    return serving(
        known=known,
        NOVITA_API_KEY=KEY,
        NOVITA_OPENAI_ENDPOINTS=";".join(api.base_url for api in apis),
        **variables,
    )


async def _hosted(streaming: str) -> dict[str, Any]:
    async with (
        HeldHosted() as one,
        HeldHosted() as two,
        _before([one, two], UPSTREAM_STREAMING=streaming) as instance,
    ):
        apis = [one, two]
        for name, path, body in (
            ("whole", CHAT, say("Hello", model="somebody/else", temperature=0.5, unknown={"a": 1})),
            ("stream", CHAT, say("Hello", stream=True)),
            ("stream with usage", CHAT, say("Hello", stream=True, stream_options={"include_usage": True})),
            ("tools", CHAT, say("Hello", tools=[WEATHER])),
            ("tools, stream", CHAT, say("Hello", tools=[WEATHER], stream=True)),
            ("two choices, stream", CHAT, say("Hello", n=2, stream=True)),
            ("logprobs", CHAT, say("Hello", logprobs=True)),
            ("completions", TEXT, {"prompt": "Hello"}),
            ("completions, stream", TEXT, {"prompt": "Hello", "stream": True}),
            ("embeddings", "/v1/embeddings", {"input": ["a", "bb"], "model": "x"}),
            ("embeddings, base64", "/v1/embeddings", {"input": "a", "encoding_format": "base64"}),
            ("responses", RESPONSES, {"input": "Hello"}),
            ("responses, stream", RESPONSES, {"input": "Hello", "stream": True}),
            (
                "ollama chat",
                "/api/chat",
                say("Hello", options={"temperature": 0.1, "num_predict": 9, "top_k": 3}),
            ),
            ("ollama chat, whole", "/api/chat", say("Hello", stream=False, tools=[WEATHER])),
            ("ollama generate", "/api/generate", {"prompt": "Hello", "system": "be kind"}),
            ("ollama embed", "/api/embed", {"input": ["a", "bb"]}),
        ):
            await _asked(instance, apis, name, "POST", path, body)
        await _asked(instance, apis, "headers", "POST", CHAT, say("Hello"), headers=CLIENT_HEADERS)
        await _asked(
            instance, apis, "headers, stream", "POST", CHAT, say("Hello", stream=True), headers=CLIENT_HEADERS
        )
        one.reasoning = "First I think."
        await _asked(instance, apis, "reasoning, stream", "POST", CHAT, say("Hello", stream=True))
        await _asked(
            instance, apis, "reasoning in Ollama's dialect", "POST", "/api/chat", say("Hello", think=True)
        )
        one.reasoning = ""
        for status in (400, 401, 402, 403, 404, 422, 429, 500, 503):
            await _asked(
                instance,
                apis,
                f"status {status}",
                "POST",
                CHAT,
                say("Hello"),
                how.Status(status),
                how.Status(status),
            )
        for name, fault in {
            "rubbish": how.InvalidResponse(),
            "error object": how.ErrorObject(),
            "status 503": how.Status(503, body="<html>busy</html>"),
        }.items():
            await _asked(
                instance, apis, f"all attempts fail: {name}", "POST", CHAT, say("Hello"), fault, fault
            )
            await _asked(
                instance,
                apis,
                f"all attempts fail: {name}, stream",
                "POST",
                CHAT,
                say("Hello", stream=True),
                fault,
                fault,
            )
            await _asked(
                instance,
                apis,
                f"all attempts fail: {name}, Ollama",
                "POST",
                "/api/chat",
                say("Hello"),
                fault,
                fault,
            )
            await _asked(instance, apis, f"first attempt fails: {name}", "POST", CHAT, say("Hello"), fault)
        for name, behaviour in {
            "cut stream": how.CutStream(3),
            "cut before the first event": how.CutStream(0),
            "error event": how.ErrorEvent(),
            "odd stream": how.OddStream(),
            "no done": how.NoDone(),
            "one piece": how.OnePiece(),
        }.items():
            await _asked(instance, apis, name, "POST", CHAT, say("Hello", stream=True), behaviour)
            if name != "no done":  # with usage after the finish it depends on what comes in one read
                await _asked(instance, apis, f"{name}, Ollama", "POST", "/api/chat", say("Hello"), behaviour)
        await _asked(
            instance, apis, "stay local", "POST", CHAT, say("Hello"), headers={"x-appliance-stay-local": "1"}
        )
        one.key = two.key = "sk_another_key_000000"
        await _asked(instance, apis, "a wrong key", "POST", CHAT, say("Hello"))
        await _asked(instance, apis, "a wrong key, Ollama", "POST", "/api/chat", say("Hello"))
        for path in (
            "/v1/models",
            "/api/tags",
            "/api/ps",
            "/healthz",
            "/health",
            "/api/v1/loadbalancer/loads",
        ):
            await instance.note(path, "GET", path)
        instance.put("receipts", instance.normaliser.value(await instance.json("GET", "/receipts")))
        await instance.note_metrics()
        return instance.record


async def _asked(
    instance: Instance,
    apis: Sequence[HostedApi],
    name: str,
    method: str,
    path: str,
    body: Any,
    *behaviours: Any,
    headers: dict[str, str] | None = None,
) -> None:
    """Ask, and record the answer and what each endpoint was sent. The first behaviour is the first endpoint's, the second the other's."""
    before = [len(api.records) for api in apis]
    for api, behaviour in zip(apis, behaviours, strict=False):
        api.script(behaviour)
    await instance.note(name, method, path, body, headers, seen=_tell(apis))
    for api in apis:
        api._script.clear()
    instance.record[name]["sent on"] = [
        _sent(instance.normaliser, number, record)
        for number, api in enumerate(apis)
        for record in api.records[before[number] :]
    ]


def _tell(servers: Sequence[Any]) -> Callable[[bytes], None]:
    """Give what tells the stand-ins that wait for the client how far it is."""

    def take(so_far: bytes) -> None:
        for server in servers:
            if isinstance(server, HeldHosted | HeldEngine):
                server.seen.take(so_far)

    return take


def _sent(normaliser: Normaliser, number: int, record: Record) -> dict[str, Any]:
    headers = {name: normaliser.headers([(name, value)])[name] for name, value in record.headers.items()}
    return {
        "to": number,
        "line": f"{record.method} {record.path}",
        "headers": headers,
        "body": normaliser.value(record.body),
    }


# ---- engines


async def backends() -> dict[str, Any]:
    """A llama-server's and a vLLM's stand-in: always the first that has room, unless something is said."""
    async with (
        HeldEngine("llamacpp", models=("tiny", "alpha")) as one,
        HeldEngine("vllm", models=("tiny", "beta"), key="engine-key-0") as two,
    ):
        table = {
            "backends": [
                {"name": "e0", "url": one.url, "weight": 2},
                {"name": "e1", "url": two.url, "api_key": "engine-key-0"},
            ]
        }
        async with serving(
            known=_named(one, two),
            CONFIG_PATH="{folder}/table.json",
            LB_ENABLED="0",
            METRICS_CACHE_TTL_SECONDS="0.1",
            files={"table.json": table},
        ) as instance:
            await until(lambda: _ready(instance, 2), what="both engines are ready")
            for name, path, body, headers in (
                ("whole", CHAT, say("Hello", model="tiny"), {}),
                ("stream", CHAT, say("Hello", model="tiny", stream=True), {}),
                ("the second's model", CHAT, say("Hello", model="beta"), CLIENT_HEADERS),
                ("the second's model, stream", CHAT, say("Hello", model="beta", stream=True), {}),
                ("no such model", CHAT, say("Hello", model="gamma"), {}),
                ("no such model, Ollama", "/api/chat", say("Hello", model="gamma"), {}),
                ("pinned", CHAT, say("Hello", model="tiny"), {"x-appliance-backend": "e1"}),
                ("pinned to nobody", CHAT, say("Hello", model="tiny"), {"x-appliance-backend": "e7"}),
                (
                    "pinned where the model is not",
                    CHAT,
                    say("Hello", model="alpha"),
                    {"x-appliance-backend": "e1"},
                ),
                ("headers", CHAT, say("Hello", model="tiny"), CLIENT_HEADERS),
                ("ollama", "/api/chat", say("Hello", model="tiny"), {}),
                ("responses", RESPONSES, {"input": "Hello", "model": "tiny"}, {}),
                ("num_ctx too large", "/api/chat", say("x", model="tiny", options={"num_ctx": 99999}), {}),
                ("priority", CHAT, say("Hello", model="tiny"), {"X-Request-Priority": "high"}),
            ):
                await _sent_on(instance, [one, two], name, path, body, headers)
            for name, faults in {
                "both refuse": ("refuse", "refuse"),
                "both 500": ("status_500", "status_500"),
                "both 503": ("status_503", "status_503"),
                "both 429": ("status_429", "status_429"),
                "both rubbish": ("invalid_response", "invalid_response"),
                "the first 500": ("status_500", ""),
                "cut": ("cut", "cut"),
                "error event 400": ("event_400", ""),
                "error event 500": ("event_500", "event_500"),
                "too long": ("context", "context"),
            }.items():
                for kind, more in {"whole": {}, "stream": {"stream": True}}.items():
                    await until(lambda: _ready(instance, 2), what="both engines are ready")
                    # A kept connection that is closed without a byte is replaced once.
                    one.faults, two.faults = (
                        [fault] * (2 if fault == "refuse" else 1) if fault else [] for fault in faults
                    )
                    one.is_held = two.is_held = kind == "stream"
                    await _sent_on(
                        instance, [one, two], f"{name}, {kind}", CHAT, say("Hello", model="tiny", **more), {}
                    )
                    one.faults, two.faults = [], []
            await _readings(instance)
            await _passage(instance)
            await instance.note_metrics()
            return instance.record


async def _ready(instance: Instance, count: int) -> bool:
    details = (await instance.json("GET", "/health"))["details"]
    return len(details) == count and all(
        row["ready"] and row["metrics"] and not row["metrics"]["requests_processing"] for row in details
    )


def _named(*engines: EngineServer) -> dict[str, str]:
    return {host_of(engine.url): f"<engine-{number}>" for number, engine in enumerate(engines)}


async def _sent_on(
    instance: Instance,
    engines: Sequence[EngineServer],
    name: str,
    path: str,
    body: Any,
    headers: dict[str, str],
) -> None:
    before = [len(engine.asked) for engine in engines]
    await instance.note(name, "POST", path, body, headers, seen=_tell(engines))
    instance.record[name]["sent on"] = [
        {
            "to": number,
            "headers": instance.normaliser.headers(list(engine.headers[at].items())),
            "body": instance.normaliser.value(engine.asked[at]),
        }
        for number, engine in enumerate(engines)
        for at in range(before[number], len(engine.asked))
    ]


async def _readings(instance: Instance) -> None:
    await until(lambda: _ready(instance, 2), what="both engines are ready again")
    base = "/api/v1/loadbalancer"
    for path in (
        "/health",
        "/healthz",
        "/v1/models",
        "/v1/models/beta",
        "/v1/models/gamma",
        "/api/tags",
        "/api/ps",
        f"{base}/strategy",
        f"{base}/loads",
        f"{base}/load?instance_id=e1",
        f"{base}/load?instance_id=e9",
    ):
        await instance.note(path, "GET", path)
    await instance.note("show", "POST", "/api/show", {"model": "tiny"})
    await instance.note(
        "switch the strategy", "PUT", f"{base}/strategy", {"strategy": "weighted_round_robin"}
    )
    await instance.note("switch it back", "PUT", f"{base}/strategy", {"strategy": "least_busy"})
    instance.put("receipts", instance.normaliser.value(await instance.json("GET", "/receipts")))


async def _passage(instance: Instance) -> None:
    for method, path, body in (
        ("POST", "/tokenize", {"model": "tiny", "content": "Hello"}),
        ("GET", "/props", None),
        ("GET", "/slots", None),
        ("GET", "/slots?fail_on_no_slot=1", None),
        ("POST", "/completion", {"prompt": "Hello"}),
        ("POST", "/v1/rerank", {"model": "tiny", "query": "a", "documents": ["b"]}),
        ("GET", "/backends/e0/props", None),
        ("GET", "/backends/e1/v1/models", None),
        ("HEAD", "/backends/e1/v1/models", None),
        ("GET", "/backends/e7/props", None),
        ("GET", "/backends/e0", None),
        ("DELETE", "/v1/files/1", None),
        ("POST", "/lora-adapters", []),
        ("POST", "/backends/e1/v1/chat/completions", say("Hello", model="tiny")),
        ("POST", "/backends/e0/v1/chat/completions", say("Hello", model="tiny", stream=True)),
        ("OPTIONS", "/slots", None),
    ):
        await instance.note(f"passage: {method} {path}", method, path, body)
    await instance.note("passage: pinned by a header", "GET", "/props", None, {"x-appliance-backend": "e1"})
    upgrade = b" HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    await instance.note_raw("passage: an upgrade that the engine refuses", b"GET /v1/realtime" + upgrade)
    await instance.note_raw("passage: an upgrade at one backend", b"GET /backends/e1/ws" + upgrade)
    await instance.note_raw("passage: an upgrade at no backend", b"GET /backends/e7/ws" + upgrade)


async def full() -> dict[str, Any]:
    """One engine with one slot: a full line, a time-out in line, and an overflow to the hosted API."""
    record: dict[str, Any] = {}
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(EngineServer("llamacpp", slots=1))
        api = await stack.enter_async_context(HostedApi())
        known = {**_named(engine), host_of(api.base_url): "<hosted-0>"}
        plain = {
            "METRICS_CACHE_TTL_SECONDS": "60",
            "MAX_ALLOWED_REQUEST_QUEUE": "1",
            "BACKENDS": f"e0={engine.url}",
        }
        for name, variables in {
            "no line": {"QUEUE_LIMIT": "0"},
            "a short time in line": {"QUEUE_LIMIT": "5", "QUEUE_TIMEOUT_S": "0.2"},
            "overflow": {
                "LB_OVERFLOW": "hosted",
                "NOVITA_API_KEY": KEY,
                "NOVITA_OPENAI_ENDPOINTS": api.base_url,
            },
        }.items():
            async with serving(known=known, **plain, **variables) as instance:
                await until(lambda instance=instance: _one_ready(instance), what="the engine is ready")
                engine.faults = ["hang"]
                before = len(engine.asked)
                first = asyncio.create_task(instance.ask("POST", CHAT, say("first", model="tiny")))
                await until(
                    lambda before=before: len(engine.asked) > before, what="the first request is there"
                )
                for kind, path, body in (
                    ("whole", CHAT, say("x", model="tiny")),
                    ("stream", CHAT, say("x", model="tiny", stream=True)),
                    ("ollama", "/api/chat", say("x", model="tiny")),
                ):
                    await instance.note(f"{name}: {kind}", "POST", path, body)
                if name == "overflow":
                    await instance.note(
                        "overflow: stay local",
                        "POST",
                        CHAT,
                        say("x", model="tiny"),
                        {"x-appliance-stay-local": "0"},
                    )
                await instance.note(f"{name}: /health", "GET", "/health")
                first.cancel()
                await asyncio.wait([first])
                record |= instance.record
    return record


async def _one_ready(instance: Instance) -> bool:
    return any(row["ready"] and row["metrics"] for row in (await instance.json("GET", "/health"))["details"])


async def no_backend() -> dict[str, Any]:
    """The only engine is down."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(EngineServer("vllm"))
        async with serving(
            known=_named(engine),
            BACKENDS=f"e0={engine.url}",
            METRICS_CACHE_TTL_SECONDS="0.2",
            BACKEND_STARTUP_GRACE_S="0",
        ) as instance:
            await until(lambda: _one_ready(instance), what="the engine is ready")
            await engine.stop()
            await until(lambda: _is_down(instance), what="the engine is down")
            for name, path, body in (
                ("chat", CHAT, say("x", model="tiny")),
                ("stream", CHAT, say("x", model="tiny", stream=True)),
                ("ollama", "/api/chat", say("x", model="tiny")),
                ("passage", "/tokenize", {"content": "x"}),
                ("one backend", "/backends/e0/tokenize", {"content": "x"}),
            ):
                await instance.note(name, "POST", path, body)
            await instance.note("/health", "GET", "/health")
            await instance.note_raw(
                "upgrade",
                b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            return instance.record


async def circuit() -> dict[str, Any]:
    """An engine whose first failure rests it for long."""
    async with (
        EngineServer("vllm") as one,
        EngineServer("vllm") as two,
        serving(
            known=_named(one, two),
            BACKENDS=f"e0={one.url},e1={two.url}",
            LB_ENABLED="0",
            METRICS_CACHE_TTL_SECONDS="300",
            BREAKER_FAILURES="1",
            BREAKER_REST_S="600",
        ) as instance,
    ):
        await until(lambda: _ready(instance, 2), what="both engines are ready")
        one.faults = ["invalid_response"]
        for name in ("the first fails", "the first is passed over"):
            await _sent_on(instance, [one, two], name, CHAT, say("Hello", model="tiny"), {})
        await until(lambda: _is_one_ready(instance), what="the other engine is ready")
        for path in ("/health", "/healthz", "/api/v1/loadbalancer/loads"):
            await instance.note(path, "GET", path)
        instance.put("receipts", instance.normaliser.value(await instance.json("GET", "/receipts")))
        await instance.note_metrics()
        two.faults = ["invalid_response"]
        for name in ("both have failed", "both are at rest"):
            await _sent_on(instance, [one, two], name, CHAT, say("Hello", model="tiny"), {})
        await instance.note("/health: both", "GET", "/health")
        await _sent_on(
            instance,
            [one, two],
            "pinned to one",
            CHAT,
            say("Hello", model="tiny"),
            {"x-appliance-backend": "e0"},
        )
        return instance.record


async def _is_one_ready(instance: Instance) -> bool:
    rows = (await instance.json("GET", "/health"))["details"]
    return rows[1]["ready"] and not any(
        row["metrics"]["requests_processing"] for row in rows if row["metrics"]
    )


async def _is_down(instance: Instance) -> bool:
    return all(row["standing"] == "down" for row in (await instance.json("GET", "/health"))["details"])


# ---- adapters


async def lora() -> dict[str, Any]:
    """LoRA adapters on two stand-ins of vLLM, and what is refused; the sidecar's port tells the same in its own shapes."""
    async with AsyncExitStack() as stack:
        one, two = [await stack.enter_async_context(LoraEngine("vllm", models=("base",))) for _ in range(2)]
        async with serving(
            known=_named(one, two),
            BACKENDS=f"e0={one.url},e1={two.url}",
            METRICS_CACHE_TTL_SECONDS="0.2",
            LB_ENABLED="0",
            SIDECAR_BACKEND="e0",
            extra_ports=("SIDECAR_PORT",),
            LORA_ALLOWED_DIRS="{folder}/files",
            POD_NAME="pod-1",
        ) as instance:
            await until(lambda: _ready(instance, 2), what="both engines are ready")
            folder, side = str(instance.folder / "files"), instance.ports["SIDECAR_PORT"]
            bodies = {
                "load": {"lora_name": "style", "lora_path": f"{folder}/style"},
                "load again": {"lora_name": "style", "lora_path": f"{folder}/style"},
                "load from elsewhere": {"lora_name": "style", "lora_path": f"{folder}/other"},
                "a folder that is not allowed": {"lora_name": "x", "lora_path": "/etc/x"},
                "no name": {"lora_path": f"{folder}/x"},
                "no path": {"lora_name": "x"},
                "a wrong type": {"lora_name": 5},
                "the base model's name": {"lora_name": "base", "lora_path": f"{folder}/x"},
                "an unknown base model": {
                    "lora_name": "x",
                    "lora_path": f"{folder}/x",
                    "base_model": "nobody",
                },
                "bad json": "{",
                "an unknown backend": {"lora_name": "x", "lora_path": f"{folder}/x", "backend": "e7"},
                "a source of no kind": {"lora_name": "x", "source": "ftp://x/y"},
            }
            await instance.note("list: empty", "GET", "/v1/lora_adapters")
            await instance.note("sidecar, list: empty", "GET", "/v1/lora_adapters", port=side)
            for name, body in bodies.items():
                await instance.note(name, "POST", "/v1/load_lora_adapter", body)
                await instance.note(f"sidecar, {name}", "POST", "/v1/load_lora_adapter", body, port=side)
            await instance.note("list: one", "GET", "/v1/lora_adapters")
            await instance.note("chat with it", "POST", CHAT, say("Hello", model="style"))
            await instance.note("chat with one that is not", "POST", CHAT, say("Hello", model="nobody"))
            await instance.note("models", "GET", "/v1/models")
            one.refuses = (500, "on purpose")
            await instance.note(
                "refused by an engine",
                "POST",
                "/v1/load_lora_adapter",
                {"lora_name": "bad", "lora_path": f"{folder}/bad"},
            )
            await instance.note(
                "sidecar, refused by an engine",
                "POST",
                "/v1/load_lora_adapter",
                {"lora_name": "bad", "lora_path": f"{folder}/bad"},
                port=side,
            )
            one.refuses = None
            await instance.note_metrics()
            await instance.note("unload", "POST", "/v1/unload_lora_adapter", {"lora_name": "style"})
            await instance.note("unload again", "POST", "/v1/unload_lora_adapter", {"lora_name": "style"})
            await instance.note(
                "sidecar, unload again", "POST", "/v1/unload_lora_adapter", {"lora_name": "style"}, port=side
            )
            await instance.note("unload without a name", "POST", "/v1/unload_lora_adapter", {})
            await instance.note("by GET", "GET", "/v1/load_lora_adapter")
            await _sidecar(instance, side)
            return instance.record


async def _sidecar(instance: Instance, port: int) -> None:
    """The sidecar's other addresses."""
    for method, path in (
        ("GET", "/health"),
        ("HEAD", "/health"),
        ("GET", "/ready"),
        ("HEAD", "/ready"),
        ("GET", "/nothing"),
        ("POST", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/nobody"),
        ("DELETE", "/v1/jobs/nobody"),
        ("GET", "/v1/jobs/nobody/stream"),
        ("GET", "/healthz"),
    ):
        await instance.note(
            f"sidecar: {method} {path}", method, path, None if method != "POST" else {}, port=port
        )
    await instance.note(
        "sidecar: download of no kind",
        "POST",
        "/v1/download_model",
        {"source": "ftp://x/y", "output_dir": "/tmp/x"},
        port=port,
    )
    await instance.note("sidecar: download without a source", "POST", "/v1/download_model", {}, port=port)
    await instance.note_metrics("sidecar: metrics", port=port)
