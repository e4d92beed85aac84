"""The settlement table: who counted, what is paid, and that ids of attempts are ours and in order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.accounts.prices import NO_TOKENS, TokenUsage
from appliance.accounts.settlement import (
    ENDING_OF_OUTCOME,
    MAX_TOKENS,
    AttemptIds,
    BillingRules,
    Ending,
    bounded,
    decide,
)
from appliance.engines.outcome import Outcome

ENGINE = TokenUsage(100, 20, 50)
COUNTED = TokenUsage(90, 0, 40)
PROMPT = TokenUsage(90)
ZERO = TokenUsage(0, 0, 0)
DEFAULT = BillingRules()
NOTHING_UNANSWERED = BillingRules(is_unanswered_billed=False)
NOTHING_BROKEN = BillingRules(is_broken_billed=False)
E, N, C = "engine", "none", "counted"
COMPLETE, LEFT, STOPPED = Ending.COMPLETE, Ending.CLIENT_LEFT, Ending.STOPPED
BROKEN, FAILED, REFUSED = Ending.BROKEN, Ending.FAILED, Ending.REFUSED


@pytest.mark.parametrize(
    ("ending", "usage", "has_begun", "is_hosted", "rules", "source", "paid", "supply"),
    [
        # a complete response
        (COMPLETE, ENGINE, True, False, DEFAULT, E, ENGINE, ENGINE),
        (COMPLETE, ZERO, True, False, DEFAULT, E, ZERO, ZERO),  # an explicit 0 is 0
        (COMPLETE, None, True, False, DEFAULT, C, COUNTED, COUNTED),
        (COMPLETE, ENGINE, False, False, DEFAULT, E, ENGINE, ENGINE),  # whole: no piece was told
        (COMPLETE, None, False, False, DEFAULT, C, COUNTED, COUNTED),
        # the client left
        (LEFT, None, True, False, DEFAULT, C, COUNTED, COUNTED),
        (LEFT, None, True, True, DEFAULT, C, COUNTED, COUNTED),
        (LEFT, ENGINE, True, True, DEFAULT, E, ENGINE, ENGINE),  # the backend was drained
        (LEFT, None, False, False, DEFAULT, N, NO_TOKENS, PROMPT),
        (LEFT, None, False, True, DEFAULT, C, PROMPT, PROMPT),
        (LEFT, None, False, True, NOTHING_UNANSWERED, N, NO_TOKENS, PROMPT),
        (LEFT, ENGINE, False, True, DEFAULT, E, ENGINE, ENGINE),
        # we ended it
        (STOPPED, None, True, False, DEFAULT, C, COUNTED, COUNTED),
        (STOPPED, None, False, False, DEFAULT, N, NO_TOKENS, PROMPT),
        (STOPPED, ENGINE, True, False, DEFAULT, E, ENGINE, ENGINE),
        # the backend broke off
        (BROKEN, None, True, False, DEFAULT, C, COUNTED, COUNTED),
        (BROKEN, None, True, False, NOTHING_BROKEN, N, NO_TOKENS, COUNTED),
        (BROKEN, ENGINE, True, False, DEFAULT, E, ENGINE, ENGINE),
        (BROKEN, None, False, False, DEFAULT, N, NO_TOKENS, NO_TOKENS),
        # an error; another backend may answer
        (FAILED, None, False, True, DEFAULT, N, NO_TOKENS, NO_TOKENS),
        (FAILED, ENGINE, False, True, DEFAULT, N, NO_TOKENS, ENGINE),  # it costs us all the same
        (REFUSED, None, False, True, DEFAULT, N, NO_TOKENS, NO_TOKENS),
        (REFUSED, None, True, False, DEFAULT, N, NO_TOKENS, NO_TOKENS),
    ],
)
def test_settlement_table(
    ending: Ending,
    usage: TokenUsage | None,
    has_begun: bool,
    is_hosted: bool,
    rules: BillingRules,
    source: str,
    paid: TokenUsage,
    supply: TokenUsage,
) -> None:
    bill = decide(ending, usage, COUNTED, has_begun=has_begun, is_hosted=is_hosted, rules=rules)
    assert (bill.source, bill.tokens, bill.supply) == (source, paid, supply)


def test_every_outcome_of_an_attempt_has_an_ending() -> None:
    assert set(ENDING_OF_OUTCOME) == {outcome.value for outcome in Outcome}
    assert ENDING_OF_OUTCOME[Outcome.OK.value] is COMPLETE
    assert ENDING_OF_OUTCOME[Outcome.CUT_OFF.value] is BROKEN


@given(st.integers(), st.integers(), st.integers())
def test_an_engines_figures_are_bounded(read: int, cached: int, written: int) -> None:
    usage = bounded(TokenUsage(read, cached, written))
    assert 0 <= usage.cached <= usage.read <= MAX_TOKENS
    assert 0 <= usage.written <= MAX_TOKENS
    assert bounded(usage) == usage


def test_ids_of_attempts_are_uuids_in_order_and_differ_between_processes() -> None:
    ids, other = AttemptIds(), AttemptIds()
    made = [ids.new(1_800_000_000_000 + number // 3000) for number in range(9000)]
    assert len(set(made)) == 9000
    assert [one[:18] for one in made[:4000:100]] == sorted(one[:18] for one in made[:4000:100])
    form = r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
    assert all(re.fullmatch(form, one) for one in made)
    assert not set(made) & {other.new(1_800_000_000_000) for _ in range(9000)}
