"""The calls of Codex CLI and Claude Code, as they were recorded (agent_clients.py), sent again without the clients.

To a scripted engine, which must get conversations that chat templates take; and to a real llama-server whose template
refuses every other, as those of many models do.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes.hosted_api import HostedApi, Reply
from tests.journeys.agent_clients import FOLDER, RECORDED, SCENARIOS, placed, read_calls
from tests.journeys.llama_servers import Llama
from tests.journeys.running import Running, Start
from tests.journeys.test_real_llama import behind
from tests.tools.tiny_models import REPLY

LAST_EVENT = {"/v1/responses": "response.completed", "/v1/messages?beta=true": "message_stop"}
# One system message, at the start; then user and assistant in turns. As of Gemma, Mistral and Qwen, in one.
STRICT = """{%- set ns = namespace(last='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' and not loop.first -%}
{{- raise_exception('System message must be at the beginning.') -}}
{%- endif -%}
{%- if message['role'] == ns.last and ns.last != 'tool' -%}
{{- raise_exception('Conversation roles must alternate.') -}}
{%- endif -%}
{%- set ns.last = message['role'] -%}
{{- message['role'] + ': ' + (message['content'] or '') + '\n' -}}
{%- endfor -%}
"""
VISION = ("codex_image", "claude_search")  # the small model takes no pictures


async def send(running: Running, call: dict[str, Any]) -> tuple[int, str, str]:
    """Send a recorded call; return (the status, the header `x-appliance-ignored`, the body)."""
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            call["method"], running.base_url + call["path"], json=call["body"], headers=call["headers"]
        ) as reply,
    ):
        return reply.status, reply.headers.get("x-appliance-ignored", ""), await reply.text()


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream of the Responses API or of Anthropic's."""
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def outcome(events: list[dict[str, Any]]) -> tuple[str, list[tuple[str, dict[str, Any] | str]]]:
    """Return what a client reads from a stream: (the text, (name, input) of each call)."""
    text, calls = "", []
    names: dict[int, str] = {}
    inputs: dict[int, str] = {}
    for event in events:
        delta = event.get("delta")
        item = event.get("item", {}) if event["type"] == "response.output_item.done" else {}
        if event["type"] == "response.output_text.delta":
            text += event["delta"]
        elif item.get("type") == "function_call":
            calls.append((item["name"], json.loads(item["arguments"])))
        elif item.get("type") == "custom_tool_call":
            calls.append((item["name"], {"input": item["input"]}))
        elif item.get("type") == "tool_search_call":
            calls.append(("tool_search", item["arguments"]))
        elif isinstance(delta, dict):
            text += delta.get("text", "")
            if "partial_json" in delta:
                inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
        elif event.get("content_block", {}).get("type") == "tool_use":
            names[event["index"]] = event["content_block"]["name"]
    calls += [(name, json.loads(inputs[index])) for index, name in names.items()]
    return text, calls


def refusals(messages: list[dict[str, Any]]) -> list[str]:
    """Return what a strict template or API would say against a conversation."""
    said = [
        f"{before['role']} after {after['role']}"
        for before, after in itertools.pairwise(messages)
        if (before["role"] == after["role"] != "tool") or after["role"] == "system"
    ]
    open_calls: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            said += [] if message["tool_call_id"] in open_calls else ["a result without a call"]
            open_calls.discard(message["tool_call_id"])
        else:
            said += ["a call without a result"] if open_calls else []
            open_calls = {call["id"] for call in message.get("tool_calls") or []}
    return said


def test_every_scenario_is_recorded() -> None:
    assert {path.stem for path in RECORDED.iterdir()} == set(SCENARIOS)


@pytest.mark.parametrize("name", list(SCENARIOS))
async def test_recorded_calls_are_served(name: str, relay: Running, hosted: HostedApi) -> None:
    calls = read_calls(name)
    assert [call["path"] for call in calls] == list(SCENARIOS[name].paths)
    replies = [placed(reply, FOLDER) for reply in SCENARIOS[name].replies]
    hosted.script(*replies)
    for call in calls:
        status, ignored, body = await send(relay, call)
        assert (status, ignored) == (200, call["ignored"]), body
        if call["path"] not in LAST_EVENT:
            continue
        events = events_of(body)
        assert events[-1]["type"] == LAST_EVENT[call["path"]]
        reply = replies.pop(0)
        assert outcome(events) == (reply.text, [(called, given) for called, given in reply.calls])
    assert not replies
    for record in hosted.records:
        assert refusals(record.body["messages"]) == []
        assert record.body["messages"][0]["role"] == "system"
        offered = {tool["function"]["name"] for tool in record.body.get("tools", [])}
        assert "DeferredToolPlaceholder" not in offered
    offered = {tool["function"]["name"] for tool in hosted.records[0].body.get("tools", [])}
    assert {called for called, _ in SCENARIOS[name].replies[0].calls} <= offered


async def test_a_tool_that_claude_code_searched_for_is_offered(relay: Running, hosted: HostedApi) -> None:
    first, second = read_calls("claude_search")[:2]
    hosted.script(Reply("Yes."), Reply("Yes."))
    await send(relay, first)
    await send(relay, second)
    before, after = ({tool["function"]["name"] for tool in record.body["tools"]} for record in hosted.records)
    assert after - before == {"WebFetch", "TaskStop"}
    assert "The tool WebFetch can be called now." in hosted.records[1].body["messages"][-1]["content"]


async def test_a_tool_that_codex_searched_for_is_offered(relay: Running, hosted: HostedApi) -> None:
    first, second = read_calls("codex_search")[:2]
    hosted.script(Reply("Yes."), Reply("Yes."))
    await send(relay, first)
    await send(relay, second)
    before, after = ({tool["function"]["name"] for tool in record.body["tools"]} for record in hosted.records)
    assert after - before == {"lookup"}
    assert hosted.records[1].body["messages"][-1]["content"] == "These tools can be called now: lookup."


@pytest.mark.timeout(120)
async def test_recorded_calls_pass_a_strict_template(start: Start, llama: Llama, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    template.write_text(STRICT)
    running = await start(**behind(await llama(extra=("--chat-template-file", str(template)))))
    for name in SCENARIOS:
        for call in read_calls(name) if name not in VISION else []:
            if call["path"] in LAST_EVENT:
                status, _, body = await send(running, call)
                assert status == 200, (name, body)
                assert REPLY in outcome(events_of(body))[0], name
    wrong = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    call = {"method": "POST", "path": "/v1/chat/completions", "headers": {}, "body": {"messages": wrong}}
    status, _, body = await send(running, call)
    assert (status, "must alternate" in body) == (400, True)  # the template does refuse
