"""The handlers of the Responses API, on the real router with a scripted backend."""

from collections.abc import AsyncGenerator
from typing import Any, cast

import pytest

from appliance.base import jsons
from appliance.base.clock import FakeClock
from appliance.base.errors import Invalid, NotFound
from appliance.engines.stream import GeneratedStream
from appliance.engines.types import EngineReply, EngineRequest, ModelCard, RequestOptions
from appliance.front.openai.responses import ResponsesHandlers
from appliance.front.pipeline.response import Response
from tests.fakes.backend import ScriptedBackend, router_of
from tests.front.requests import json_of, make_request

PATCH: dict[str, Any] = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Change files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": "start: begin_patch hunk+ end_patch"},
}
SHELL: dict[str, Any] = {
    "type": "function",
    "name": "exec_command",
    "description": "Run a command.",
    "strict": False,
    "parameters": {"type": "object", "properties": {"cmd": {"type": "string"}}, "required": ["cmd"]},
}
GIT: dict[str, Any] = {
    "type": "namespace",
    "name": "mcp__git__",
    "description": "Tools of the git server",
    "tools": [{"type": "function", "name": "log", "parameters": {"type": "object", "properties": {}}}],
}
# What Codex CLI sends with every request.
CODEX: dict[str, Any] = {
    "model": "m",
    "instructions": "You are Codex.",
    "tools": [
        SHELL,
        PATCH,
        GIT,
        {"type": "web_search", "external_web_access": True},
        {"type": "local_shell"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "019a",
    "client_metadata": {"x-codex-installation-id": "1"},
}
BEGINNING: list[dict[str, Any]] = [
    {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}
    for role, text in (("developer", "<permissions>"), ("user", "<environment_context>"), ("user", "fix it"))
]


def reply(message: dict[str, Any], finish: str = "stop", **choice: Any) -> dict[str, Any]:
    """Return a whole chat reply."""
    message = {"role": "assistant", "content": None, **message}
    return {
        "choices": [{"message": message, "finish_reason": finish, **choice}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }


def called(*calls: tuple[str, str, str]) -> dict[str, Any]:
    """Return a reply with tool calls (id, name, arguments)."""
    tool_calls = [
        {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": text}}
        for index, (call_id, name, text) in enumerate(calls)
    ]
    return reply({"tool_calls": tool_calls}, "tool_calls")


class Backend(ScriptedBackend):
    """Replies with `reply`, as a stream where one is asked for; notes what it was asked."""

    reply: dict[str, Any]
    bodies: list[dict[str, Any]]
    tokens: int | None = None

    def cards(self) -> list[ModelCard]:
        return [ModelCard("public", 0, "vllm", "maker/model", ("m",))]

    async def answer(self, request: EngineRequest) -> EngineReply:
        self.bodies.append(request.body)
        if not request.stream:
            return EngineReply(body=jsons.dumps(self.reply))
        choice = self.reply["choices"][0]
        chunks = [
            {"choices": [{"delta": choice["message"]}]},
            {"choices": [{"delta": {}, "finish_reason": choice["finish_reason"]}]},
            {"choices": [], "usage": self.reply["usage"]},
        ]

        async def pieces() -> AsyncGenerator[bytes, None]:
            for chunk in chunks:
                yield b"data: %b\n\n" % jsons.dumps(chunk)
            yield b"data: [DONE]\n\n"

        return EngineReply(events=GeneratedStream(pieces()))

    async def count_tokens(self, model: str, body: dict[str, Any]) -> int | None:
        return self.tokens


class Api:
    """The handlers with their backend."""

    def __init__(self, **more: Any) -> None:
        self.clock = FakeClock()
        self.backend = Backend(self.clock)
        self.backend.reply, self.backend.bodies = reply({"content": "hello"}), []
        self.handlers = ResponsesHandlers(router_of(self.backend, clock=self.clock), clock=self.clock, **more)

    async def create(self, **body: Any) -> Response:
        return await self.handlers.create(make_request("/v1/responses", {"model": "m"} | body))

    async def turn(self, owner: str = "", **body: Any) -> dict[str, Any]:
        """Return a whole response."""
        request = make_request("/v1/responses", {"model": "m"} | body)
        request.options = RequestOptions(flow=owner)
        return cast("dict[str, Any]", json_of(await self.handlers.create(request)))

    async def call(self, method: str, owner: str = "", query: str = "", **params: str) -> dict[str, Any]:
        """Return the reply of an address of kept responses."""
        request = make_request("/v1/responses", method="GET", query=query, **params)
        request.options = RequestOptions(flow=owner)
        return cast("dict[str, Any]", json_of(await getattr(self.handlers, method)(request)))

    async def stream(self, **body: Any) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Return the events, and the headers."""
        response = await self.create(**body | {"stream": True})
        assert response.pieces is not None
        text = b"".join([piece async for piece in response.pieces])
        blocks = text.decode().strip().split("\n\n")
        return [jsons.loads(block.partition("data: ")[2]) for block in blocks], dict(response.headers)


async def test_codex_gets_its_calls_and_sends_their_results() -> None:
    api = Api()
    patch = "*** Begin Patch\n*** End Patch"
    api.backend.reply = called(
        ("c1", "exec_command", '{"cmd":"ls"}'),
        ("c2", "apply_patch", jsons.dumps_text({"input": patch})),
        ("c3", "log", "{}"),
    )
    api.backend.reply["choices"][0]["message"]["reasoning_content"] = "Look first."
    events, headers = await api.stream(**CODEX | {"input": BEGINNING})
    assert headers["x-appliance-ignored"] == "tools.web_search, tools.local_shell"
    body = api.backend.bodies[0]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["exec_command", "apply_patch", "log"]
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("auto", True)
    assert body["messages"] == [
        {"role": "system", "content": "You are Codex.\n\n<permissions>"},
        {"role": "user", "content": "<environment_context>\n\nfix it"},
    ]
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == [
        "reasoning",
        "function_call",
        "custom_tool_call",
        "function_call",
    ]
    assert (done[2]["name"], done[2]["call_id"], done[2]["input"]) == ("apply_patch", "c2", patch)
    assert (done[3]["name"], done[3]["namespace"]) == ("log", "mcp__git__")
    assert events[-1]["type"] == "response.completed"

    # Codex sends everything again, without ids and statuses, with the results.
    items = [{name: value for name, value in item.items() if name not in ("id", "status")} for item in done]
    items[0]["encrypted_content"] = None
    results = [
        {"type": f"{kind}_output", "call_id": call_id, "output": call_id}
        for kind, call_id in (("function_call", "c1"), ("custom_tool_call", "c2"), ("function_call", "c3"))
    ]
    api.backend.reply = reply({"content": "Fixed."})
    events, _ = await api.stream(**CODEX | {"input": [*BEGINNING, *items, *results]})
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Fixed."
    [assistant, *rest] = api.backend.bodies[1]["messages"][2:]
    assert assistant["reasoning_content"] == "Look first."
    assert [(call["id"], call["function"]["name"]) for call in assistant["tool_calls"]] == [
        ("c1", "exec_command"),
        ("c2", "apply_patch"),
        ("c3", "log"),
    ]
    assert jsons.loads(assistant["tool_calls"][1]["function"]["arguments"]) == {"input": patch}
    assert rest == [{"role": "tool", "tool_call_id": one, "content": one} for one in ("c1", "c2", "c3")]


async def test_a_whole_response_names_what_was_left_out() -> None:
    api = Api()
    response = await api.create(input="x", tools=[{"type": "web_search_preview"}])
    assert dict(response.headers) == {"x-appliance-ignored": "tools.web_search_preview"}
    assert "tools" not in api.backend.bodies[0]
    assert dict((await api.create(input="x")).headers) == {}


async def test_logprobs_are_given_where_they_are_asked_for() -> None:
    api = Api()
    token = {"token": "hello", "logprob": -0.1, "bytes": [104], "top_logprobs": []}
    api.backend.reply = reply({"content": "hello"}, logprobs={"content": [token]})
    asked = json_of(await api.create(input="x", include=["message.output_text.logprobs"]))
    assert asked["output"][0]["content"][0]["logprobs"] == [token]
    assert api.backend.bodies[0]["logprobs"] is True
    assert json_of(await api.create(input="x"))["output"][0]["content"][0]["logprobs"] == []


# ---- kept responses


async def test_a_response_is_continued_by_its_id() -> None:
    api = Api()
    first = await api.turn(input="one", instructions="be kind")
    assert first["store"] is True
    second = await api.turn(input="two", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert api.backend.bodies[1]["messages"] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "two"},
    ]
    assert await api.call("retrieve", id=first["id"]) == first
    assert await api.call("delete", id=first["id"]) == {
        "id": first["id"],
        "object": "response",
        "deleted": True,
    }
    with pytest.raises(NotFound, match="There is no response"):
        await api.turn(input="three", previous_response_id=second["id"])


async def test_the_second_turn_may_refer_to_items_of_the_first() -> None:
    api = Api()
    api.backend.reply = called(("c1", "weather", "{}"))
    api.backend.reply["choices"][0]["message"]["reasoning_content"] = "Ask."
    asked: dict[str, Any] = {
        "tools": [{"type": "function", "name": "weather"}],
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "warm?"}]}],
    }
    events, _ = await api.stream(**asked)
    output = events[-1]["response"]["output"]
    references = [{"type": "item_reference", "id": item["id"]} for item in output]
    result = {"type": "function_call_output", "call_id": "c1", "output": "20"}
    await api.turn(**asked | {"input": [*asked["input"], *references, result]})
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    assert api.backend.bodies[1]["messages"] == [
        {"role": "user", "content": "warm?"},
        {"role": "assistant", "content": None, "reasoning_content": "Ask.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "20"},
    ]


async def test_store_false_keeps_nothing() -> None:
    api = Api()
    made = await api.turn(input="one", store=False)
    assert made["store"] is False
    with pytest.raises(NotFound):
        await api.call("retrieve", id=made["id"])
    off = Api(keep_s=0)
    assert (await off.turn(input="one"))["store"] is False
    with pytest.raises(NotFound, match="RESPONSES_KEEP_S=0"):
        await off.turn(input="two", previous_response_id="resp_1")


async def test_kept_responses_are_the_callers_own() -> None:
    api = Api()
    made = await api.turn("me", input="one")
    for method in ("retrieve", "delete", "cancel", "list_input_items"):
        with pytest.raises(NotFound, match="another caller's"):
            await api.call(method, "other", id=made["id"])
    with pytest.raises(NotFound):
        await api.turn("other", input="two", previous_response_id=made["id"])
    assert await api.call("retrieve", "me", id=made["id"]) == made


async def test_input_items_come_in_pages() -> None:
    api = Api()
    made = await api.turn(input=[{"role": "user", "content": text} for text in "abc"])

    async def texts(query: str) -> tuple[str, bool, dict[str, Any]]:
        page = await api.call("list_input_items", query=query, id=made["id"])
        return "".join(item["content"][0]["text"] for item in page["data"]), page["has_more"], page

    assert (await texts(""))[:2] == ("cba", False)
    shown, has_more, page = await texts("order=asc&limit=2")
    assert (shown, has_more) == ("ab", True)
    assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][1]["id"])
    assert (await texts(f"order=asc&limit=2&after={page['last_id']}"))[:2] == ("c", False)
    for query, param in {
        "limit=0": "limit",
        "limit=x": "limit",
        "order=up": "order",
        "after=x": "after",
    }.items():
        with pytest.raises(Invalid, match=f"`{param}` must be") as refused:
            await texts(query)
        assert refused.value.param == param


async def test_what_kept_responses_cannot_do_is_refused() -> None:
    api = Api()
    made = await api.turn(input="one")
    with pytest.raises(Invalid, match="none is made in the background here"):
        await api.call("cancel", id=made["id"])
    with pytest.raises(Invalid, match="a kept response has no events"):
        await api.call("retrieve", query="stream=true", id=made["id"])


async def test_faults_in_a_continued_conversation_name_the_new_item() -> None:
    api = Api()
    made = await api.turn(input="one")
    with pytest.raises(Invalid) as refused:
        await api.turn(input=[{"type": "zzz"}], previous_response_id=made["id"])
    assert refused.value.param == "input.0.type"


async def test_input_tokens_are_counted_or_estimated() -> None:
    api = Api()
    request = make_request("/v1/responses/input_tokens", {"model": "m", "input": "hello"})
    api.backend.tokens = 7
    exact = await api.handlers.count_tokens(request)
    assert json_of(exact) == {"object": "response.input_tokens", "input_tokens": 7}
    assert dict(exact.headers) == {}
    api.backend.tokens = None
    estimated = await api.handlers.count_tokens(request)
    assert json_of(estimated)["input_tokens"] > 0
    assert dict(estimated.headers) == {"x-appliance-estimate": "1"}


@pytest.mark.parametrize(
    ("arguments", "read"), [('{"query":"x"}', {"query": "x"}), ("no JSON", {}), ("[1]", {})]
)
async def test_a_search_for_tools_comes_back_as_an_item_of_its_own(
    arguments: str, read: dict[str, Any]
) -> None:
    api = Api()
    api.backend.reply = called(("c1", "tool_search", arguments))
    asked: dict[str, Any] = {"input": "x", "tools": [{"type": "tool_search", "execution": "client"}]}
    events, _ = await api.stream(**asked)
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds == ["created", "in_progress", "output_item.added", "output_item.done", "completed"]
    [whole] = (await api.turn(**asked))["output"]
    [streamed] = events[-1]["response"]["output"]
    assert streamed | {"id": whole["id"]} == whole
    assert (whole["type"], whole["execution"]) == ("tool_search_call", "client")
    assert (whole["call_id"], whole["arguments"], whole["status"]) == ("c1", read, "completed")
