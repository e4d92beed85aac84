"""The request pipeline, step by step: ids, admission, errors in each dialect, one settlement in every case."""

import asyncio
import io
import json
from collections.abc import Callable
from typing import Any

import pytest

from appliance.base.clock import FakeClock
from appliance.base.errors import (
    ApplianceError,
    Conflict,
    Exhausted,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unauthenticated,
    Unavailable,
    UpstreamFailed,
)
from appliance.base.metrics.registry import Metrics
from appliance.base.watch import Watched
from appliance.engines.outcome import Finish
from appliance.engines.receipts import Receipts
from appliance.front.pipeline.access import Access
from appliance.front.pipeline.access_log import AccessLog
from appliance.front.pipeline.pipeline import RequestPipeline, forget_frames
from appliance.front.pipeline.request import Request
from appliance.front.pipeline.response import Response
from appliance.front.pipeline.route import Handler, Route
from appliance.front.settings import FrontSettings

CLIENT_KEY, OPERATOR_KEY, LOCAL_KEY = "client-key-1", "operator-key-1", "local-key-1"


class Harness:
    """A pipeline whose clock, state and outputs a test can reach."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.state = Watched("serving")
        self.metrics = Metrics()
        self.receipts = Receipts()
        self.log = io.StringIO()
        self.access_log = AccessLog(clock=self.clock, form="json", stream=self.log)
        self.pipeline = RequestPipeline(
            front(**settings),
            receipts=self.receipts,
            metrics=self.metrics,
            access_log=self.access_log,
            clock=self.clock,
            state=self.state,
        )

    def request(self, method: str = "POST", body: bytes = b"", **headers: str) -> Request:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.pipeline.request(
            "/w", method=method, path="/w", headers=named, body=body, peer="10.0.0.9"
        )

    async def respond(self, handler: Handler, *, dialect: str = "openai", **headers: str) -> Response:
        route = Route(("POST",), "/w", handler, dialect=dialect)
        return await self.pipeline.respond(route, self.request(**headers))

    def lines(self) -> list[dict[str, Any]]:
        """The access log's lines."""
        self.access_log.flush()
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def metric(self, line: str) -> float:
        """The value of a metric's line, 0 where there is none."""
        for row in self.metrics.render(openmetrics=False).decode().splitlines():
            if row.startswith(line + " "):
                return float(row.rpartition(" ")[2])
        return 0.0


def front(**settings: Any) -> FrontSettings:
    return FrontSettings(_env_file=None, **settings)


def raising(error: BaseException) -> Handler:
    async def handler(request: Request) -> Response:
        raise error

    return handler


async def hello(request: Request) -> Response:
    return Response(200, b"hello", "text/plain", headers=[("X-Own", "1")])


# ---- ids


@pytest.mark.parametrize("wanted", ["my-id.1", "a", "x" * 128, "A_b-C.9"])
def test_a_plain_id_of_the_caller_is_kept(wanted: str) -> None:
    request = Harness().request(x_request_id=wanted)
    assert (request.id, request.receipt.id) == (wanted, wanted)


@pytest.mark.parametrize("wanted", ["", "x" * 129, "a b", "é", "a\nb", "a/b", "a;b"])
def test_any_other_id_is_replaced_by_a_new_one(wanted: str) -> None:
    harness = Harness()
    first, second = harness.request(x_request_id=wanted), harness.request(x_request_id=wanted)
    assert first.id.startswith("req_")
    assert first.id != second.id


def test_two_pipelines_give_different_ids() -> None:
    assert Harness().request().id != Harness().request().id


# ---- admission


@pytest.mark.parametrize(
    ("state", "is_open", "is_admitted"),
    [
        ("starting", False, True),
        ("serving", False, True),
        ("draining", False, False),
        ("stopping", False, False),
        ("draining", True, True),
        ("stopping", True, True),
    ],
)
def test_new_requests_are_taken_by_state(state: str, is_open: bool, is_admitted: bool) -> None:
    harness = Harness()
    harness.state.set(state)
    request = harness.request()
    if is_admitted:
        harness.pipeline.admit(Access.CLIENT, request, is_open_while_draining=is_open)
        return
    with pytest.raises(Unavailable, match="draining and takes no new requests") as caught:
        harness.pipeline.admit(Access.CLIENT, request, is_open_while_draining=is_open)
    assert (caught.value.code, caught.value.retry_after_s) == ("draining", 5)


def test_access_is_checked_before_the_state() -> None:
    harness = Harness(appliance_api_keys=CLIENT_KEY)
    harness.state.set("draining")
    with pytest.raises(Unauthenticated, match="No API key"):
        harness.pipeline.admit(Access.CLIENT, harness.request())


