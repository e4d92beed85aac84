"""How io.net describes deployments and their containers."""

from typing import Any

from appliance.base.clock import format_rfc3339
from appliance.base.money import to_dollars
from appliance.simulate.fleet import RentedInstance, Stage
from appliance.simulate.ionet_stock import LOCATIONS

STATUSES = {
    Stage.CREATED: "deployment requested",
    Stage.LOADING: "deployment requested",
    Stage.RUNNING: "running",
    Stage.STOPPED: "stopped",
    Stage.EXITED: "failed",
    Stage.ENDED: "completed",
    Stage.DESTROYED: "destroyed",
}
LAST_EVENTS = 20


def deployment_id(instance: RentedInstance) -> str:
    """Return the id under which io.net shows it."""
    return f"dep-{instance.id}"


def describe_deployment(instance: RentedInstance, *, off_s: float) -> dict[str, Any]:
    """Return a row of the list of deployments; the market's clock is wrong by `off_s`."""
    served, total = instance.running_ms // 60_000, instance.facts["hours"] * 60
    left = max(0, total - served) if instance.is_live else 0
    return {
        "id": deployment_id(instance),
        "status": STATUSES[instance.stage],
        "name": instance.label,
        "completed_percent": round(100 * served / total, 2),
        "hardware_quantity": instance.facts["num_gpus"],
        "brand_name": "NVIDIA",
        "hardware_name": instance.facts["gpu_name"],
        "served": f"{served // 60}h {served % 60}m",
        "remaining": f"{left // 60}h {left % 60}m",
        "compute_minutes_served": served,
        "compute_minutes_remaining": left,
        "created_at": _time(instance.created_ms, off_s),
    }


def describe_in_full(instance: RentedInstance, *, off_s: float) -> dict[str, Any]:
    """Return what is shown of one deployment; the market's clock is wrong by `off_s`."""
    facts, row = instance.facts, describe_deployment(instance, off_s=off_s)
    place = LOCATIONS[facts["location_id"]]
    copied = ("id", "status", "completed_percent", "created_at", "hardware_name", "brand_name")
    return {
        **{name: row[name] for name in copied},
        "compute_minutes_served": row["compute_minutes_served"],
        "compute_minutes_remaining": row["compute_minutes_remaining"],
        "started_at": _time(instance.first_run_ms, off_s),
        "finished_at": _time(instance.ended_ms, off_s),
        "amount_paid": to_dollars(instance.paid_musd),
        "total_gpus": facts["num_gpus"],
        "gpus_per_container": facts["gpus_per_container"],
        "total_containers": facts["replicas"],
        "hardware_id": facts["hardware_id"],
        "locations": [{"id": place.id, "iso2": place.iso2, "name": place.name}],
        "container_config": {
            "entrypoint": [],
            "env_variables": {},
            "traffic_port": facts["traffic_port"],
            "image_url": facts["image"],
        },
    }


def describe_workers(instance: RentedInstance, *, off_s: float) -> list[dict[str, Any]]:
    """Return its containers; the market's clock is wrong by `off_s`."""
    is_up = instance.stage is Stage.RUNNING
    at = _time(instance.stage_ms, off_s)
    events = [{"time": at, "message": line} for line in list(instance.lines)[-LAST_EVENTS:]]
    return [
        {
            "device_id": f"simulated-device-{number}",
            "container_id": f"{deployment_id(instance)}-{number}",
            "hardware": instance.facts["gpu_name"],
            "brand_name": "NVIDIA",
            "created_at": _time(instance.created_ms, off_s),
            "uptime_percent": 100 if is_up else 0,
            "gpus_per_container": instance.facts["gpus_per_container"],
            "status": "running" if is_up else "pending" if instance.is_live else "completed",
            "container_events": events,
            "public_url": _public_url(instance, number) if is_up else "",
        }
        for number in range(instance.facts["replicas"])
    ]


def _public_url(instance: RentedInstance, number: int) -> str:
    return f"http://127.0.0.1:{instance.addresses[number][1]}" if number < len(instance.addresses) else ""


def _time(at_ms: int | None, off_s: float) -> str | None:
    return None if at_ms is None else format_rfc3339(at_ms / 1000 + off_s, fraction_digits=3)
