"""Tool calls put together from the fragments of a stream, as every engine sends them. Pure.

The work is linear in the fragments; count, index and size are bounded.
"""

from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons
from appliance.engines.upstream.reply_text import invalid_reply

BROKEN_ARGUMENTS = "_raw"  # the key of a call's arguments where they are not a JSON object
MAX_CALLS = 256
MAX_INDEX = 4095
MAX_ARGUMENTS_CHARS = 16 * 1024 * 1024  # of all calls of one message
MAX_PARSES = 64  # of arguments, to find out whether they are whole


@dataclass(slots=True, eq=False)
class ToolCall:
    """One call.

    Attributes:
        position: Its place among the calls of the message, from 0.
        id: As the engine named it; "" = not yet, or never.
        name: Of the function.
        more: The engine's own fields, the last value of each.
        function: The engine's own fields of the function.
    """

    position: int
    id: str = ""
    name: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    function: dict[str, Any] = field(default_factory=dict)
    _texts: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """What has arrived of the arguments."""
        if len(self._texts) > 1:
            self._texts = ["".join(self._texts)]
        return self._texts[0] if self._texts else ""

    @property
    def has_arguments(self) -> bool:
        """Whether some of the arguments have arrived."""
        return bool(self._texts)

    @property
    def is_whole(self) -> bool:
        """Whether the arguments are a JSON object, after which nothing can follow."""
        if not self._texts or not self._texts[-1].rstrip().endswith("}"):
            return False
        try:
            return isinstance(jsons.loads(self.arguments), dict)
        except jsons.InvalidJson:
            return False

    def append(self, text: str) -> None:
        """Append to the arguments."""
        if text:
            self._texts.append(text)

    def render(self) -> dict[str, Any]:
        """Return the call as OpenAI's messages have it."""
        function = {"name": self.name, "arguments": self.arguments, **self.function}
        call = {"type": "function", "function": function, **self.more}
        return {**call, "id": self.id} if self.id else call


class ToolCalls:
    """The calls of one message: `add` each delta's fragments in turn."""

    __slots__ = ("_by_id", "_by_index", "_chars", "_parses", "calls")

    def __init__(self) -> None:
        self.calls: list[ToolCall] = []
        self._by_id: dict[str, ToolCall] = {}
        self._by_index: dict[int, ToolCall] = {}
        self._chars = 0
        self._parses = 0

    def add(self, fragments: Any) -> list[tuple[ToolCall, str]]:
        """Add the fragments of one delta.

        Args:
            fragments: `tool_calls` of a delta; None = it has none.

        Returns:
            For each fragment its call, and the text that it adds to the arguments.

        Raises:
            UpstreamFailed: One has a wrong type, or there is too much.
        """
        if fragments is None:
            return []
        if not isinstance(fragments, list):
            raise invalid_reply("`tool_calls` is not an array")
        return [self._add_one(fragment) for fragment in fragments]

    def _add_one(self, fragment: Any) -> tuple[ToolCall, str]:
        if not isinstance(fragment, dict):
            raise invalid_reply("a tool call is not an object")
        function = fragment.get("function")
        if function is None:
            function = {}
        elif not isinstance(function, dict):
            raise invalid_reply("the `function` of a tool call is not an object")
        name, text = _read_string(function, "name"), read_arguments(function.get("arguments"))
        call = self._find(_read_index(fragment), _read_string(fragment, "id"), name)
        call.more.update({k: v for k, v in fragment.items() if v is not None and k not in _KNOWN})
        call.function.update({k: v for k, v in function.items() if v is not None and k not in _KNOWN})
        self._chars += len(text)
        if self._chars > MAX_ARGUMENTS_CHARS:
            raise invalid_reply("the arguments of its tool calls are longer than 16 MiB")
        call.append(text)
        return call, text

    def _find(self, index: int | None, call_id: str, name: str) -> ToolCall:
        """Return the call that a fragment belongs to.

        1. its id is known                                    → that call
        2. it has an index that a call has, and no other name → that call, unless both have ids
        3. it has no index, and no id or name of a new call   → the last call
        4. otherwise                                          → a new call
        """
        call = self._by_id.get(call_id) if call_id else None  # 1
        if call is None:
            latest = self.calls[-1] if self.calls else None
            former = latest if index is None else self._by_index.get(index)
            if former is not None and self._continues(former, call_id, name, has_index=index is not None):
                call = former  # 2, 3
        if call is None:
            if len(self.calls) >= MAX_CALLS:
                raise invalid_reply(f"it has more than {MAX_CALLS} tool calls")
            call = ToolCall(len(self.calls))  # 4
            self.calls.append(call)
        if index is not None:
            self._by_index[index] = call
        if call_id and not call.id:
            call.id = call_id
        if call_id:
            self._by_id[call_id] = call
        call.name = call.name or name
        return call

    def _continues(self, call: ToolCall, call_id: str, name: str, *, has_index: bool) -> bool:
        """Return whether a fragment with a new id, or none, may belong to `call`."""
        if not name or not call.name:
            return not (call_id and call.id and name)
        if name != call.name or (call_id and call.id):
            return False
        if has_index and not call_id:
            return True  # the name is in every delta
        self._parses += 1
        return self._parses > MAX_PARSES or not call.is_whole


_KNOWN = {"index", "id", "function", "name", "arguments"}


def _read_index(fragment: dict[str, Any]) -> int | None:
    index = fragment.get("index")
    if index is None:
        return None
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index <= MAX_INDEX:
        raise invalid_reply(f"the `index` of a tool call is not an integer from 0 to {MAX_INDEX}")
    return index


def _read_string(value: dict[str, Any], name: str) -> str:
    found = value.get(name)
    if found is None:
        return ""
    if isinstance(found, int) and not isinstance(found, bool):
        return str(found)  # ids of small servers
    if not isinstance(found, str):
        raise invalid_reply(f"the `{name}` of a tool call is not text")
    return found


def read_arguments(value: Any) -> str:
    """Return a call's arguments as text, also where they are an object.

    Raises:
        UpstreamFailed: They are anything else.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return jsons.dumps_text(value)
    raise invalid_reply("the `arguments` of a tool call are neither text nor an object")


def parse_arguments(arguments: Any) -> dict[str, Any]:
    """Return a call's arguments as an object: the parsed text, or `{"_raw": arguments}` where it is none."""
    if isinstance(arguments, dict):
        return arguments
    try:
        value = jsons.loads(arguments) if arguments else {}
    except jsons.InvalidJson:
        value = None
    return value if isinstance(value, dict) else {BROKEN_ARGUMENTS: arguments}


def read_calls(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the calls of a whole message, an early API's `function_call` among them, arguments as text.

    Raises:
        UpstreamFailed: One has a wrong type, or there are too many.
    """
    given = message.get("tool_calls")
    if given is None and message.get("function_call") is not None:
        given = [{"function": message["function_call"]}]
    if given is not None and not isinstance(given, list):
        raise invalid_reply("`tool_calls` is not an array")
    if given and len(given) > MAX_CALLS:
        raise invalid_reply(f"it has more than {MAX_CALLS} tool calls")
    return [ToolCalls().add([call])[0][0].render() for call in given or []]
