"""The appliance's metric families: names, labels, and the gauges that follow a state."""

from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from appliance.base.metrics.registry import MAX_MODELS, Metrics


def samples(metrics: Metrics) -> dict[str, float]:
    """Render and parse; give the samples as `name{label="value",…}`."""
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_openmetrics_page_is_rendered_without_its_end() -> None:
    page = Metrics().render(openmetrics=True)
    assert b"# TYPE appliance_worker_up gauge" in page
    assert not page.endswith(b"# EOF\n")


def test_backend_gauges_follow_its_state() -> None:
    metrics = Metrics()
    state = SimpleNamespace(
        name="e0",
        kind="vllm",
        is_up=True,
        in_flight=2,
        running=3,
        waiting=None,
        data_age_s=None,
        breaker="half_open",
    )
    metrics.update_backend(state)
    found = samples(metrics)
    assert found["appliance_backend_up{backend=e0,kind=vllm}"] == 1
    assert found["appliance_backend_running{backend=e0}"] == 3
    assert "appliance_backend_waiting{backend=e0}" not in found  # unknown is not zero
    states = {s: found[f"appliance_backend_breaker{{backend=e0,state={s}}}"] for s in ("closed", "half_open")}
    assert states == {"closed": 0, "half_open": 1}


def test_children_of_the_hot_path_are_looked_up_once() -> None:
    metrics = Metrics()
    children = metrics.request_children("/v1/models", 200)
    assert metrics.request_children("/v1/models", 200) is children
    children[0].inc()
    metrics.engine_children("m0", "e0")[1].inc(7)
    found = samples(metrics)
    assert found["appliance_requests_total{route=/v1/models,status=200}"] == 1
    assert found["appliance_tokens_total{backend=e0,kind=completion,model=m0}"] == 7


def test_models_beyond_a_number_share_a_row() -> None:
    metrics = Metrics()
    for number in range(MAX_MODELS + 5):
        metrics.engine_children(f"m{number}", "e0")[1].inc()
    found = samples(metrics)
    rows = [name for name in found if name.startswith("appliance_tokens_total{") and "completion" in name]
    assert len(rows) == MAX_MODELS + 1
    assert found["appliance_tokens_total{backend=e0,kind=completion,model=other}"] == 5


@pytest.mark.parametrize("values", [(), ("a",), ("a", "b", "c")])
def test_wrong_number_of_labels_is_refused(values: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=rf"has the labels route, status; {len(values)} values were given"):
        Metrics().requests.labels(*values)


def test_model_manager_families_appear_at_first_use() -> None:
    metrics = Metrics()
    assert not [name for name in samples(metrics) if name.startswith("router_")]
    metrics.router.keep_models(["a", "b"])
    metrics.router.model("a").by_outcome["success"].inc()
    assert samples(metrics)["router_requests_total{model=a,status=success}"] == 1
    metrics.router.keep_models(["b"])
    found = samples(metrics)
    assert "router_requests_total{model=a,status=success}" not in found
    assert found["router_model_loads_total{model=b}"] == 0


def test_rows_of_devices_and_unknown_values_are_removed() -> None:
    metrics = Metrics()
    router = metrics.router
    for family in (router.vram_used, router.vram_free, router.vram_total):
        router.show(family, "gpu0", 1.0)
    for family in (router.utilization, router.temperature, router.power):
        router.show(family, "gpu0", 2.0)
    router.keep_devices(["gpu0"])
    router.show(router.power, "gpu0", None)
    found = samples(metrics)
    assert found["router_gpu_vram_used_bytes{device=gpu0}"] == 1
    assert "router_gpu_power_watts{device=gpu0}" not in found
    router.show(router.power, "gpu0", 3.0)
    router.keep_devices([])
    assert not [name for name in samples(metrics) if "device=gpu0" in name]
