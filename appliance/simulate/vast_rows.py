"""How vast.ai's listing describes an instance."""

from typing import Any

from appliance.base.money import to_dollars
from appliance.simulate.fleet import RentedInstance, Stage
from appliance.simulate.vast_offers import VastAsk

# Fields that a listing can be filtered and ordered by.
INSTANCE_FIELDS = frozenset(
    [
        *("id", "label", "machine_id", "host_id", "actual_status", "intended_status", "cur_state"),
        *("gpu_name", "num_gpus", "dph_total", "start_date", "geolocation"),
    ]
)
COPIED = (
    *("machine_id", "host_id", "num_gpus", "gpu_name", "gpu_ram", "gpu_total_ram", "gpu_frac", "gpu_arch"),
    *("compute_cap", "cuda_max_good", "driver_version", "cpu_name", "cpu_cores", "cpu_cores_effective"),
    *("cpu_ram", "disk_bw", "inet_up", "inet_down", "inet_up_cost", "inet_down_cost", "direct_port_count"),
    *("dlperf", "reliability2", "verification", "static_ip", "geolocation", "duration"),
)


def describe_instance(instance: RentedInstance, ask: VastAsk, *, off_s: float) -> dict[str, Any]:
    """Return a row of the listing.

    Args:
        instance: The instance.
        ask: The offer that it was rented by.
        off_s: By how much the market's clock is wrong.
    """
    facts = instance.facts
    return {
        **{name: ask.row[name] for name in COPIED},
        "id": instance.id,
        "ask_contract_id": ask.id,
        "actual_status": instance.stage.value,
        "intended_status": facts["intended"],
        "cur_state": "stopped" if instance.stage is Stage.STOPPED else "running",
        "next_state": facts["intended"],
        "status_msg": instance.lines[-1] if instance.lines else "",
        "label": instance.label or None,
        "image_uuid": facts["image"],
        "image_args": list(instance.args),
        "image_runtype": facts["runtype"],
        "extra_env": [[name, value] for name, value in instance.environ.items()],
        "onstart": instance.onstart or None,
        "disk_space": facts["disk_gb"],
        "gpu_util": 0.0 if instance.stage is Stage.RUNNING else None,
        "dph_base": to_dollars(instance.gpu_musd_per_h),
        "dph_total": to_dollars(instance.gpu_musd_per_h + instance.disk_musd_per_h),
        "storage_total_cost": to_dollars(instance.disk_musd_per_h),
        "start_date": instance.created_ms / 1000 + off_s,
        "end_date": instance.created_ms / 1000 + ask.row["duration"] + off_s,
        "uptime_mins": instance.running_ms / 60_000 if instance.first_run_ms is not None else None,
        "ssh_host": "127.0.0.1",
        "ssh_port": None,
        **_address(instance),
    }


def _address(instance: RentedInstance) -> dict[str, Any]:
    """Return where an instance can be reached; known once it runs."""
    if instance.stage is not Stage.RUNNING:
        return {"public_ipaddr": None, "ports": {}, "direct_port_start": -1, "direct_port_end": -1}
    ours = [port for _, port in instance.addresses]
    ports = {
        f"{inner}/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(port)}] for inner, port in instance.addresses
    }
    return {
        "public_ipaddr": "127.0.0.1",
        "ports": ports,
        "direct_port_start": min(ours, default=-1),
        "direct_port_end": max(ours, default=-1),
    }
