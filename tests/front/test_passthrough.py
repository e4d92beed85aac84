"""Passthrough: which server is next, and the error without one. Over sockets: journeys/test_passthrough.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from appliance.base.errors import ApplianceError, NotFound, TimedOut, Unavailable, UpstreamFailed
from appliance.base.wire.types import UpstreamTimeout, WireError
from appliance.engines.outcome import Outcome
from appliance.engines.receipts import Attempt
from appliance.engines.types import NO_OPTIONS, ModelCard, RequestOptions
from appliance.front.passthrough.passthrough import Passthrough, outcome_of
from appliance.front.pipeline.access import Access
from appliance.front.settings import FrontSettings
from tests.front.requests import make_request


class Router:
    """Three servers of two kinds, and a retry budget that may be spent."""

    def __init__(self) -> None:
        self.direct = self
        self.has_budget = True
        self.has_several = False
        self.asked_budget: list[str] = []

    def server_names(self) -> list[str]:
        return ["a", "b", "c"]

    def has_servers(self) -> bool:
        return True

    def backends(self) -> list[Any]:
        kinds = {"a": "vllm", "b": "vllm", "c": "llamacpp"}
        return [SimpleNamespace(name=name, kind=kind) for name, kind in kinds.items()]

    def is_managed(self, model: str) -> bool:
        return model == "own"

    def needs_model(self) -> bool:
        return self.has_several

    def find_card(self, name: str) -> ModelCard | None:
        cards = {"own": "", "m": "", "style": "m"}
        return ModelCard(name, 0, "vllm", name, parent=cards[name]) if name in cards else None

    def may_retry(self, reason: str) -> bool:
        self.asked_budget.append(reason)
        return self.has_budget


class Pipeline:
    """Admits every request, and records with which access."""

    def __init__(self, **settings: Any) -> None:
        self.settings = FrontSettings(_env_file=None, **settings)
        self.asked: list[Access] = []

    async def look_up(self, access: Access, headers: dict[str, str], peer: str) -> None:
        """Every caller is in memory."""

    def admit(self, access: Access, request: Any) -> None:
        self.asked.append(access)
        request.options = RequestOptions(flow="x", pin=request.headers.get("x-appliance-backend", ""))


def passthrough(router: Router | None = None, pipeline: Pipeline | None = None) -> Passthrough:
    return Passthrough(router or Router(), pipeline or Pipeline())  # type: ignore[arg-type]


def sent(**fields: Any) -> Any:
    defaults = {"is_repeatable": True, "options": NO_OPTIONS, "has_begun_upload": False}
    return SimpleNamespace(**(defaults | fields))


def failure(*, was_sent: bool, phase: str = "first_byte", kind: type[WireError] = WireError) -> WireError:
    return kind("it broke", phase=phase, was_sent=was_sent)


# ---- admission


@pytest.mark.parametrize(
    ("switch", "path", "accepts"), [(True, "/x", True), (False, "/x", False), (True, "*", False)]
)
async def test_the_setting_switches_passthrough_off(switch: bool, path: str, accepts: bool) -> None:
    assert passthrough(pipeline=Pipeline(passthrough=switch)).accepts(path) is accepts


@pytest.mark.parametrize(
    ("method", "target", "headers", "access", "forwarded", "pin"),
    [
        ("POST", "/rerank?x=1", {}, Access.CLIENT, "/rerank?x=1", ""),
        ("GET", "/slots", {}, Access.OPERATOR, "/slots", ""),
        ("GET", "/backends/b/slots?x=1", {}, Access.OPERATOR, "/slots?x=1", "b"),
        ("POST", "/backends/b", {}, Access.OPERATOR, "/", "b"),
        ("POST", "/rerank", {"x-appliance-backend": "c"}, Access.CLIENT, "/rerank", "c"),
    ],
)
async def test_access_depends_on_the_address(
    method: str, target: str, headers: dict[str, str], access: Access, forwarded: str, pin: str
) -> None:
    pipeline = Pipeline()
    request = make_request(target, method=method, headers=headers)
    found, options = await passthrough(pipeline=pipeline).admit(request, target)
    assert (pipeline.asked, found, options.pin) == ([access], forwarded, pin)


async def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(
        NotFound, match=r"no backend 'no one' that can be reached directly. Known: a, b, c\."
    ) as caught:
        await passthrough().admit(make_request("/x"), "/backends/no%20one/x")
    assert caught.value.code == "no_such_backend"


# ---- whose servers


@pytest.mark.parametrize(
    ("method", "target", "pin", "named", "model"),
    [
        ("POST", "/rerank", "", "m", "m"),
        ("POST", "/rerank", "", "nobody", "nobody"),  # work for a model that is not here is refused later
        ("POST", "/rerank", "", "", ""),
        ("POST", "/tokenize", "", "m", "m"),
        ("POST", "/tokenize", "", "style", "m"),  # an adapter's tokens are its base's
        ("POST", "/tokenize", "", "nobody", ""),
        ("GET", "/props?model=own", "", "own", "own"),
        ("GET", "/slots", "", "nobody", ""),
        ("GET", "/slots", "a", "own", "own"),
        ("GET", "/slots", "a", "m", ""),  # the pinned server has one process
        ("POST", "/rerank", "a", "nobody", ""),
    ],
)
def test_a_request_goes_to_servers_of_its_model(
    method: str, target: str, pin: str, named: str, model: str
) -> None:
    request = make_request(target.partition("?")[0], method=method)
    assert passthrough().model_for(request, target, RequestOptions(pin=pin), named) == model


@pytest.mark.parametrize(
    ("method", "target", "pin", "named", "is_found"),
    [
        ("GET", "/slots", "", "", False),
        ("GET", "/favicon.ico", "", "", False),
        ("HEAD", "/nowhere", "", "nobody", False),
        ("GET", "/slots", "", "own", True),
        ("GET", "/slots", "a", "", True),
        ("POST", "/completion", "", "", True),  # of the default model
        ("GET", "/props", "", "", True),
        ("POST", "/tokenize", "", "", True),
    ],
)
def test_an_unknown_address_without_a_model_is_not_found(
    method: str, target: str, pin: str, named: str, is_found: bool
) -> None:
    router, request = Router(), make_request(target, method=method)
    router.has_several = True
    try:
        passthrough(router).model_for(request, target, RequestOptions(pin=pin), named)
        assert is_found
    except NotFound as error:
        assert not is_found
        assert error.message.startswith(
            f"There is nothing at {target}. For an address of llama-server's own, name"
        )


# ---- which server is next


@pytest.mark.parametrize(
    ("request_", "was_sent", "tried", "has_budget", "expected"),
    [
        (sent(), False, {"a"}, False, True),  # 1. it was not reached: another one at no cost
        (sent(is_repeatable=False), False, {"a"}, False, True),
        # a part of its body was sent
        (sent(is_repeatable=False, has_begun_upload=True), False, {"a"}, True, False),
        (sent(), True, {"a"}, True, True),  # 2. no response: as long as the budget allows it
        (sent(), True, {"a"}, False, False),
        (sent(is_repeatable=False), True, {"a"}, True, False),
        (sent(), False, {"a", "b", "c"}, True, False),  # no server is left
        (sent(options=RequestOptions(pin="a")), False, {"a"}, True, False),  # the client chose this one
    ],
)
async def test_after_a_failure_another_server_may_be_asked(
    request_: Any, was_sent: bool, tried: set[str], has_budget: bool, expected: bool
) -> None:
    router = Router()
    router.has_budget = has_budget
    assert passthrough(router)._may_try_another(request_, failure(was_sent=was_sent), tried) is expected


@pytest.mark.parametrize(
    ("status", "tried", "repeatable", "has_budget", "expected"),
    [
        (200, set(), True, True, None),
        (400, set(), True, True, None),
        (500, set(), True, True, None),
        (429, set(), True, False, {"a"}),  # it is full: that costs nothing
        (503, set(), True, True, {"a"}),
        (503, set(), True, False, None),  # the budget is spent: its response is given
        (404, set(), True, False, {"a", "b"}),  # a server of another kind may have the address
        (501, set(), True, False, {"a", "b"}),
        (404, {"c"}, True, True, None),
        (503, {"b", "c"}, True, True, None),
        (503, set(), False, True, None),
    ],
)
async def test_after_a_status_others_may_be_asked(
    status: int, tried: set[str], repeatable: bool, has_budget: bool, expected: set[str] | None
) -> None:
    router = Router()
    router.has_budget = has_budget
    slot: Any = SimpleNamespace(backend=SimpleNamespace(name="a", kind="vllm"))
    found = passthrough(router)._passed_over(sent(is_repeatable=repeatable), status, slot, tried)
    assert found == expected
    assert router.asked_budget in ([], [f"status_{status}"])


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.PASSED),
        (404, Outcome.PASSED),
        (500, Outcome.PASSED),
        (429, Outcome.FULL),
        (502, Outcome.STATUS),
        (503, Outcome.STATUS),
        (504, Outcome.STATUS),
    ],
)
def test_most_statuses_say_that_the_server_is_well(status: int, outcome: Outcome) -> None:
    assert outcome_of(status) is outcome


# ---- when no server answers


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (failure(was_sent=True, kind=UpstreamTimeout), TimedOut, "a did not answer in time."),
        (
            failure(was_sent=False, phase="connect"),
            Unavailable,
            "No backend available: a could not be reached.",
        ),
        (
            failure(was_sent=False, phase="connect", kind=UpstreamTimeout),
            Unavailable,
            "No backend available: a could not be reached.",
        ),
        (failure(was_sent=True), UpstreamFailed, "a did not answer: it broke."),
    ],
)
async def test_without_a_response_the_attempts_are_listed(
    error: WireError, kind: type[ApplianceError], text: str
) -> None:
    request = make_request("/x")
    request.receipt.backend = "a"
    request.receipt.attempts = [Attempt("http://a", Outcome.CONNECT)]
    found = passthrough()._unanswered(request, error)
    assert (type(found), found.message) == (kind, text)
    assert [row["url"] for row in found.details["attempts"]] == ["http://a"]
