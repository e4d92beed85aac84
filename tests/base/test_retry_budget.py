"""The retry budget: retries are a share of the requests."""

from appliance.base.retry_budget import RetryBudget


def test_retries_are_a_share_of_requests() -> None:
    budget = RetryBudget(share=0.2, floor=2, cap=3)
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    for _ in range(5):
        budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    for _ in range(1000):
        budget.deposit()
    assert sum(budget.withdraw() for _ in range(10)) == 3


def test_budget_begins_with_its_floor_or_given_tokens() -> None:
    assert [RetryBudget(floor=1).withdraw(), RetryBudget(floor=1, tokens=0.5).withdraw()] == [True, False]