def test_a_body_beyond_the_limit_is_refused_with_the_limit() -> None:
    harness = Harness(max_body_bytes=1024)
    harness.pipeline.admit(Access.CLIENT, harness.request(body=b" " * 1024))
    with pytest.raises(TooLarge, match=r"larger than 1024 bytes \(MAX_BODY_BYTES\)"):
        harness.pipeline.admit(Access.CLIENT, harness.request(body=b" " * 1025))


def test_admitting_reads_the_options() -> None:
    harness = Harness(appliance_api_keys=f"{CLIENT_KEY},{LOCAL_KEY}", stay_local_api_keys=LOCAL_KEY)
    request = harness.request(authorization=f"Bearer {CLIENT_KEY}", x_request_priority="high")
    harness.pipeline.admit(Access.CLIENT, request)
    assert (request.options.priority, request.options.is_local_only) == (0, False)
    assert request.options.flow not in {"", "10.0.0.9", CLIENT_KEY}
    local = harness.request(authorization=f"Bearer {LOCAL_KEY}")
    harness.pipeline.admit(Access.CLIENT, local)
    assert local.options.is_local_only


def test_only_an_operator_chooses_the_backend() -> None:
    harness = Harness(appliance_api_keys=CLIENT_KEY, operator_api_keys=OPERATOR_KEY)
    chosen = {"x_appliance_backend": "b1"}
    with pytest.raises(Forbidden, match="needs a key of OPERATOR_API_KEYS"):
        harness.pipeline.admit(Access.CLIENT, harness.request(authorization=f"Bearer {CLIENT_KEY}", **chosen))
    request = harness.request(authorization=f"Bearer {OPERATOR_KEY}", **chosen)
    harness.pipeline.admit(Access.CLIENT, request)
    assert request.options.pin == "b1"


def test_new_keys_hold_from_the_next_request_on() -> None:
    harness = Harness()
    harness.pipeline.admit(Access.CLIENT, harness.request())
    harness.pipeline.apply(front(appliance_api_keys=CLIENT_KEY, heartbeat_s=3))
    assert harness.pipeline.heartbeat_s() == 3
    with pytest.raises(Unauthenticated):
        harness.pipeline.admit(Access.CLIENT, harness.request())


def test_a_guarded_request_needs_no_key_but_keeps_the_limits() -> None:
    harness = Harness(appliance_api_keys=CLIENT_KEY)
    harness.pipeline.admit_guarded(harness.pipeline.guarded_request("grpc/Chat"))
    harness.state.set("stopping")
    with pytest.raises(Unavailable):
        harness.pipeline.admit_guarded(harness.pipeline.guarded_request("grpc/Chat"))


# ---- responses and errors


async def test_a_response_gets_the_id_beside_its_own_headers() -> None:
    harness = Harness()
    request = harness.request(x_request_id="r1")
    response = await harness.pipeline.respond(Route(("POST",), "/w", hello), request)
    assert (response.status, response.body, response.headers) == (200, b"hello", [("X-Own", "1")])
    assert harness.pipeline.response_headers(request) == [("x-request-id", "r1")]
    assert harness.pipeline.header_lines(request) == "x-request-id: r1\r\n"


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (
            "openai",
            {"error": {"message": "It is full.", "type": "rate_limit_error", "param": None, "code": "full"}},
        ),
        ("ollama", {"error": "It is full."}),
        ("detail", {"detail": "It is full."}),
    ],
)
async def test_an_error_is_rendered_in_the_routes_dialect(dialect: str, body: Any) -> None:
    error = Exhausted("It is full.", code="full", retry_after_s=1.2)
    response = await Harness().respond(raising(error), dialect=dialect, x_request_id="r1")
    assert (response.status, json.loads(response.body)) == (429, body)
    assert response.headers == [("Retry-After", "2")]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Invalid("no"), 400),
        (Unauthenticated("no"), 401),
        (Forbidden("no"), 403),
        (NotFound("no"), 404),
        (Conflict("no"), 409),
        (TooLarge("no"), 413),
        (UpstreamFailed("no"), 502),
        (Invalid("no", details={"status": 422}), 422),
    ],
)
async def test_each_kind_of_error_has_its_status(error: ApplianceError, status: int) -> None:
    harness = Harness()
    request = harness.request()
    response = await harness.pipeline.respond(Route(("POST",), "/w", raising(error)), request)
    assert (response.status, request.receipt.status) == (status, status)
    assert request.receipt.error == f"{error.kind.value}: no"
    assert (("WWW-Authenticate", "Bearer") in response.headers) == (status == 401)


