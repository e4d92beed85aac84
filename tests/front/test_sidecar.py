"""The sidecar's own addresses: health, readiness, and the dialect of its table."""

from typing import Any

import pytest

from appliance.engines.types import BackendState
from appliance.front.sidecar import SidecarHandlers
from tests.front.requests import json_of, make_request


async def test_health_says_that_the_process_responds() -> None:
    response = await SidecarHandlers(lambda: None).health(make_request())
    assert json_of(response) == {"status": "healthy", "service": "runtime"}


@pytest.mark.parametrize(
    ("state", "code", "body"),
    [
        (None, 503, {"status": "not_ready", "engine": None, "detail": "No engine is configured."}),
        (
            BackendState("e", "vllm", True, "", url="http://e", models=("m",)),
            200,
            {
                "status": "ready",
                "engine": {"kind": "vllm", "url": "http://e", "standing": "ready", "models": ["m"]},
                "detail": "",
            },
        ),
        (
            BackendState("e", "vllm", False, "connection refused", standing="down"),
            503,
            {
                "status": "not_ready",
                "engine": {"kind": "vllm", "url": "", "standing": "down", "models": []},
                "detail": "connection refused",
            },
        ),
    ],
)
async def test_readiness_follows_the_engine(state: BackendState | None, code: int, body: Any) -> None:
    response = await SidecarHandlers(lambda: state, pod="pod-1").ready(make_request())
    assert (response.status, json_of(response)) == (code, {**body, "pod": "pod-1"})
