"""The hosted API: which endpoint is tried next, what an error status means, when its circuits open.

The API is a stand-in on loopback.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import (
    ApplianceError,
    Exhausted,
    Forbidden,
    Invalid,
    TimedOut,
    Unavailable,
    UpstreamFailed,
)
from appliance.base.metrics.registry import Metrics
from appliance.base.wire.pool import ConnectionPool
from appliance.base.wire.types import PoolFull, PoolLimits
from appliance.engines.backends.contract import BackendCallbacks
from appliance.engines.backends.hosted import HostedBackend, base_address, map_error
from appliance.engines.outcome import Outcome
from appliance.engines.settings import EngineSettings
from appliance.engines.slots import AnySlot
from appliance.engines.types import BackendStatus, EngineReply
from appliance.engines.upstream.exchange import AttemptFailed
from tests.engines.servers import chat
from tests.fakes.hosted_api import (
    KEY,
    CutStream,
    ErrorObject,
    Hang,
    HostedApi,
    InvalidResponse,
    Refuse,
    Stall,
    Status,
)

pytestmark = pytest.mark.timeout(20)


class Scene:
    """A backend over two endpoints, which are two stand-ins."""

    def __init__(
        self,
        backend: HostedBackend,
        apis: list[HostedApi],
        clock: FakeClock,
        metrics: Metrics,
        reports: list[str],
    ) -> None:
        self.backend, self.apis, self.clock = backend, apis, clock
        self.metrics, self.reports = metrics, reports
        self.request = chat("any")
        self.slot: AnySlot | None = None

    async def send(self, *, stream: bool = False, budget_s: float = 5.0) -> EngineReply:
        self.request = chat("any", stream=stream)
        self.slot = self.backend.take("only_one")
        return await self.backend.send(self.request, self.slot, budget_s=budget_s)

    async def fail(self, **how: Any) -> ApplianceError:
        with pytest.raises(ApplianceError) as caught:
            await self.send(**how)
        return caught.value

    def outcomes(self) -> list[str]:
        return [attempt.label for attempt in self.request.receipt.attempts]


Open = Callable[..., Awaitable[Scene]]


@pytest.fixture
async def open_hosted() -> AsyncIterator[Open]:
    """Open a scene: `await open_hosted(**settings)`."""
    wire = ConnectionPool(PoolLimits())
    async with HostedApi() as first, HostedApi() as second:

        async def make(**settings: Any) -> Scene:
            clock, metrics, reports = FakeClock(), Metrics(), list[str]()
            backend = HostedBackend(
                EngineSettings(
                    novita_api_key=KEY,
                    novita_openai_endpoints=[first.base_url, second.base_url],
                    **settings,
                ),
                wire=wire,
                clock=clock,
                metrics=metrics,
                callbacks=BackendCallbacks(lambda: reports.append("capacity")),
            )
            return Scene(backend, [first, second], clock, metrics, reports)

        yield make
    await wire.close()


async def test_the_first_endpoint_answers(open_hosted: Open) -> None:
    scene = await open_hosted()
    reply = await scene.send()
    assert (reply.status, scene.outcomes(), scene.request.receipt.endpoint) == (
        200,
        ["ok"],
        scene.apis[0].base_url,
    )
    assert (scene.backend.in_flight, scene.reports) == (0, ["capacity"])


@pytest.mark.parametrize("status", [404, 408, 429, 500, 502, 503, 302])
async def test_the_next_endpoint_is_tried_after_its_failure(open_hosted: Open, status: int) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Status(status))
    assert (await scene.send()).status == 200
    assert scene.outcomes() == [f"status_{status}", "ok"]


@pytest.mark.parametrize("fault", [Refuse(), InvalidResponse()])
async def test_the_next_endpoint_is_tried_after_a_broken_response(open_hosted: Open, fault: Any) -> None:
    scene = await open_hosted()
    scene.apis[0].script(fault, fault)  # a connection that breaks without a byte is replaced once
    assert (await scene.send()).status == 200
    assert scene.outcomes()[-1] == "ok"
    assert len(scene.outcomes()) == 2


@pytest.mark.parametrize(("status", "error"), [(400, Invalid), (403, Forbidden), (422, Invalid)])
async def test_the_clients_own_fault_is_raised_at_once(
    open_hosted: Open, status: int, error: type[ApplianceError]
) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Status(status))
    assert isinstance(await scene.fail(), error)
    assert (scene.outcomes(), scene.slot and scene.slot.attempt.outcome) == (["refused"], Outcome.REFUSED)


async def test_a_500_for_the_clients_own_fault_is_told_at_once(open_hosted: Open) -> None:
    scene = await open_hosted()
    sentence = "Unterminated string starting at: line 1 column 7 (char 6)"
    scene.apis[0].script(Status(500, body='{"message":"' + sentence + '"}'))
    error = await scene.fail()
    assert (type(error), error.message, error.param) == (Invalid, sentence, "messages")
    assert scene.outcomes() == ["refused"]


async def test_a_refused_key_names_the_variable(open_hosted: Open) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Status(401))
    error = await scene.fail()
    assert (type(error), error.code, "NOVITA_API_KEY" in error.message) == (
        UpstreamFailed,
        "upstream_key_refused",
        True,
    )


async def test_a_failure_of_all_endpoints_lists_the_attempts(open_hosted: Open) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Status(500))
    scene.apis[1].script(Status(503))
    error = await scene.fail()
    assert (type(error), error.code) == (UpstreamFailed, "novita_upstream_error")
    assert "2 tried, the last: status_503" in error.message
    assert [row["outcome"] for row in error.details["attempts"]] == ["status_500", "status_503"]


@pytest.mark.parametrize(
    ("last", "text"),
    [
        (
            Status(308, location="https://elsewhere.example/v1/chat?key=s3"),
            "(2 tried, the last: status_308, redirects to 'https://elsewhere.example/v1/chat', not followed).",
        ),
        (Refuse(), "(2 tried, the last: first_byte, the server closed the connection without a response)."),
        (Status(502), "(2 tried, the last: status_502)."),
        (ErrorObject(), "(2 tried, the last: error_event, quota spent)."),
    ],
)
async def test_a_failure_of_all_says_what_the_last_one_did(open_hosted: Open, last: Any, text: str) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Status(500))
    scene.apis[1].script(last)
    assert (await scene.fail()).message.endswith(text)


async def test_open_circuits_say_when_they_are_retried(open_hosted: Open) -> None:
    scene = await open_hosted(breaker_failures=1, breaker_rest_s=20)
    for api in scene.apis:
        api.script(Status(500))
    await scene.fail()
    state = scene.backend.describe()
    assert (state.is_up, state.standing, state.breaker) == (False, "circuit_open", "open")
    assert state.detail == "all circuits open after failures, retrying in 20 s"
    scene.clock.advance(5)
    error = await scene.fail()
    assert (type(error), error.retry_after_s) == (Unavailable, 15)
    assert error.message.endswith("are open after failures; retrying in 15 s.")
    scene.clock.advance(15)
    assert (await scene.send()).status == 200
    assert scene.backend.describe().standing == "ready"


async def test_an_endpoint_with_an_open_circuit_is_skipped(open_hosted: Open) -> None:
    scene = await open_hosted(breaker_failures=1)
    scene.apis[0].script(Status(500))
    await scene.send()
    await scene.send()
    assert scene.outcomes() == ["ok"]
    rows = scene.backend.describe().endpoints
    assert [(row["failed_in_a_row"], row["last_error"].partition(":")[0]) for row in rows] == [
        (1, "status_500"),
        (0, ""),
    ]


async def test_a_status_404_opens_no_circuit(open_hosted: Open) -> None:
    scene = await open_hosted(breaker_failures=1)
    scene.apis[0].script(Status(404))
    await scene.send()
    assert scene.backend.describe().endpoints[0]["rested_s"] == 0


async def test_no_time_is_left_for_another_endpoint(open_hosted: Open) -> None:
    scene = await open_hosted()
    error = await scene.fail(budget_s=0.0)
    assert isinstance(error, TimedOut)
    assert "UPSTREAM_TOTAL_TIMEOUT_S" in error.message


async def test_a_cancelled_probe_lets_another_request_try(open_hosted: Open) -> None:
    scene = await open_hosted(breaker_failures=1, breaker_rest_s=10)
    for api in scene.apis:
        api.script(Status(500))
    await scene.fail()
    scene.clock.advance(10)
    scene.apis[0].script(Hang())
    probe = asyncio.create_task(scene.send())
    async with asyncio.timeout(5):
        while len(scene.apis[0].records) < 2:
            await asyncio.sleep(0)
    probe.cancel()
    await asyncio.wait([probe])
    assert (scene.outcomes(), scene.slot and scene.slot.attempt.outcome) == (["cancelled"], Outcome.CANCELLED)
    assert (scene.backend.in_flight, scene.backend.connections()["in_use"]) == (0, 0)
    assert (await scene.send()).status == 200
    assert scene.request.receipt.endpoint == scene.apis[0].base_url


async def test_its_gauges_show_open_circuits_and_connections(open_hosted: Open) -> None:
    scene = await open_hosted(breaker_failures=1)
    scene.apis[0].script(Status(500))
    await scene.send()
    scene.backend.measure()
    (family,) = scene.metrics.breaker_open.collect()
    assert [sample.value for sample in family.samples] == [1, 0]
    assert scene.backend.connections()["in_use"] == 0
    assert [card.id for card in scene.backend.cards()] == [scene.backend.names.public]


async def test_a_stream_holds_its_slot_until_it_ends(open_hosted: Open) -> None:
    scene = await open_hosted()
    scene.apis[0].script(CutStream(after_events=2))
    reply = await scene.send(stream=True)
    assert (scene.backend.in_flight, reply.events is not None) == (1, True)
    assert reply.events is not None
    with pytest.raises(ApplianceError):
        async for _ in reply.events:
            pass
    await reply.events.aclose()
    assert (scene.backend.in_flight, scene.slot and scene.slot.attempt.outcome) == (0, Outcome.CUT_OFF)


async def test_a_stream_that_is_never_read_releases_its_slot(open_hosted: Open) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Stall(after_events=2))  # the first event has a role only
    reply = await scene.send(stream=True)
    assert reply.events is not None
    await reply.events.aclose()
    assert (scene.slot and scene.slot.attempt.outcome, scene.reports) == (Outcome.CLIENT_LEFT, ["capacity"])
    assert (scene.backend.in_flight, scene.backend.connections()["in_use"]) == (0, 0)


async def test_a_full_connection_pool_opens_no_circuit(
    open_hosted: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the appliance's own limit (UPSTREAM_MAX_CONNECTIONS), not a failure of the API."""
    scene = await open_hosted(breaker_failures=1)

    async def refuse(*_: Any, **__: Any) -> Any:
        raise PoolFull("no connection came free", phase="pool")

    monkeypatch.setattr(scene.backend._wire, "send", refuse)
    await scene.fail()
    assert scene.outcomes() == ["pool", "pool"]
    assert [row["failed_in_a_row"] for row in scene.backend.describe().endpoints] == [0, 0]


