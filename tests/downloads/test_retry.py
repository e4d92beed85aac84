"""When an attempt is repeated, and after how long."""

from appliance.base.errors import Forbidden, TimedOut, UpstreamFailed
from appliance.downloads.retry import RetryCounter
from appliance.downloads.sources.contract import Interrupted, SourceTimeouts


def test_pauses_grow_end_and_follow_retry_after() -> None:
    retries = RetryCounter(SourceTimeouts(tries=4, first_pause_s=1, longest_pause_s=10))
    pauses = [retries.next_pause_s(Interrupted("x")) for _ in range(4)]
    assert 0.75 <= (pauses[0] or 0) <= 1.25
    assert 1.5 <= (pauses[1] or 0) <= 2.5
    assert pauses[3] is None
    retries.progressed()
    assert retries.next_pause_s(Interrupted("x", retry_after_s=7)) == 7
    assert retries.next_pause_s(Interrupted("x", retry_after_s=700)) == 10
    assert retries.next_pause_s(Forbidden("x")) is None
    assert isinstance(retries.final_error(TimedOut("silent")), TimedOut)
    assert isinstance(retries.final_error(Interrupted("cut.")), UpstreamFailed)
