"""The handlers of Ollama's dialect, on the real router with a scripted backend."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import (
    ApplianceError,
    Exhausted,
    Invalid,
    NoSuchModel,
    Unsupported,
    UpstreamFailed,
)
from appliance.engines.receipts import Receipt
from appliance.engines.settings import EngineSettings
from appliance.engines.stream import Stream
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, Operation
from appliance.front.ollama import handlers as ollama
from appliance.front.ollama.handlers import OllamaHandlers
from appliance.front.pipeline.errors import status_of
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from tests.fakes.backend import ScriptedBackend, router_of

USER = [{"role": "user", "content": "hi"}]
WHOLE = jsons.dumps(
    {
        "choices": [{"message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
)
HEARTBEAT, DONE = b": heartbeat\n\n", b"data: [DONE]\n\n"


def said(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return (
        b"data: "
        + jsons.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})
        + b"\n\n"
    )


STREAM = [
    HEARTBEAT,
    said({"role": "assistant", "content": ""}),
    said({"content": "hel"}),
    HEARTBEAT,
    said({"content": "lo"}),
    said({}, "stop") + b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n',
    DONE,
]


class Events(Stream):
    """A scripted stream: bytes are yielded, errors raised, `hang` waits; each piece takes a second of the clock."""

    def __init__(self, clock: FakeClock, script: list[Any]) -> None:
        self._clock = clock
        self._script: Iterator[Any] = iter(script)
        self.is_closed = False
        self.is_waiting = asyncio.Event()

    async def __anext__(self) -> bytes:
        for step in self._script:
            if isinstance(step, ApplianceError):
                raise step
            if step == "hang":
                self.is_waiting.set()
                await asyncio.Event().wait()
            self._clock.advance(1)
            return bytes(step)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True


class Scripted(ScriptedBackend):
    """Replies by `script`: bytes = whole, with `reply_status`; a list = a stream; an error = raised."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.script: Any = WHOLE
        self.reply_status = 200
        self.events: Events | None = None

    def cards(self) -> list[ModelCard]:
        return [ModelCard("house/model", 1_700_000_000, "novita", "maker/Llama-9b", ("house",))]

    def serves(self, model: str) -> bool:
        return model != "nobody"

    async def answer(self, request: EngineRequest) -> EngineReply:
        if isinstance(self.script, ApplianceError):
            raise self.script
        if isinstance(self.script, bytes):
            return EngineReply(status=self.reply_status, body=self.script)
        self.events = Events(self._clock, self.script)
        return EngineReply(events=self.events)


class Api:
    """The handlers over a real router."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.backend = Scripted(self.clock)
        self.handlers = OllamaHandlers(
            router_of(self.backend, settings=EngineSettings(_env_file=None, **settings), clock=self.clock),
            clock=self.clock,
        )

    async def ask(self, handler: str, ask: Any = None, *, body: bytes | None = None) -> Response:
        data = body if body is not None else b"" if ask is None else jsons.dumps(ask)
        path = next(route.path for route in self.handlers.routes() if route.handler.__name__ == handler)
        request = Request(
            "POST",
            path,
            {},
            data,
            "127.0.0.1",
            "req_1",
            Receipt("req_1"),
            path,
            began_s=self.clock.monotonic_s(),
        )
        response: Response = await getattr(self.handlers, handler)(request)
        return response

    async def result(self, handler: str, ask: Any) -> Any:
        """Return the response's one JSON object."""
        response = await self.ask(handler, ask)
        assert (response.status, response.content_type, response.pieces) == (200, "application/json", None)
        return jsons.loads(response.body)

    async def lines(self, handler: str, ask: Any) -> list[Any]:
        """Return the objects of a stream, and close it."""
        response = await self.ask(handler, ask)
        assert response.content_type == "application/x-ndjson"
        assert response.pieces is not None
        lines = [jsons.loads(line) async for piece in response.pieces for line in piece.splitlines()]
        await response.pieces.aclose()
        return lines

    async def refused(self, handler: str, ask: Any = None, *, body: bytes | None = None) -> ApplianceError:
        with pytest.raises(ApplianceError) as caught:
            await self.ask(handler, ask, body=body)
        return caught.value


@pytest.fixture
def api() -> Api:
    return Api()


# ---- the table


def test_no_address_is_listed_twice(api: Api) -> None:
    paths = [(method, route.path) for route in api.handlers.routes() for method in route.methods]
    assert len(paths) == len(set(paths))


