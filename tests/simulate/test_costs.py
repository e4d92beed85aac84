"""What an instance costs, against a sum that is computed in another way, for any course of its life."""

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.clock import FakeClock
from appliance.simulate.faults import Faults
from appliance.simulate.fleet import GONE, RentedFleet, RentedInstance, Stage
from appliance.simulate.twin_clock import TwinClock

ACTIONS = ("wait", "stop", "start", "destroy", "exit", "stick")
GPU, DISK = 1_873_000, 7_040


def rate(stage: Stage) -> int:
    return 0 if stage in GONE else DISK + (GPU if stage is Stage.RUNNING else 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 100_000), st.sampled_from(ACTIONS)), max_size=12), st.integers(1, 5000)
)
def test_the_cost_is_the_sum_over_its_stages(steps: list[tuple[int, str]], look_ms: int) -> None:
    """It does not matter how often one looks, and nothing is billed after its end."""
    base = FakeClock()
    faults = Faults({"vast": ()})
    fleet = RentedFleet("vast", TwinClock(base), faults, created_s=5, loading_s=25)
    instance = fleet.create(RentedInstance(0, "x", 0, {}, gpu_musd_per_h=GPU, disk_musd_per_h=DISK))
    for wait_ms, action in steps:
        for passed_ms in [look_ms] * min(wait_ms // look_ms, 20):
            base.advance(passed_ms / 1000)
            fleet.settle()
        base.advance(wait_ms / 1000)
        fleet.settle()
        if action == "exit":
            faults.add({"service": "vast", "kind": "exits"})
        elif action == "stick":
            faults.add({"service": "vast", "kind": "stuck_loading"})
        elif not instance.is_live:
            pass
        elif action == "destroy":
            fleet.move(instance, Stage.DESTROYED)
        elif action == "stop":
            fleet.move(instance, Stage.STOPPED)
        elif action == "start" and instance.stage in (Stage.STOPPED, Stage.EXITED):
            fleet.move(instance, Stage.LOADING)
    fleet.settle()
    end_ms = round(base.now_s() * 1000)
    points = [(event["at_ms"], Stage(event["event"])) for event in fleet.events]
    spans = zip(points, [*points[1:], (end_ms, Stage.CREATED)], strict=True)
    priced = sum((until - since) * rate(stage) for (since, stage), (until, _) in spans)
    assert instance.priced == priced
    assert [at for at, _ in points] == sorted(at for at, _ in points)
    assert fleet.cost_musd == (2 * priced + 3_600_000) // 7_200_000
