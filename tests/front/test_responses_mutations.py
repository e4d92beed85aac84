"""Requests of the Responses API with parts of wrong types: refused by name or answered, never an exception."""

import random
from typing import Any

from appliance.base import jsons
from appliance.base.errors import ApplianceError, Kind
from tests.front.test_responses_handlers import BEGINNING, CODEX, PATCH, Api

ROUNDS = 1500
ODD: list[Any] = [
    None,
    True,
    5,
    -1.5,
    "",
    "x",
    [],
    ["x"],
    {},
    {"type": {}},
    {"type": "text", "text": None},
    [[]],
]
SEED: dict[str, Any] = CODEX | {
    "stream": False,
    "store": True,
    "previous_response_id": None,
    "text": {
        "verbosity": "low",
        "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}},
    },
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [PATCH]},
    "top_logprobs": 1,
    "input": [
        *BEGINNING,
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [{"type": "summary_text", "text": "t"}],
            "content": None,
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "log", "namespace": "mcp__git__"},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "c2", "name": "apply_patch", "input": "i"},
        {"type": "local_shell_call", "id": "ls_1", "call_id": "c3", "action": {"command": ["ls"]}},
        {"type": "local_shell_call_output", "id": "ls_1", "output": "o"},
        {"type": "shell_call_output", "call_id": "c4", "output": [{"stdout": "o"}]},
        {
            "type": "custom_tool_call_output",
            "call_id": "c2",
            "output": [{"type": "input_image", "image_url": "data:x", "detail": "original"}],
        },
        {"type": "web_search_call", "id": "ws_1", "action": {}},
    ],
}


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return (container, key) of everything inside a value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [place for key in keys for place in [(value, key), *places(value[key])]]


async def test_no_mutation_is_an_exception() -> None:
    api, chance, answered = Api(), random.Random(7), 0
    for _ in range(ROUNDS):
        body = jsons.loads(jsons.dumps(SEED))
        for _ in range(chance.choice([1, 1, 2, 4])):
            container, key = chance.choice(places(body))
            if isinstance(container, dict) and chance.random() < 0.3:
                del container[key]
            else:
                container[key] = chance.choice(ODD)
        try:
            made = await api.turn(**{"model": None} | body)
            answered += 1
        except ApplianceError as error:
            assert error.kind in (Kind.INVALID, Kind.NOT_FOUND), body
            assert error.param, body
            continue
        if made["store"]:
            await api.call("list_input_items", id=made["id"])
            await api.turn(input="on", previous_response_id=made["id"])
    assert answered > ROUNDS / 4
