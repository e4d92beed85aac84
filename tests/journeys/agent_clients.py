"""Codex CLI and Claude Code: what they are asked in the tests, and their calls in a short form that is kept.

tests/journeys/agents/recorded/NAME.json has what a client sent while an engine replied by `SCENARIOS[NAME].replies`. Texts are not
the client's: whatever is long, an id, a path, a key or a fact of a machine stands there as a word of ours.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.hosted_api import Reply
from tests.fakes.recording_proxy import Call

RECORDED = Path(__file__).with_name("agents") / "recorded"
FOLDER = "/home/user/project"  # stands for the folder in which a client was run
LONG = 48  # characters; what is longer is a text of the client
KEPT_HEADERS = (
    "accept",
    "anthropic-beta",
    "anthropic-version",
    "content-type",
    "originator",
    "user-agent",
    "x-app",
)
SAME = "as in the call before"
TEXTS = {"description", "instructions", "title"}
IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b[0-9a-f]{24,}\b")


@dataclass(frozen=True)
class Scenario:
    """What a client is asked, and what the engine replies.

    Attributes:
        client: codex or claude.
        arguments: Of its command, before the prompt. `{folder}` is where it runs.
        prompt: The last argument.
        replies: The engine's, one for each request of a model; after these, their last.
        ignored: What the header `x-appliance-ignored` may name.
        paths: The addresses that it asks, in order.
    """

    client: str
    arguments: tuple[str, ...]
    prompt: str
    replies: tuple[Reply, ...]
    paths: tuple[str, ...]
    ignored: frozenset[str] = frozenset()


def _codex(
    replies: tuple[Reply, ...], *more: str, prompt: str = "What is in a.txt?", **fields: Any
) -> Scenario:
    arguments = ("exec", "--skip-git-repo-check", "-s", "danger-full-access", *more)
    ignored = frozenset({"tools.web_search"})
    paths = fields.pop("paths", ("/v1/responses",) * len(replies))
    return Scenario("codex", arguments, prompt, replies, paths, ignored, **fields)


def _claude(
    replies: tuple[Reply, ...], *more: str, prompt: str = "What is in a.txt?", **fields: Any
) -> Scenario:
    paths = ("/v1/messages?beta=true",) * len(replies)
    ignored = frozenset({"context_management", "document"})
    return Scenario("claude", ("--model", "demo", *more, "-p"), prompt, replies, paths, ignored, **fields)


LOOK = Reply("Let me look.", "I should look.", (("exec_command", {"cmd": "cat a.txt"}),))
PATCH = "*** Begin Patch\n*** Add File: b.txt\n+hello\n*** End Patch\n"
SCRIPT = 'const r = await tools.exec_command({cmd: "cat a.txt"}); text(r.output);'
SEEN = Reply("It says hi.")
SCENARIOS = {
    "codex_tool": _codex((LOOK, SEEN)),
    "codex_patch": _codex(
        (Reply(calls=(("apply_patch", {"input": PATCH}), ("exec_command", {"cmd": "cat a.txt"}))), SEEN),
        "-m",
        "gpt-5.5",
    ),
    "codex_script": _codex((Reply(calls=(("exec", {"input": SCRIPT}),)), SEEN), "-m", "gpt-6.2-sol"),
    "codex_compacted": _codex(
        (LOOK, Reply("So far: a file."), SEEN), "-c", "model_auto_compact_token_limit=10"
    ),
    "codex_image": _codex((Reply(calls=(("view_image", {"path": "{folder}/p.png"}),)), Reply("A pixel."))),
    "codex_search": _codex(  # for a tool of an MCP server
        (
            Reply(calls=(("tool_search", {"query": "look up"}),)),
            Reply(calls=(("lookup", {"q": "a"}),)),
            Reply("Found."),
        ),
        "-m",
        "gpt-5.5",
        "--dangerously-bypass-approvals-and-sandbox",
        "-c",
        'mcp_servers.lib.command="python3"',
        "-c",
        'mcp_servers.lib.args=["{folder}/mcp_server.py"]',
    ),
    "codex_schema": _codex((Reply('{"answer": "hi"}'),), "--output-schema", "{folder}/schema.json"),
    "codex_oss": _codex(
        (SEEN,),
        "--oss",
        "--local-provider",
        "ollama",
        "-m",
        "demo",
        paths=("/v1/models", "/api/version", "/api/tags", "/api/pull", "/v1/responses"),
    ),
    "codex_resumed": Scenario(  # after codex_tool, in the same folder, with other rights: a developer message
        "codex",
        ("exec", "resume", "--last", "--skip-git-repo-check"),
        "And now?",
        (SEEN,),
        ("/v1/responses",),
        frozenset({"tools.web_search"}),
    ),
    "claude_tool": _claude(
        (Reply("Let me look.", "I should look.", (("Read", {"file_path": "{folder}/a.txt"}),)), SEEN)
    ),
    "claude_search": _claude(
        (
            Reply(calls=(("ToolSearch", {"query": "select:WebFetch,TaskStop"}),)),
            Reply(calls=(("Read", {"file_path": "{folder}/p.png"}),)),
            Reply(calls=(("Read", {"file_path": "{folder}/d.pdf"}),)),
            SEEN,
        ),
    ),
    "claude_schema": _claude(
        (Reply(calls=(("StructuredOutput", {"answer": "hi"}),)),),
        "--output-format",
        "json",
        "--json-schema",
        '{"type":"object","properties":{"answer":{"type":"string"}},"required":["answer"]}',
    ),
    "claude_continued": _claude(
        (SEEN,), "--continue", prompt="And now?"
    ),  # after claude_tool, in the same folder
}
AFTER = {"codex_resumed": "codex_tool", "claude_continued": "claude_tool"}


def placed(reply: Reply, folder: str) -> Reply:
    """Return a reply with the folder in its calls."""
    calls = tuple(
        (
            name,
            {
                key: value.replace("{folder}", folder) if isinstance(value, str) else value
                for key, value in given.items()
            },
        )
        for name, given in reply.calls
    )
    return Reply(reply.text, reply.reasoning, calls)


class Shortener:
    """Bring what a client sent into the form that is kept: the shape, names, types; no text, id or fact of a machine.

    Args:
        folder: Where the client ran.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._ids: dict[str, str] = {}

    def headers(self, given: dict[str, str]) -> dict[str, str]:
        """Return the headers that say what the client is and wants."""
        kept = {name: given[name] for name in KEPT_HEADERS if name in given}
        if "user-agent" in kept:
            kept["user-agent"] = re.sub(r" \(.*", "", kept["user-agent"])
        return kept

    def body(self, value: Any, name: str = "") -> Any:
        """Return a body in the short form; `name` is the field that it stands in."""
        if isinstance(value, dict):
            return {
                self._text(key): self.body(one, key) for key, one in value.items() if key != "client_metadata"
            }
        if isinstance(value, list):
            return [self.body(one, name) for one in value]
        return self._text(value, name) if isinstance(value, str) else value

    def _text(self, text: str, name: str = "") -> str:
        text = text.replace(self._folder, FOLDER)
        text = IDS.sub(lambda found: self._ids.setdefault(found[0], f"id{len(self._ids)}"), text)
        if text.startswith("x-anthropic-billing-header:"):
            return "x-anthropic-billing-header: cc_version=0;"
        if text.startswith("data:image/") or name in ("arguments", "input", "encrypted_content"):
            return text
        if name == "data":
            return "AAAA"
        if name == "user_id":
            return "user"
        if name in TEXTS or len(text) > LONG:
            return f"A text in {name}." if name in TEXTS else "A text of the client."
        return text


