"""What is sent up: the client's bytes where they can stay, else a body written anew."""

from typing import Any

import pytest

from appliance.base import jsons
from appliance.engines.upstream.request_body import render_body
from tests.engines.scripted import engine_request

RAW = b'{"seed": 1.50, "model":"m"}'
RAW_STREAM = b'{"stream": true,  "model":"m"}'


@pytest.mark.parametrize(
    ("raw", "wants_events", "sent"),
    [(RAW, False, b'{"seed": 1.50, "model":"up"}'), (RAW_STREAM, True, b'{"stream": true,  "model":"up"}')],
)
def test_the_clients_bytes_stay_but_for_the_model(raw: bytes, wants_events: bool, sent: bytes) -> None:
    request = engine_request(jsons.loads(raw), raw=raw)
    assert render_body(request, "up", wants_events=wants_events) == sent


@pytest.mark.parametrize(
    ("body", "how", "sent"),
    [
        # another dialect has no bytes of OpenAI's
        ({"n": 1}, {"wants_events": False}, {"n": 1, "model": "up"}),
        # a stream where none was wanted, and none where one was
        ({"n": 1}, {"wants_events": True}, {"n": 1, "model": "up", "stream": True}),
        (
            {"stream": True, "stream_options": {"include_usage": True}},
            {"wants_events": False},
            {"model": "up"},
        ),
        ({"stream": True}, {"wants_events": True}, {"model": "up", "stream": True}),
        # a stream that becomes one response has its usage in it
        (
            {"n": 1},
            {"wants_events": False, "is_gathered": True},
            {"n": 1, "model": "up", "stream": True, "stream_options": {"include_usage": True}},
        ),
        # fields to add; the client's own value of one wins
        ({"n": 1}, {"wants_events": False, "extra": (("lora", [7]),)}, {"n": 1, "model": "up", "lora": [7]}),
        ({"lora": []}, {"wants_events": False, "extra": (("lora", [7]),)}, {"model": "up", "lora": []}),
    ],
)
@pytest.mark.parametrize("has_raw", [True, False])
def test_what_differs_is_written_anew(
    body: dict[str, Any], how: dict[str, Any], sent: dict[str, Any], has_raw: bool
) -> None:
    request = engine_request(dict(body), raw=jsons.dumps(body) if has_raw else None)
    assert jsons.loads(render_body(request, "up", **how)) == sent
    assert request.body == body  # it is left as it was
