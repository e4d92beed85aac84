"""Which backends could answer a request, and what its prompt begins with."""

from typing import Any

import pytest

from appliance.base.balancing import BLOCK_BYTES
from appliance.engines.dispatch_request import DispatchRequest, hash_prompt_prefixes
from appliance.engines.receipts import Receipt
from appliance.engines.types import RequestOptions
from tests.engines.scripted import TableBackend, engine_request, pool_of

LOCAL = RequestOptions(is_local_only=True)
FIRST = [
    TableBackend("small", context_tokens=10),
    TableBackend("large", context_tokens=20),
    TableBackend("unknown"),
    TableBackend("hosted", is_remote=True),
    TableBackend("other", models=["x"]),
]
SPARE = [TableBackend("spare", context_tokens=20)]


@pytest.mark.parametrize(
    ("how", "names"),
    [
        ({}, ["small", "large", "unknown", "hosted", "spare"]),
        ({"model": "x"}, ["other"]),
        ({"model": None}, ["small", "large", "unknown", "hosted", "other", "spare"]),
        ({"tried": {"small", "spare"}}, ["large", "unknown", "hosted"]),
        ({"context_over": 10}, ["large", "unknown", "hosted", "spare"]),
        ({"options": RequestOptions(context_tokens=11)}, ["large", "unknown", "hosted", "spare"]),
        ({"options": RequestOptions(context_tokens=21)}, ["unknown", "hosted"]),
        ({"options": LOCAL}, ["small", "large", "unknown"]),  # and no overflow
    ],
)
def test_who_could_answer(how: dict[str, Any], names: list[str]) -> None:
    stages = [pool_of(*FIRST), pool_of(*SPARE, name="spare")]
    request = DispatchRequest(
        **{
            "stages": stages,
            "model": "m",
            "reason": "model",
            "options": RequestOptions(),
            "receipt": Receipt("r"),
            "deadline_s": 1.0,
        }
        | how
    )
    assert [backend.name for backend in request.candidates()] == names


LONG = "x" * BLOCK_BYTES


@pytest.mark.parametrize(
    ("body", "other", "shared"),
    [
        # equal beginnings have equal hashes
        ({"messages": [LONG, "a"]}, {"messages": [LONG, "b"]}, 1),
        ({"messages": ["a", LONG]}, {"messages": ["b", LONG]}, 0),
        ({"prompt": LONG}, {"prompt": LONG}, 1),
        ({"input": LONG}, {"input": LONG}, 1),
        # the client's own key is one more
        ({"messages": [LONG], "prompt_cache_key": "k"}, {"messages": ["a"], "prompt_cache_key": "k"}, 1),
        ({"messages": ["a"], "prompt_cache_key": 7}, {"messages": ["a"], "prompt_cache_key": 7}, 0),
        ({"messages": ["short"]}, {"messages": ["short"]}, 0),  # less than a block
    ],
)
def test_equal_beginnings_have_equal_hashes(body: Any, other: Any, shared: int) -> None:
    one, two = (hash_prompt_prefixes(engine_request(value)) for value in (body, other))
    assert len(set(one) & set(two)) == shared