# ---- about models


async def test_root_and_version_are_what_clients_look_for(api: Api) -> None:
    assert (await api.ask("root")).body == b"Ollama is running"
    major, minor, patch = (await api.result("version", None))["version"].split(".")
    assert all(part.isdigit() for part in (major, minor, patch))


async def test_tags_have_ollamas_fields_and_the_compatible_ones(api: Api) -> None:
    [model] = (await api.result("tags", None))["models"]
    # see docs/compatibility.md
    assert (model["name"], model["upstream"], model["aliases"]) == (
        "house/model",
        "maker/Llama-9b",
        ["house"],
    )
    assert model["model"] == "house/model"  # Ollama
    assert model["modified_at"] == "2023-11-14T22:13:20.000000Z"
    assert model["size"] == 0
    assert len(bytes.fromhex(model["digest"])) == 32
    assert model["digest"] == (await api.result("ps", None))["models"][0]["digest"]
    assert model["details"]["family"] == "llama"
    assert {"completion", "tools"} <= set(model["capabilities"])
    assert (model["remote_model"], model["remote_host"]) == (
        "maker/Llama-9b",
        "https://api.novita.ai/openai/v1",
    )


async def test_ps_says_that_a_relayed_model_takes_no_memory(api: Api) -> None:
    [model] = (await api.result("ps", None))["models"]
    assert (model["name"], model["size"], model["size_vram"]) == ("house/model", 0, 0)
    assert model["expires_at"] > "2027-12"


@pytest.mark.parametrize(
    "ask", [{"model": "house/model"}, {"name": "house"}, {"model": "any", "verbose": True}]
)
async def test_show_finds_a_model_by_any_accepted_name(api: Api, ask: dict[str, Any]) -> None:
    shown = await api.result("show", ask)
    assert shown["model_info"]["general.name"] == "house/model"
    assert (shown["template"], shown["parameters"]) == ("", "")
    assert "maker/Llama-9b" in shown["modelfile"]
    assert "license" not in shown


@pytest.mark.parametrize(
    ("ask", "name"),
    [({}, "house/model"), ({"model": "x"}, "x"), ({"name": "y", "stream": True}, "y"), (None, "house/model")],
)
async def test_pull_of_a_relayed_model_sends_four_lines(api: Api, ask: Any, name: str) -> None:
    response = await api.ask("pull", ask)
    assert response.content_type == "application/x-ndjson"
    assert [jsons.loads(line)["status"] for line in response.body.splitlines()] == [
        f"pulling {name}",
        "verifying sha256",
        "writing manifest",
        "success",
    ]


async def test_pull_without_a_stream_is_its_last_line(api: Api) -> None:
    assert await api.result("pull", {"model": "x", "stream": False}) == {"status": "success"}


async def test_writes_to_a_store_are_not_supported(api: Api) -> None:
    error = await api.refused("unsupported")
    assert isinstance(error, Unsupported)
    assert "models cannot be created" in error.message


# ---- streams