async def test_an_unexpected_exception_shows_only_the_id(capsys: pytest.CaptureFixture[str]) -> None:
    response = await Harness().respond(raising(KeyError("sk_secret_thing")), x_request_id="r1")
    message = json.loads(response.body)["error"]["message"]
    assert response.status == 500
    assert message == "Something failed inside the appliance; its log has the details under r1."


async def test_a_client_that_leaves_is_not_an_error() -> None:
    with pytest.raises(asyncio.CancelledError):
        await Harness().respond(raising(asyncio.CancelledError()))


async def test_headers_have_the_receipt_once_a_backend_was_asked() -> None:
    harness = Harness()

    async def handler(request: Request) -> Response:
        request.receipt.backend, request.receipt.served_model = "b1", "mädel\r\nX-Evil: 1"
        return Response()

    request = harness.request()
    await harness.pipeline.respond(Route(("POST",), "/w", handler), request)
    headers = dict(harness.pipeline.response_headers(request))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    assert harness.pipeline.header_lines(request) == lines
    assert headers["Server-Timing"] == "queue;dur=0.0, upstream;dur=0.0"
    assert headers["x-appliance-receipt"].startswith("backend=b1; ")
    assert "m?del" in headers["x-appliance-receipt"]
    assert not set("\r\n") & set(headers["x-appliance-receipt"])


@pytest.mark.parametrize(
    ("allowed", "origin", "headers"),
    [
        ([], "https://a", []),
        (["https://a"], "https://b", [("Vary", "Origin")]),
        (["https://a"], "https://a", [("Access-Control-Allow-Origin", "https://a"), ("Vary", "Origin")]),
        (["*"], "https://b", [("Access-Control-Allow-Origin", "*"), ("Vary", "Origin")]),
    ],
)
def test_cors_headers_are_for_named_origins(
    allowed: list[str], origin: str, headers: list[tuple[str, str]]
) -> None:
    found = Harness(cors_origins=",".join(allowed)).pipeline.cors_headers(origin)
    assert [row for row in found if row[0] != "Access-Control-Expose-Headers"] == headers


# ---- one settlement, in every case


def done(request: Request) -> None:
    request.receipt.status, request.finish, request.sent_bytes = 200, Finish.DONE, 7


def left(request: Request) -> None:
    pass


def left_during_the_response(request: Request) -> None:
    request.receipt.status, request.sent_bytes = 200, 3


def cut_off(request: Request) -> None:
    request.receipt.status, request.finish = 200, Finish.CUT_OFF


def failed(request: Request) -> None:
    request.receipt.status, request.finish = 503, Finish.ERROR


def raised(request: Request) -> None:
    raise KeyError("an unexpected exception")


def cancelled(request: Request) -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("course", "finish", "status", "sent_bytes"),
    [
        (done, "done", 200, 7),
        (left, "client_left", 499, 0),
        (left_during_the_response, "client_left", 200, 3),
        (cut_off, "cut_off", 200, 0),
        (failed, "error", 503, 0),
        (raised, "client_left", 499, 0),
        (cancelled, "client_left", 499, 0),
    ],
)
def test_a_request_is_settled_once_however_it_ends(
    course: Callable[[Request], None], finish: str, status: int, sent_bytes: int
) -> None:
    harness = Harness()
    request = harness.request()
    assert harness.pipeline.in_flight == 0  # it counts once it is entered
    try:
        with request:
            assert harness.pipeline.in_flight == 1
            harness.clock.advance(0.25)
            course(request)
    except (KeyError, asyncio.CancelledError):
        pass
    assert harness.pipeline.in_flight == 0
    assert harness.receipts.latest(9) == [request.receipt]
    assert (request.receipt.finish_label, request.receipt.status) == (finish, status)
    assert request.receipt.total_ms == 250
    assert harness.metric(f'appliance_requests_total{{route="/w",status="{status}"}}') == 1
    assert harness.metric('appliance_request_duration_seconds_sum{route="/w"}') == 0.25
    (line,) = harness.lines()
    assert (line["id"], line["finish"], line["status"], line["bytes"], line["ms"]) == (
        request.id,
        finish,
        status,
        sent_bytes,
        250.0,
    )


def test_a_request_that_is_never_entered_is_not_counted() -> None:
    harness = Harness()
    harness.request()
    assert (harness.pipeline.in_flight, len(harness.receipts), harness.lines()) == (0, 0, [])


