"""Tools of the Responses API as chat's functions, and back."""

from typing import Any

import pytest

from appliance.front.openai.responses_tools import (
    CUSTOM_PARAMETERS,
    ClientTool,
    to_arguments,
    to_functions,
    to_input,
    to_tool_choice,
)

F: dict[str, Any] = {"type": "function", "name": "f", "parameters": {}}
PATCH: dict[str, Any] = {"type": "custom", "name": "patch", "description": "Change files."}


def namespace(name: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": "", "tools": list(tools)}


@pytest.mark.parametrize(
    ("given", "by_function", "ignored"),
    [
        ([F], {"f": ClientTool("f")}, []),
        ([PATCH], {"patch": ClientTool("patch", "", True)}, []),
        ([namespace("mcp__git__", F)], {"f": ClientTool("f", "mcp__git__")}, []),
        ([namespace("n", PATCH)], {"patch": ClientTool("patch", "n", True)}, []),
        (
            [F, namespace("mcp__git__", F), namespace("n", F)],
            {
                "f": ClientTool("f"),
                "mcp__git__f": ClientTool("f", "mcp__git__"),
                "n__f": ClientTool("f", "n"),
            },
            [],
        ),
        ([{"type": "web_search_preview"}, {"type": "local_shell"}, F], {"f": ClientTool("f")}, None),
        ([namespace("n", {"type": "mcp"})], {}, ["tools.mcp"]),
    ],
)
def test_tools_become_functions(
    given: list[Any], by_function: dict[str, ClientTool], ignored: list[str] | None
) -> None:
    tools = to_functions(given)
    assert tools.by_function == by_function
    assert [one["function"]["name"] for one in tools.functions] == list(by_function)
    assert tools.ignored == (
        ["tools.web_search_preview", "tools.local_shell"] if ignored is None else ignored
    )


def test_a_custom_tool_has_one_text_argument_and_its_grammar() -> None:
    form = {"type": "grammar", "syntax": "lark", "definition": "start: WORD"}
    [function] = to_functions([{**PATCH, "format": form}]).functions
    assert function["function"] == {
        "name": "patch",
        "description": "Change files.\n\nThe input must match this lark grammar:\nstart: WORD",
        "parameters": CUSTOM_PARAMETERS,
    }


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "a\\nb"}', "a\nb"),
        ("a raw text", "a raw text"),
        ('{"other": 1}', '{"other": 1}'),
        ('{"input": 5}', '{"input": 5}'),
        ("", ""),
    ],
)
def test_arguments_become_the_input_of_a_custom_tool(arguments: str, text: str) -> None:
    assert to_input(arguments) == text


def test_the_input_of_a_custom_tool_survives_both_ways() -> None:
    assert to_input(to_arguments('*** Begin "Patch"\n\t+é')) == '*** Begin "Patch"\n\t+é'


@pytest.mark.parametrize(
    ("choice", "wanted", "names"),
    [
        ("required", "required", ["f", "patch"]),
        ({"type": "custom", "name": "patch"}, {"type": "function", "function": {"name": "patch"}}, None),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}, None),
        ({"type": "allowed_tools", "mode": "required", "tools": [F]}, "required", ["f"]),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "custom", "name": "patch"}]},
            "auto",
            ["patch"],
        ),
        ({"type": "web_search"}, None, None),
    ],
)
def test_choices_of_tools_become_those_of_chat(choice: Any, wanted: Any, names: list[str] | None) -> None:
    tools = to_functions([F, PATCH])
    assert to_tool_choice(choice, tools) == wanted
    assert [one["function"]["name"] for one in tools.functions] == (names or ["f", "patch"])