async def test_a_chat_streams_unless_told_not_to(api: Api) -> None:
    api.backend.script = STREAM
    lines = await api.lines("chat", {"model": "any", "messages": USER})
    assert [(line["message"]["content"], line["done"]) for line in lines] == [
        ("hel", False),
        ("lo", False),
        ("", True),
    ]
    assert {line["model"] for line in lines} == {"house/model"}
    [request] = api.backend.asked
    assert (request.operation, request.model, request.stream, request.raw) == (
        Operation.CHAT,
        "any",
        True,
        None,
    )
    assert request.body == {
        "messages": USER,
        "model": "any",
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert api.backend.events is not None
    assert api.backend.events.is_closed


async def test_the_numbers_of_a_stream_are_measured(api: Api) -> None:
    api.backend.script = STREAM
    last = (await api.lines("chat", {"messages": USER, "stream": True}))[-1]
    assert (last["prompt_eval_count"], last["eval_count"]) == (3, 2)
    assert (last["prompt_eval_duration"], last["eval_duration"], last["total_duration"]) == (
        3 * 10**9,
        4 * 10**9,
        7 * 10**9,
    )


async def test_a_whole_reply_is_streamed_too(api: Api) -> None:
    from_openai_reply = {**jsons.loads(WHOLE), "object": "chat.completion"}
    api.backend.script = jsons.dumps(from_openai_reply)
    lines = await api.lines("chat", {"messages": USER})
    assert "".join(line["message"]["content"] for line in lines) == "hello"
    assert lines[-1]["eval_count"] == 2


@pytest.mark.parametrize(
    "script",
    [
        [UpstreamFailed("gone")],
        [HEARTBEAT, said({"role": "assistant"}), UpstreamFailed("gone")],
        [said({"role": "assistant"})],
        [],
        [b'data: {"error":{"message":"gone"}}\n\n'],
        [b"data: {rubbish\n\n"],
    ],
)
async def test_a_failure_before_the_first_line_has_its_status(api: Api, script: list[Any]) -> None:
    api.backend.script = script
    error = await api.refused("chat", {"messages": USER})
    assert status_of(error) == 502
    assert api.backend.events is not None
    assert api.backend.events.is_closed


@pytest.mark.parametrize("ending", [[UpstreamFailed("it broke off")], []])
async def test_a_failure_after_the_first_line_becomes_a_last_line(api: Api, ending: list[Any]) -> None:
    api.backend.script = [*STREAM[:3], *ending]
    response = await api.ask("chat", {"messages": USER})
    assert response.pieces is not None
    assert jsons.loads(await anext(response.pieces))["message"]["content"] == "hel"
    with pytest.raises(UpstreamFailed) as caught:
        await anext(response.pieces)
    last = response.on_error(caught.value)
    assert last.endswith(b"\n")
    assert "broke" in jsons.loads(last)["error"]


async def test_leaving_before_the_first_line_closes_the_upstream(api: Api) -> None:
    api.backend.script = [said({"role": "assistant"}), "hang"]
    task = asyncio.get_running_loop().create_task(api.ask("chat", {"messages": USER}))
    while api.backend.events is None:
        await asyncio.sleep(0)
    await api.backend.events.is_waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert api.backend.events.is_closed


@pytest.mark.parametrize("taken", [0, 1])
async def test_leaving_within_a_stream_closes_the_upstream(api: Api, taken: int) -> None:
    api.backend.script = STREAM
    response = await api.ask("generate", {"prompt": "hi"})
    assert response.pieces is not None
    for _ in range(taken):
        await anext(response.pieces)
    await response.pieces.aclose()
    assert api.backend.events is not None
    assert api.backend.events.is_closed


async def test_heartbeats_are_spaces_and_never_lines(api: Api) -> None:
    api.backend.script = [HEARTBEAT] * 5 + STREAM
    assert len(await api.lines("generate", {"prompt": "hi"})) == 3
    assert (await api.ask("generate", {"prompt": "hi"})).heartbeat == b" "


# ---- one piece


async def test_a_whole_chat(api: Api) -> None:
    out = await api.result("chat", {"messages": USER, "stream": False})
    assert out == {
        "model": "house/model",
        "created_at": out["created_at"],
        "message": {"role": "assistant", "content": "hello"},
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 3,
        "eval_count": 2,
    }
    assert "stream" not in api.backend.asked[0].body


async def test_a_whole_generate_has_the_compatible_fields(api: Api) -> None:
    out = await api.result("generate", {"model": "any", "prompt": "hi", "stream": False})
    assert (out["model"], out["upstream_model"], out["response"], out["done"]) == (
        "house/model",
        "maker/Llama-9b",
        "hello",
        True,
    )


@pytest.mark.parametrize("is_stream", [True, False])
async def test_generate_continues_from_its_context(api: Api, is_stream: bool) -> None:
    api.backend.script = STREAM if is_stream else WHOLE
    if is_stream:
        *parts, last = await api.lines("generate", {"prompt": "hi", "system": "S"})
        assert not any("context" in part for part in parts)
    else:
        last = await api.result("generate", {"prompt": "hi", "system": "S", "stream": False})
    api.backend.script = WHOLE
    await api.result("generate", {"prompt": "and?", "context": last["context"], "stream": False})
    assert [m["content"] for m in api.backend.asked[-1].body["messages"]] == ["S", "hi", "hello", "and?"]


async def test_raw_is_a_completion_and_has_no_context(api: Api) -> None:
    api.backend.script = jsons.dumps({"choices": [{"text": "hello", "finish_reason": "length"}]})
    out = await api.result("generate", {"prompt": "hi", "raw": True, "stream": False})
    assert (out["response"], out["done_reason"]) == ("hello", "length")
    assert "context" not in out
    assert api.backend.asked[0].operation is Operation.COMPLETION


async def test_thinking_is_hidden_when_it_is_not_wanted(api: Api) -> None:
    api.backend.script = jsons.dumps({"choices": [{"message": {"content": "a", "reasoning": "hm"}}]})
    assert (await api.result("chat", {"messages": USER, "stream": False}))["message"]["thinking"] == "hm"
    assert (
        "thinking"
        not in (await api.result("chat", {"messages": USER, "stream": False, "think": False}))["message"]
    )


@pytest.mark.parametrize(
    ("handler", "ask", "reason"),
    [
        ("generate", {}, "load"),
        ("generate", {"prompt": ""}, "load"),
        ("generate", {"prompt": None, "messages": []}, "load"),
        ("generate", {"keep_alive": 0}, "unload"),
        ("generate", {"keep_alive": "0s"}, "unload"),
        ("generate", {"keep_alive": -1}, "load"),
        ("chat", {}, "load"),
        ("chat", {"messages": []}, "load"),
        ("chat", {"messages": None, "keep_alive": "0"}, "unload"),
    ],
)
async def test_a_request_without_a_prompt_only_loads(
    api: Api, handler: str, ask: dict[str, Any], reason: str
) -> None:
    out = await api.result(handler, {**ask, "model": "any", "stream": False})
    assert (out["model"], out["done"], out["done_reason"]) == ("house/model", True, reason)
    assert (
        out["message"] == {"role": "assistant", "content": ""} if handler == "chat" else out["response"] == ""
    )
    line = (await api.ask(handler, ask)).body
    assert line.count(b"\n") == 1
    assert jsons.loads(line)["done_reason"] == reason
    assert not api.backend.asked


class Log:
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.entries.append({"event": event, **fields})


async def test_unknown_options_are_logged_and_shortened(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    monkeypatch.setattr(ollama, "log", log)
    await api.result(
        "chat", {"messages": USER, "stream": False, "options": {f"o{n}" + "x" * 100: 1 for n in range(99)}}
    )
    [entry] = log.entries
    assert (entry["event"], entry["id"], entry["count"]) == ("ignored", "req_1", 99)
    assert len(entry["names"]) == ollama.MAX_NAMES_LOGGED
    assert max(map(len, entry["names"])) == 64


# ---- embeddings


def vectors(*rows: list[float]) -> bytes:
    return jsons.dumps(
        {
            "data": [{"index": i, "embedding": row} for i, row in enumerate(rows)],
            "usage": {"prompt_tokens": 4},
        }
    )


async def test_embed_returns_vectors_of_length_one(api: Api) -> None:
    api.backend.script = vectors([3, 4], [0, 2])
    out = await api.result("embed", {"model": "any", "input": ["a", "b"], "dimensions": 2, "truncate": True})
    assert out == {"model": "house/model", "embeddings": [[0.6, 0.8], [0.0, 1.0]], "prompt_eval_count": 4}
    [request] = api.backend.asked
    assert (request.operation, request.stream) == (Operation.EMBEDDING, False)
    assert request.body == {"model": "any", "input": ["a", "b"], "dimensions": 2}


async def test_dimensions_are_kept_where_an_engine_knows_none(api: Api) -> None:
    api.backend.script = vectors([3, 4, 12], [0, 2, 1])
    out = await api.result("embed", {"input": ["a", "b"], "dimensions": 2})
    assert out["embeddings"] == [[0.6, 0.8], [0.0, 1.0]]
    assert (await api.refused("embed", {"input": "a", "dimensions": -1})).param == "dimensions"


async def test_embeddings_returns_one_vector_unchanged(api: Api) -> None:
    api.backend.script = vectors([3, 4])
    assert await api.result("embeddings", {"prompt": "a"}) == {"embedding": [3.0, 4.0]}


@pytest.mark.parametrize(
    ("handler", "ask", "out"),
    [
        ("embed", {}, {"model": "house/model", "embeddings": []}),
        ("embed", {"input": ""}, {"model": "house/model", "embeddings": []}),
        ("embed", {"input": []}, {"model": "house/model", "embeddings": []}),
        ("embeddings", {}, {"embedding": []}),
        ("embeddings", {"prompt": ""}, {"embedding": []}),
    ],
)
async def test_nothing_to_embed_asks_no_engine(
    api: Api, handler: str, ask: dict[str, Any], out: dict[str, Any]
) -> None:
    assert await api.result(handler, ask) == out
    assert not api.backend.asked


@pytest.mark.parametrize("body", [vectors([1.0], [2.0]), b"{}", b"[]", b"no json", vectors()])
async def test_embeddings_that_do_not_fit_are_a_failure(api: Api, body: bytes) -> None:
    api.backend.script = body
    assert status_of(await api.refused("embed", {"input": "a"})) == 502


# ---- refusals


@pytest.mark.parametrize("handler", ["chat", "generate", "embed", "embeddings", "show"])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"{", "not valid JSON"),
        (b"[]", "an array"),
        (b'"x"', "a string"),
    ],
)
async def test_a_body_that_is_not_an_object_is_refused(
    api: Api, handler: str, body: bytes, words: str
) -> None:
    error = await api.refused(handler, body=body)
    assert isinstance(error, Invalid)
    assert words in error.message


