"""Tools of the Responses API as chat's functions, and back to what the client called them. Pure.

Source: OpenAI's API reference, "Responses"; the types of its official Python SDK 3.52; Codex CLI's requests.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons
from appliance.base.errors import Invalid
from appliance.front.pipeline.body import json_type_of

FUNCTION_FIELDS = ("name", "description", "parameters", "strict")
SEARCH = "tool_search"  # a type of tool, and the name of the function that it becomes
INPUT = "input"  # the one argument of a custom tool
CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {INPUT: {"type": "string"}},
    "required": [INPUT],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool as the client knows it.

    Attributes:
        name: Its name.
        namespace: The namespace that it is in; "" = none.
        is_custom: Its input is a text, not JSON.
        is_search: It is the client's search for tools: its calls are items of their own.
    """

    name: str
    namespace: str = ""
    is_custom: bool = False
    is_search: bool = False


@dataclass(slots=True)
class Tools:
    """The tools of a request.

    Attributes:
        functions: As chat has them.
        by_function: The client's tool by the name of the function that it became.
        ignored: Types of the tools that no engine has, as `tools.TYPE`.
    """

    functions: list[dict[str, Any]] = field(default_factory=list)
    by_function: dict[str, ClientTool] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)

    def function_name(self, name: str, namespace: Any = None) -> str:
        """Return the name of the function that a client's tool became; its own name where it is unknown."""
        if not isinstance(namespace, str) or not namespace:
            return name
        joined = _join(namespace, name)
        return joined if joined in self.by_function else name


def to_functions(given: list[Any], more: Sequence[tuple[str, list[Any]]] = ()) -> Tools:
    """Return a request's tools as chat's functions.

    1. a function            → the same
    2. a custom tool         → a function with one text argument
    3. a namespace           → its functions and custom tools; where two have one name, `NAMESPACE__NAME`
    4. the client's search   → a function; what it finds is in the items of the conversation
    5. any other type        → left out: no engine has it (web search, local shell, …)

    Args:
        given: The request's `tools`.
        more: Arrays of tools in its `input`, with their paths; what they define anew replaces the former.

    Raises:
        Invalid: A tool is no object, or its type or name is missing or of a wrong type.
    """
    tools = Tools()
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for path, array in (("tools", given), *more):
        for tool, namespace in _flatten(array, path, tools):
            found[namespace, tool["name"]] = tool
    counts = Counter(name for _, name in found)
    for (namespace, name), tool in found.items():
        shown = _join(namespace, name) if namespace and counts[name] > 1 else name
        is_custom = tool["type"] == "custom"
        tools.functions.append(_custom(tool, shown) if is_custom else _function(tool, shown))
        tools.by_function[shown] = ClientTool(name, namespace, is_custom, tool["type"] == SEARCH)
    return tools


def tool_names(given: Any) -> list[str]:
    """Return the names of tools, and of those in their namespaces; what is wrong is passed over."""
    names: list[str] = []
    for tool in given if isinstance(given, list) else []:
        members = tool.get("tools") if isinstance(tool, dict) else None
        for one in members if isinstance(members, list) else [tool]:
            if isinstance(one, dict) and isinstance(one.get("name"), str):
                names.append(one["name"])
    return names


def to_tool_choice(choice: Any, tools: Tools) -> Any:
    """Return chat's `tool_choice`, and leave out the functions that the client does not allow.

    1. a function or a custom tool, by name → that function
    2. a set of allowed tools               → only these functions; `mode` says whether one must be called
    3. a text                               → the same
    4. any other tool                       → None: it was left out
    """
    if not isinstance(choice, dict):  # 3
        return choice
    kind = choice.get("type")
    if kind in ("function", "custom"):  # 1
        name = tools.function_name(_required_name(choice, "tool_choice"), choice.get("namespace"))
        return {"type": "function", "function": {"name": name}}
    if kind == "allowed_tools":  # 2
        allowed = choice.get("tools")
        names = {
            one.get("name")
            for one in allowed or []
            if isinstance(one, dict) and isinstance(one.get("name"), str)
        }
        tools.functions = [
            function
            for function in tools.functions
            if tools.by_function[function["function"]["name"]].name in names
        ]
        return "required" if choice.get("mode") == "required" else "auto"
    tools.ignored.append("tool_choice")  # 4
    return None


def to_input(arguments: str) -> str:
    """Return the text that a custom tool is called with: arguments of another form as they are."""
    try:
        value = jsons.loads(arguments)
    except jsons.InvalidJson:
        return arguments
    text = value.get(INPUT) if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def to_object(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; {} where they are no object."""
    try:
        value = jsons.loads(arguments)
    except jsons.InvalidJson:
        return {}
    return value if isinstance(value, dict) else {}


def to_arguments(text: str) -> str:
    """Return the arguments of the function that a custom tool became."""
    return jsons.dumps_text({INPUT: text})


def _flatten(given: list[Any], array: str, tools: Tools) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (a function or custom tool, its namespace); name the others in `tools.ignored`."""
    for number, tool in enumerate(given):
        where = f"{array}.{number}"
        kind = _kind(tool, where)
        inner = [(tool, where)]
        namespace = ""
        if kind == "namespace":
            namespace, members = _required_name(tool, where), tool.get("tools")
            if not isinstance(members, list):
                raise Invalid(
                    f"`{where}.tools` must be an array, not {json_type_of(members)}.",
                    param=f"{where}.tools",
                    code="invalid_type",
                )
            inner = [(member, f"{where}.tools.{place}") for place, member in enumerate(members)]
        for one, path in inner:
            kind = _kind(one, path)
            if kind in ("function", "custom"):
                _required_name(one, path)
                yield one, namespace
            elif kind == SEARCH and one.get("execution") == "client":
                yield {**one, "name": SEARCH}, namespace
            else:
                tools.ignored.append(f"tools.{kind}")


def _kind(tool: Any, where: str) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else tool
    if not isinstance(tool, dict) or not isinstance(kind, str):
        path = f"{where}.type" if isinstance(tool, dict) else where
        wanted = 'a string such as "function"' if isinstance(tool, dict) else "an object"
        raise Invalid(
            f"`{path}` must be {wanted}, not {json_type_of(kind)}.", param=path, code="invalid_type"
        )
    return kind


def _required_name(tool: dict[str, Any], where: str) -> str:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise Invalid(
            f"`{where}.name` is required: a string that is not empty.",
            param=f"{where}.name",
            code="missing_required_parameter" if not name else "invalid_type",
        )
    return name


def _function(tool: dict[str, Any], name: str) -> dict[str, Any]:
    function = {one: tool[one] for one in FUNCTION_FIELDS if tool.get(one) is not None}
    return {"type": "function", "function": function | {"name": name}}


def _custom(tool: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a custom tool as a function; a grammar, which chat cannot force, is told to the model."""
    description = tool.get("description") if isinstance(tool.get("description"), str) else ""
    form = tool.get("format")
    if isinstance(form, dict) and form.get("type") == "grammar" and form.get("definition"):
        syntax = form.get("syntax") or "given"
        description = f"{description}\n\nThe input must match this {syntax} grammar:\n{form['definition']}"
    function: dict[str, Any] = {"name": name, "parameters": CUSTOM_PARAMETERS}
    if description:
        function["description"] = description.strip()
    return {"type": "function", "function": function}


def _join(namespace: str, name: str) -> str:
    return f"{namespace.rstrip('_')}__{name}"