@pytest.mark.parametrize(("method", "kept"), [("POST", 1), ("GET", 0), ("-", 0), ("DELETE", 0)])
def test_only_receipts_of_posts_are_kept(method: str, kept: int) -> None:
    harness = Harness()
    with harness.request(method) as request:
        done(request)
    assert (len(harness.receipts), len(harness.lines())) == (kept, 1)


def test_time_to_the_first_byte_is_measured_where_there_was_one() -> None:
    harness = Harness()
    with harness.request() as request:
        harness.clock.advance(0.5)
        harness.pipeline.mark_first_byte(request)
        harness.clock.advance(1)
    with harness.request():
        pass
    assert harness.metric('appliance_time_to_first_byte_seconds_count{route="/w"}') == 1
    assert harness.metric('appliance_time_to_first_byte_seconds_sum{route="/w"}') == 0.5


def test_tokens_and_events_count_for_the_backend_that_answered() -> None:
    harness = Harness()
    with harness.request() as request:
        request.receipt.backend, request.receipt.public_model, request.events = "b1", "m1", 5
        request.receipt.prompt_tokens, request.receipt.completion_tokens = 3, 4
    with harness.request() as unanswered:
        unanswered.events = 9
    assert harness.metric('appliance_tokens_total{backend="b1",kind="prompt",model="m1"}') == 3
    assert harness.metric('appliance_tokens_total{backend="b1",kind="completion",model="m1"}') == 4
    assert harness.metric('appliance_stream_events_total{backend="b1"}') == 5


@pytest.mark.parametrize(
    ("first_s", "last_s", "tokens", "to_first", "between"),
    [
        (None, None, 4, (0, 0.0), (0, 0.0)),  # a whole response
        (0.5, 2.0, 4, (1, 0.5), (1, 0.5)),
        (0.5, 0.5, 1, (1, 0.5), (0, 0.0)),  # between one token and itself is nothing
        (0.5, 2.0, None, (1, 0.5), (0, 0.0)),
    ],
)
def test_times_of_tokens_count_for_the_model(
    first_s: float | None,
    last_s: float | None,
    tokens: int | None,
    to_first: tuple[int, float],
    between: tuple[int, float],
) -> None:
    harness = Harness()
    with harness.request() as request:
        receipt = request.receipt
        receipt.backend, receipt.public_model, receipt.completion_tokens = "b1", "m1", tokens
        if first_s is not None:
            receipt.note_first_token(request.began_s + first_s)
        if last_s is not None:
            receipt.note_last_token(request.began_s + last_s)
    for name, (count, total_s) in (("to_first_token", to_first), ("between_tokens", between)):
        assert harness.metric(f'appliance_time_{name}_seconds_count{{model="m1"}}') == count
        assert harness.metric(f'appliance_time_{name}_seconds_sum{{model="m1"}}') == pytest.approx(total_s)


def test_without_the_access_log_no_line_is_written() -> None:
    harness = Harness(access_log=False)
    with harness.request() as request:
        done(request)
    assert (harness.lines(), len(harness.receipts)) == ([], 1)


def test_a_guarded_request_is_accounted_like_any_other() -> None:
    harness = Harness()
    with harness.pipeline.guarded_request("grpc/Chat") as request:
        request.receipt.status, request.finish = 200, Finish.DONE
    assert harness.lines() == []  # its interface writes its own
    assert harness.receipts.latest(1)[0].route == "grpc/Chat"
    assert harness.metric('appliance_requests_total{route="grpc/Chat",status="200"}') == 1


@pytest.mark.parametrize(("first_byte_s", "finish"), [(0.0, Finish.ERROR), (1.0, Finish.CUT_OFF)])
def test_a_failed_stream_is_cut_off_after_its_first_byte(first_byte_s: float, finish: Finish) -> None:
    harness = Harness()
    request = harness.request()
    request.first_byte_s = first_byte_s
    failure = harness.pipeline.fail_stream(UpstreamFailed("it broke"), request)
    assert (str(failure), request.finish) == ("it broke", finish)
    assert request.receipt.error == "upstream: it broke"


def test_a_failed_stream_hides_an_unexpected_exception() -> None:
    harness = Harness()
    request = harness.request(x_request_id="r1")
    failure = harness.pipeline.fail_stream(ZeroDivisionError(), request)
    assert failure.message.endswith("its log has the details under r1.")
    assert request.receipt.error.startswith("internal: ")


def test_an_answered_error_keeps_no_frames() -> None:
    try:
        try:
            raise ValueError("first")
        except ValueError as first:
            raise KeyError("second") from first
    except KeyError as error:
        answered = error
    forget_frames(answered)
    assert answered.__traceback__ is None
    assert answered.__cause__ is not None
    assert answered.__cause__.__traceback__ is None