@pytest.mark.parametrize(
    ("handler", "field", "value"),
    [
        *((handler, "model", 5) for handler in ("chat", "generate", "embed", "embeddings", "show", "pull")),
        ("show", "name", []),
        ("pull", "stream", "no"),
        ("pull", "insecure", 1),
        ("chat", "stream", "true"),
        ("chat", "stream", 0),
        ("chat", "messages", "hi"),
        ("chat", "messages", {}),
        ("chat", "tools", {}),
        ("chat", "options", []),
        ("chat", "logprobs", 1),
        ("chat", "top_logprobs", True),
        ("chat", "truncate", 1),
        ("chat", "shift", "x"),
        ("generate", "prompt", ["hi"]),
        ("generate", "system", 1),
        ("generate", "suffix", 1),
        ("generate", "template", 1),
        ("generate", "raw", 1),
        ("generate", "context", 5),
        ("generate", "images", "x"),
        ("embed", "input", 5),
        ("embed", "input", ["a", 5]),
        ("embed", "input", {}),
        ("embed", "dimensions", "2"),
        ("embed", "dimensions", True),
        ("embed", "truncate", "x"),
        ("embed", "keep_alive", "soon"),
        ("embed", "options", 1),
        ("embeddings", "prompt", ["a"]),
        ("embeddings", "keep_alive", []),
        ("chat", "keep_alive", "x"),
        ("generate", "keep_alive", "x"),
    ],
)
async def test_a_field_of_a_wrong_type_is_refused_by_name(
    api: Api, handler: str, field: str, value: Any
) -> None:
    error = await api.refused(handler, {"model": "m", field: value})
    assert isinstance(error, Invalid)
    assert error.param == field
    assert not api.backend.asked


