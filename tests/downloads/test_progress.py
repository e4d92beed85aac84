"""Progress, and the rate of the last seconds."""

from appliance.base.clock import FakeClock
from appliance.downloads.contract import DownloadProgress
from appliance.downloads.progress import ProgressMeter


def test_progress_is_reported_once_with_a_recent_rate() -> None:
    told: list[DownloadProgress] = []
    clock = FakeClock()
    meter = ProgressMeter(told.append, clock)
    meter.enter("fetching")
    meter.report()
    assert len(told) == 1
    for _ in range(10):
        clock.advance(1)
        meter.fetched(1000)
        meter.report()
    assert told[-1].rate_bytes_s == 1000
    for _ in range(10):
        clock.advance(1)
        meter.report()
    assert told[-1].rate_bytes_s == 0