def write_calls(path: Path, calls: list[Call], short: Shortener) -> None:
    """Write calls in the short form, one field a line; a field that did not change says so."""
    former: dict[str, Any] = {}
    texts = []
    for call in calls:
        body = short.body(call.body)
        fields = body if isinstance(body, dict) else {}
        shown = {
            name: SAME if former.get(name) == value and len(json.dumps(value)) > LONG else value
            for name, value in fields.items()
        }
        former = fields
        head = {
            "method": call.method,
            "path": call.path,
            "headers": short.headers(call.headers),
            "ignored": call.ignored,
        }
        lines = [
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()
        ]
        inner = ",\n  ".join(
            f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items()
        )
        lines.append(f'"body": {{\n  {inner}\n }}' if fields else '"body": null')
        texts.append("{\n " + ",\n ".join(lines) + "\n}")
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(texts) + "\n]\n")


def read_calls(name: str) -> list[dict[str, Any]]:
    """Return the recorded calls of a scenario: `{"method", "path", "headers", "ignored", "body"}` each."""
    calls = json.loads((RECORDED / f"{name}.json").read_text())
    former: dict[str, Any] = {}
    for call in calls:
        if call["body"] is not None:
            former = call["body"] = {
                field: former[field] if value == SAME else value for field, value in call["body"].items()
            }
    return list(calls)