async def test_show_needs_a_name(api: Api) -> None:
    assert (await api.refused("show", {})).message == "model is required"


@pytest.mark.parametrize(
    ("handler", "ask"),
    [
        ("chat", {"messages": USER}),
        ("chat", {}),
        ("generate", {"prompt": "hi"}),
        ("generate", {}),
        ("embed", {"input": "a"}),
        ("embeddings", {"prompt": "a"}),
        ("pull", {}),
        ("show", {}),
    ],
)
async def test_strict_needs_a_name_that_is_known(handler: str, ask: dict[str, Any]) -> None:
    api = Api(model_strict=True)
    assert (await api.refused(handler, ask)).message == "model is required"
    error = await api.refused(handler, {**ask, "model": "nobody"})
    assert isinstance(error, NoSuchModel)
    assert (status_of(error), error.message) == (404, "model 'nobody' not found")


@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (400, b'{"error":{"message":"too long"}}', "too long"),
        (422, b'{"error":"too long"}', "too long"),
        (400, b"oops", "status 400"),
        (403, b"{}", "status 403"),
        (503, b"[]", "status 503"),
    ],
)
async def test_an_engines_error_status_is_passed_on(
    api: Api,
    is_stream: bool,
    status: int,
    body: bytes,
    words: str,
) -> None:
    api.backend.script, api.backend.reply_status = body, status
    error = await api.refused("chat", {"messages": USER, "stream": is_stream})
    assert status_of(error) == status
    assert words in error.message


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"{}", b'{"choices":[]}'])
async def test_an_invalid_reply_is_a_failure_and_not_an_empty_response(api: Api, body: bytes) -> None:
    api.backend.script = body
    assert status_of(await api.refused("chat", {"messages": USER, "stream": False})) == 502


async def test_errors_of_the_engines_are_raised(api: Api) -> None:
    api.backend.script = Exhausted("too many", retry_after_s=3)
    assert (await api.refused("generate", {"prompt": "hi"})).retry_after_s == 3
