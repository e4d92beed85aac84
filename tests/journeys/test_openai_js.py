"""The official `openai` client for JavaScript: chat, streams, tools, objects, responses, errors.

On the demo engine, a hosted stand-in and a real llama-server.
"""

from tests.fakes.hosted_api import CutStream, HostedApi, Reply, Status
from tests.journeys.llama_servers import Llama
from tests.journeys.node_clients import RunNode
from tests.journeys.running import Running, Start
from tests.journeys.test_ai_sdk import CALL, OBJECT
from tests.journeys.test_real_llama import behind
from tests.tools.tiny_models import REPLY, REPLY_TOKENS


async def test_openai_js_works_with_the_demo_engine(start: Start, node: RunNode) -> None:
    failing = ["demo: error 429", "demo: cut"]
    got = await node("openai_js", await start(), tool="demo: tool weather", object="x", failing=failing)
    hello = "[demo engine] You said: Hello"
    assert {got[name]["text"] for name in ("chat", "chatStream", "responses", "responseStream")} == {hello}
    assert got["chat"]["id"].startswith("req_")
    assert got["chatStream"]["pieces"] > 1
    assert (got["responses"]["status"], got["retrieved"]) == ("completed", hello)
    assert (got["responseStream"]["first"], got["responseStream"]["last"]) == (
        "response.created",
        "response.completed",
    )
    assert got["toolMessages"] == ["user", "assistant", "tool", "assistant"]
    returned = "[demo engine] The tool returned: 20 degrees"
    assert got["responseTool"] == {"name": "weather", "city": "string", "text": returned}
    assert got["chatObject"] == got["responseObject"] == {"colour": "red"}
    assert got["models"] == 1
    assert (got["unknown"]["name"], got["unknown"]["status"]) == ("NotFoundError", 404)
    assert (got["invalid"]["name"], got["invalid"]["code"]) == ("BadRequestError", "invalid_type")
    assert "`messages` must be an array" in got["invalid"]["message"]
    assert [error["name"] for error in got["failures"]["demo: error 429"]] == ["RateLimitError"] * 3
    whole, chat, responses = got["failures"]["demo: cut"]
    assert whole is None  # only a stream can be cut
    assert chat["message"] == responses["message"]
    assert (chat["name"], chat["code"], responses["code"]) == (
        "APIError",
        "upstream_cut_off",
        "upstream_cut_off",
    )


async def test_openai_js_works_with_a_hosted_api(relay: Running, hosted: HostedApi, node: RunNode) -> None:
    hosted.script(Reply("Hi."), Reply("Hi."), CALL, Reply("20."), OBJECT)
    hosted.script(Reply("Hi."), Reply("Hi."), CALL, Reply("20."), OBJECT)
    hosted.script(Status(400), CutStream(after_events=3), Status(422))
    got = await node("openai_js", relay, tool="How warm?", object="Which?", failing=["x"])
    assert {got[name]["text"] for name in ("chat", "chatStream", "responses", "responseStream")} == {"Hi."}
    assert got["toolMessages"] == ["user", "assistant", "tool", "assistant"]
    assert got["responseTool"] == {"name": "weather", "city": "string", "text": "20."}
    assert got["chatObject"] == got["responseObject"] == {"colour": "green"}
    whole, streamed, responses = got["failures"]["x"]
    assert (whole["status"], streamed["name"], responses["status"]) == (400, "APIError", 422)
    continued = hosted.records[8].body["messages"]
    assert [message["role"] for message in continued] == ["user", "assistant", "tool"]


async def test_openai_js_works_with_a_llama_server(start: Start, llama: Llama, node: RunNode) -> None:
    running = await start(**behind(await llama()))
    got = await node("openai_js", running, model="tiny", tool="x", object="x", toolChoice="required")
    assert {got[name]["text"] for name in ("chat", "chatStream", "responses", "responseStream")} == {REPLY}
    assert got["chatStream"]["tokens"] == REPLY_TOKENS
    assert got["chatStream"]["pieces"] > 1
    assert got["toolMessages"] == ["user", "assistant", "tool", "assistant", "tool"]
    assert (got["responseTool"]["name"], got["responseTool"]["city"]) == ("weather", "string")
    assert got["chatObject"]["colour"] in ("red", "green")
    assert got["responseObject"]["colour"] in ("red", "green")
