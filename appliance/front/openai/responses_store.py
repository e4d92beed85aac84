"""Responses that are kept for a while, so that clients can retrieve and continue them. In memory, per caller.

Each keeps its own input and output; what went before is found through the response that it continues.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from appliance.base import jsons
from appliance.base.clock import Clock
from appliance.base.errors import NotFound
from appliance.front.openai.responses_objects import new_id

Item = dict[str, Any]
DEFAULT_KEEP_S = 3600.0
MAX_RESPONSES = 10_000
MAX_BYTES = 64 * 1024 * 1024
RESPONSE_BYTES, ITEM_BYTES = 2048, 256  # that a response and an item take beside their JSON
# What the ids of input items begin with; the others are messages.
PREFIXES = {
    "function_call": "fc",
    "function_call_output": "fc",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctc",
    "reasoning": "rs",
}


@dataclass(slots=True, eq=False)
class _KeptResponse:
    """One response.

    owner        whose it is
    response     its JSON
    items        JSON of its own input items
    previous_id  the response that it continues; "" = none
    item_ids     of its input and its output
    used_s       monotonic: when it was kept, or last continued
    """

    owner: str
    response: bytes
    items: bytes
    previous_id: str
    item_ids: list[str] = field(default_factory=list)
    used_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        """The memory that it takes, about."""
        return len(self.response) + len(self.items) + RESPONSE_BYTES + ITEM_BYTES * len(self.item_ids)


class ResponseStore:
    """The kept responses. The least recently used ones go first when there are too many.

    Args:
        keep_s: Seconds for which a response is kept after it was made or continued; 0 = none is kept.
        max_responses: Most responses of all callers.
        max_bytes: Most memory of all responses; a larger one is not kept at all.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        keep_s: float = DEFAULT_KEEP_S,
        max_responses: int = MAX_RESPONSES,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._clock = clock
        self._keep_s = keep_s
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, _KeptResponse] = OrderedDict()  # by id, the least recently used first
        self._by_item: dict[tuple[str, str], str] = {}  # owner and item → the response's id
        self.bytes_total = 0

    def __len__(self) -> int:
        """Return how many responses are kept."""
        self._remove_expired()
        return len(self._kept)

    @property
    def is_on(self) -> bool:
        """Whether responses are kept at all."""
        return self._keep_s > 0

    def keep(self, owner: str, response: dict[str, Any], items: list[Item]) -> None:
        """Keep a response.

        Args:
            owner: The caller; no other one finds it.
            response: Complete.
            items: Its own input, references resolved; those without id get one.
        """
        if not self.is_on:
            return
        shown = [_with_id(item) for item in items]
        kept = _KeptResponse(
            owner,
            jsons.dumps(response),
            jsons.dumps(shown),
            response.get("previous_response_id") or "",
            [item["id"] for item in (*shown, *response["output"])],
            self._clock.monotonic_s(),
        )
        if kept.size_bytes > self._max_bytes:
            return
        self._remove_expired()
        self._kept[response["id"]] = kept
        self.bytes_total += kept.size_bytes
        for item_id in kept.item_ids:
            self._by_item[owner, item_id] = response["id"]
        while len(self._kept) > self._max_responses or self.bytes_total > self._max_bytes:
            self._remove(next(iter(self._kept)))

    def find(self, owner: str, response_id: str) -> dict[str, Any]:
        """Return a response.

        Raises:
            NotFound: It is not the caller's, or no longer kept.
        """
        response: dict[str, Any] = jsons.loads(self._find(owner, response_id, "id").response)
        return response

    def delete(self, owner: str, response_id: str) -> None:
        """Remove a response.

        Raises:
            NotFound: It is not the caller's, or no longer kept.
        """
        self._find(owner, response_id, "id")
        self._remove(response_id)

    def input_items(self, owner: str, response_id: str) -> list[Item]:
        """Return what a response answered: the conversation before it, as far as it is kept, and its input.

        Raises:
            NotFound: It is not the caller's, or no longer kept.
        """
        kept = self._find(owner, response_id, "id")
        chain = [(response_id, kept), *self._before(kept)]
        return self._join(chain[1:]) + _load(kept.items)

    def conversation(self, owner: str, response_id: str) -> list[Item]:
        """Return all items up to the end of a response, and keep the responses that have them for longer.

        Raises:
            NotFound: It, or one that it continues, is not the caller's, or no longer kept.
        """
        kept = self._find(owner, response_id, "previous_response_id")
        chain = [(response_id, kept), *self._before(kept)]
        first = chain[-1][1]
        if first.previous_id:
            raise self._missing(first.previous_id, "previous_response_id")
        for one, _ in reversed(chain):
            self._touch(one)
        return self._join(chain)

    def resolve(self, owner: str, items: list[Item]) -> list[Item]:
        """Return items with each `item_reference` replaced by the item.

        Raises:
            NotFound: An item is not the caller's, or no longer kept.
        """
        if not any(item["type"] == "item_reference" for item in items):
            return items
        self._remove_expired()
        found: dict[str, dict[str, Item]] = {}  # by response and item: each response is read once
        return [
            self._refer(owner, item, f"input.{number}.id", found)
            if item["type"] == "item_reference"
            else item
            for number, item in enumerate(items)
        ]

    def _refer(self, owner: str, item: Item, param: str, found: dict[str, dict[str, Item]]) -> Item:
        item_id = str(item.get("id"))
        response_id = self._by_item.get((owner, item_id))
        if response_id is None:
            raise NotFound(f"There is no item {item_id[:80]!r}: {self._reason()}", param=param)
        if response_id not in found:
            self._touch(response_id)
            kept = self._kept[response_id]
            there = [*_load(kept.items), *jsons.loads(kept.response)["output"]]
            found[response_id] = {one["id"]: one for one in there}
        return found[response_id][item_id]

    def _find(self, owner: str, response_id: str, param: str) -> _KeptResponse:
        self._remove_expired()
        kept = self._kept.get(response_id)
        if kept is None or kept.owner != owner:
            raise self._missing(response_id, param)
        return kept

    def _before(self, kept: _KeptResponse) -> Iterator[tuple[str, _KeptResponse]]:
        """Yield the responses that one continues, the latest first, until one is missing."""
        while kept.previous_id in self._kept and self._kept[kept.previous_id].owner == kept.owner:
            response_id = kept.previous_id
            kept = self._kept[response_id]
            yield response_id, kept

    def _join(self, chain: list[tuple[str, _KeptResponse]]) -> list[Item]:
        """Return the input and output of responses; the latest is the first in `chain`."""
        items: list[Item] = []
        for _, kept in reversed(chain):
            items += _load(kept.items)
            items += jsons.loads(kept.response)["output"]
        return items

    def _touch(self, response_id: str) -> None:
        self._kept[response_id].used_s = self._clock.monotonic_s()
        self._kept.move_to_end(response_id)

    def _remove_expired(self) -> None:
        before_s = self._clock.monotonic_s() - self._keep_s
        while self._kept:
            response_id, kept = next(iter(self._kept.items()))
            if kept.used_s > before_s:
                return
            self._remove(response_id)

    def _remove(self, response_id: str) -> None:
        kept = self._kept.pop(response_id)
        self.bytes_total -= kept.size_bytes
        for item_id in kept.item_ids:
            if self._by_item.get((kept.owner, item_id)) == response_id:
                del self._by_item[kept.owner, item_id]

    def _missing(self, response_id: str, param: str) -> NotFound:
        code = "previous_response_not_found" if param == "previous_response_id" else None
        text = f"There is no response {response_id[:80]!r}: {self._reason()}"
        return NotFound(text, param=param, code=code)

    def _reason(self) -> str:
        if not self.is_on:
            return "responses are not kept here (RESPONSES_KEEP_S=0). Send the former items in `input`."
        return (
            "it was deleted or not stored, is another caller's, or is no longer kept (RESPONSES_KEEP_S="
            f"{self._keep_s:g} seconds after its last use, fewer where many are kept). "
            "Send the former items in `input`."
        )


def _load(data: bytes) -> list[Item]:
    items: list[Item] = jsons.loads(data)
    return items


def _with_id(item: Item) -> Item:
    """Return an input item as it is shown: with an id, a status, and a message's text as a part."""
    shown = dict(item)
    if not isinstance(shown.get("id"), str) or not shown["id"]:
        shown["id"] = new_id(PREFIXES.get(item["type"], "msg"))
    if item["type"] == "message":
        shown.setdefault("status", "completed")
        if isinstance(item.get("content"), str):
            kind = "output_text" if item.get("role") == "assistant" else "input_text"
            part: Item = {"type": kind, "text": item["content"]}
            shown["content"] = [part | {"annotations": []} if kind == "output_text" else part]
    return shown