# ---- names and addresses


@pytest.mark.parametrize(
    ("name", "is_strict", "is_found"),
    [
        ("anything", False, True),
        ("anything", True, False),
        ("", True, True),
        ("llama3.2-3b-instruct", True, True),
    ],
)
async def test_with_strict_names_only_its_own_are_found(
    open_hosted: Open, name: str, is_strict: bool, is_found: bool
) -> None:
    scene = await open_hosted(model_strict=is_strict)
    assert (scene.backend.find_model(name) is not None) is is_found
    assert scene.backend.status(0.0) is BackendStatus.READY


@pytest.mark.parametrize(
    ("address", "base"),
    [
        ("https://x/v1", "https://x/v1"),
        ("https://x/v1/", "https://x/v1"),
        ("https://x/v1/chat/completions", "https://x/v1"),
    ],
)
def test_the_base_of_an_address(address: str, base: str) -> None:
    assert base_address(address) == base


@pytest.mark.parametrize(
    ("status", "outcome", "retry_after_s"),
    [
        (301, "status_301", None),
        (404, "status_404", None),
        (429, "status_429", 7),
        (503, "status_503", 7),
        (502, "status_502", None),
    ],
)
def test_what_an_error_status_means(status: int, outcome: str, retry_after_s: float | None) -> None:
    failed = map_error(status, {"retry-after": "7", "location": "https://b/v1"}, "text")
    assert isinstance(failed, AttemptFailed)
    assert (failed.label, failed.retry_after_s) == (outcome, retry_after_s)
    assert failed.note == ("redirects to 'https://b/v1', not followed" if status == 301 else "text")


@pytest.mark.parametrize(("waits", "retry_after_s"), [((7, 5), 5), ((7, None), 7), ((None, None), None)])
async def test_429_of_all_endpoints_is_a_429(
    open_hosted: Open, waits: tuple[float | None, ...], retry_after_s: float | None
) -> None:
    scene = await open_hosted(breaker_failures=1)
    for api, wait_s in zip(scene.apis, waits, strict=True):
        api.script(Status(429, retry_after_s=wait_s))
    error = await scene.fail()
    assert isinstance(error, Exhausted)
    assert (error.retry_after_s, "2 of its endpoints answered 429" in error.message) == (retry_after_s, True)
    assert (await scene.send()).status == 200, "the limit of one request opens no circuit"


async def test_one_429_among_other_failures_is_a_failure(open_hosted: Open) -> None:
    scene = await open_hosted()
    scene.apis[0].script(Status(429, retry_after_s=7))
    scene.apis[1].script(Status(502))
    error = await scene.fail()
    assert (type(error), error.code) == (UpstreamFailed, "novita_upstream_error")
