"""The fields of `nvidia-smi --query-…`: names, aliases, units, and the values of a simulated, idle GPU.

Standard library only. A value is a text, or a function of the GPU.

Source:
    The field list of the real tool, drivers 550 to 610.
"""

import time

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing is too slow to load in a tool that is polled
    from typing import Any

NA = "[N/A]"
PAGE = "Requested functionality has been deprecated"
IDLE_W, LIMIT_W, USED_MIB, RESERVED_MIB = 21.5, 450.0, 1, 436


def timestamp():
    """Return the time as the tool prints it, `2026/07/03 22:11:09.763`."""
    now = time.time()  # noqa: TID251 - this program reads the machine's own clock
    return time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1000):03d}"


def _bus(gpu, which):
    domain, bus, device = gpu.bus_id.split(":")
    return "0x" + {"domain": domain[-4:], "bus": bus, "device": device[:2]}[which]


# name, aliases, unit, value
_PLAIN = [
    ("timestamp", (), "", lambda g: timestamp()),
    ("driver_version", (), "", lambda g: g.driver),
    ("count", (), "", lambda g: str(g.count)),
    ("name", ("gpu_name",), "", lambda g: g.name),
    ("serial", ("gpu_serial",), "", NA),
    ("uuid", ("gpu_uuid",), "", lambda g: g.uuid),
    ("pci.bus_id", ("gpu_bus_id",), "", lambda g: g.bus_id),
    ("pci.domain", (), "", lambda g: _bus(g, "domain")),
    ("pci.bus", (), "", lambda g: _bus(g, "bus")),
    ("pci.device", (), "", lambda g: _bus(g, "device")),
    ("pci.baseClass", (), "", "0x03"),
    ("pci.subClass", (), "", "0x00"),
    ("pci.device_id", (), "", NA),
    ("pci.sub_device_id", (), "", NA),
    *[
        (f"pcie.link.gen.{w}", (), "", v)
        for w, v in (("current", "1"), ("gpucurrent", "1"), ("max", "4"), ("gpumax", "4"), ("hostmax", "4"))
    ],
    ("pcie.link.width.current", (), "", "16"),
    ("pcie.link.width.max", (), "", "16"),
    ("index", (), "", lambda g: str(g.index)),
    ("display_mode", (), "", "Disabled"),
    ("display_attached", (), "", "No"),
    ("display_active", (), "", "Disabled"),
    ("persistence_mode", (), "", "Disabled"),
    ("addressing_mode", (), "", "None"),
    ("accounting.mode", (), "", "Disabled"),
    ("accounting.buffer_size", (), "", "4000"),
    ("driver_model.current", (), "", NA),
    ("driver_model.pending", (), "", NA),
    ("vbios_version", (), "", NA),
    ("inforom.img", ("inforom.image",), "", NA),
    ("inforom.oem", (), "", NA),
    ("inforom.ecc", (), "", NA),
    ("inforom.pwr", ("inforom.power",), "", NA),
    ("inforom.checksum_validation", (), "", NA),
    ("gpu_recovery_action", (), "", "None"),
    ("gom.current", ("gpu_operation_mode.current",), "", NA),
    ("gom.pending", ("gpu_operation_mode.pending",), "", NA),
    ("fan.speed", (), "%", "0"),
    ("pstate", (), "", "P8"),
    *[
        (f"clocks_event_reasons.{w}", (f"clocks_throttle_reasons.{w}",), "", v)
        for w, v in (
            ("supported", "0x00000000000001FF"),
            ("active", "0x0000000000000001"),
            ("gpu_idle", "Active"),
            ("applications_clocks_setting", "Not Active"),
            ("sw_power_cap", "Not Active"),
            ("hw_slowdown", "Not Active"),
            ("hw_thermal_slowdown", "Not Active"),
            ("hw_power_brake_slowdown", "Not Active"),
            ("sw_thermal_slowdown", "Not Active"),
            ("sync_boost", "Not Active"),
        )
    ],
    *[
        (f"clocks_event_reasons_counters.{w}", (), "us", "0")
        for w in (
            "sw_power_cap",
            "sync_boost",
            "sw_thermal_slowdown",
            "hw_thermal_slowdown",
            "hw_power_brake_slowdown",
        )
    ],
    ("memory.total", (), "MiB", lambda g: str(g.memory_mib)),
    ("memory.reserved", (), "MiB", lambda g: str(g.reserved_mib)),
    ("memory.used", (), "MiB", lambda g: str(g.used_mib)),
    ("memory.free", (), "MiB", lambda g: str(g.free_mib)),
    ("compute_mode", (), "", "Default"),
    ("compute_cap", (), "", "8.9"),
    *[(f"utilization.{w}", (), "%", "0") for w in ("gpu", "memory", "encoder", "decoder", "jpeg", "ofa")],
    *[(f"encoder.stats.{w}", (), "", "0") for w in ("sessionCount", "averageFps", "averageLatency")],
    ("dramEncryption.mode.current", (), "", NA),
    ("dramEncryption.mode.pending", (), "", NA),
    ("ecc.mode.current", (), "", NA),
    ("ecc.mode.pending", (), "", NA),
    *[
        (f"ecc.errors.{kind}.{span}.{where}", (), "", NA)
        for kind in ("corrected", "uncorrected")
        for span in ("volatile", "aggregate")
        for where in (
            "device_memory",
            "dram",
            "register_file",
            "l1_cache",
            "l2_cache",
            "texture_memory",
            "cbu",
            "sram",
            "total",
        )
    ],
    *[
        (f"ecc.errors.uncorrected.{span}.sram.{w}", (), "", NA)
        for span in ("volatile", "aggregate")
        for w in ("parity", "secded")
    ],
    ("retired_pages.single_bit_ecc.count", ("retired_pages.sbe",), "", NA),
    ("retired_pages.double_bit.count", ("retired_pages.dbe",), "", NA),
    ("retired_pages.pending", (), "", NA),
    *[
        (f"remapped_rows.{w}", a, "", NA)
        for w, a in (
            ("correctable", ("remapped_rows.sbe",)),
            ("uncorrectable", ("remapped_rows.dbe",)),
            ("pending", ()),
            ("failure", ()),
        )
    ],
    *[(f"remapped_rows.histogram.{w}", (), "", NA) for w in ("max", "high", "partial", "low", "none")],
    ("temperature.gpu", (), "", "34"),
    ("temperature.gpu.tlimit", (), "", NA),
    ("temperature.memory", (), "", NA),
    ("power.management", (), "", "Enabled"),
    ("power.draw", (), "W", f"{IDLE_W:.2f}"),
    ("power.draw.average", ("gpu.power.draw.average",), "W", f"{IDLE_W:.2f}"),
    ("power.draw.instant", ("gpu.power.draw.instant",), "W", f"{IDLE_W:.2f}"),
    ("power.limit", ("gpu.power.requested_limit",), "W", f"{LIMIT_W:.2f}"),
    ("enforced.power.limit", ("gpu.power.current_limit",), "W", f"{LIMIT_W:.2f}"),
    *[
        (f"power.{w}_limit", (f"gpu.power.{w}_limit",), "W", v)
        for w, v in (("default", "450.00"), ("min", "150.00"), ("max", "600.00"))
    ],
    *[
        (f"module.power.{w}", (), "W", NA)
        for w in ("draw.average", "draw.instant", "limit", "default_limit", "min_limit", "max_limit")
    ],
    *[
        (f"clocks.current.{w}", (f"clocks.{a}",), "MHz", v)
        for w, a, v in (
            ("graphics", "gr", "210"),
            ("sm", "sm", "210"),
            ("memory", "mem", "405"),
            ("video", "video", "1185"),
        )
    ],
    ("clocks.applications.graphics", ("clocks.applications.gr",), "MHz", f"[{PAGE}]"),
    ("clocks.applications.memory", ("clocks.applications.mem",), "MHz", f"[{PAGE}]"),
    ("clocks.default_applications.graphics", ("clocks.default_applications.gr",), "MHz", f"[{PAGE}]"),
    ("clocks.default_applications.memory", ("clocks.default_applications.mem",), "MHz", f"[{PAGE}]"),
    ("clocks.max.graphics", ("clocks.max.gr",), "MHz", "3105"),
    ("clocks.max.sm", (), "MHz", "3105"),
    ("clocks.max.memory", ("clocks.max.mem",), "MHz", "10501"),
    ("mig.mode.current", (), "", NA),
    ("mig.mode.pending", (), "", NA),
    ("gsp.mode.current", (), "", NA),
    ("gsp.mode.default", (), "", NA),
    ("c2c.mode", (), "", NA),
    ("protected_memory.total", (), "MiB", "0"),
    ("protected_memory.used", (), "MiB", "0"),
    ("protected_memory.free", (), "MiB", "0"),
    *[
        (f"fabric.{w}", (), "", NA)
        for w in ("state", "status", "cliqueId", "clusterUuid", "health.bandwidth")
    ],
    *[
        (f"platform.{w}", (), "", NA)
        for w in (
            "chassis_serial_number",
            "slot_number",
            "tray_index",
            "host_id",
            "peer_type",
            "module_id",
            "gpu_fabric_guid",
        )
    ],
    ("hostname", (), "", lambda g: __import__("socket").gethostname()),
    ("kmd_version", (), "", lambda g: g.driver),
]
_APPS = [
    ("timestamp", (), "", ""),
    ("gpu_name", (), "", ""),
    ("gpu_bus_id", (), "", ""),
    ("gpu_serial", (), "", ""),
    ("gpu_uuid", (), "", ""),
    ("pid", (), "", ""),
    ("process_name", ("name",), "", ""),
    ("used_gpu_memory", ("used_memory",), "MiB", ""),
]
_ACCOUNTED = [
    *_APPS[:5],
    ("vgpu_instance", (), "", ""),
    ("pid", (), "", ""),
    ("gpu_utilization", ("gpu_util",), "%", ""),
    ("mem_utilization", ("mem_util",), "%", ""),
    ("max_memory_usage", ("max_memory",), "MiB", ""),
    ("time", (), "ms", ""),
]
_RETIRED = [
    *_APPS[:5],
    ("retired_pages.address", (), "", ""),
    ("retired_pages.timestamp", (), "", ""),
    ("retired_pages.cause", (), "", ""),
]
_REMAPPED = [
    *_APPS[:5],
    ("remapped_rows.correctable", ("remapped_rows.sbe",), "", ""),
    ("remapped_rows.uncorrectable", ("remapped_rows.dbe",), "", ""),
    ("remapped_rows.pending", (), "", ""),
    ("remapped_rows.failure", (), "", ""),
]
QUERIES: "dict[str, list[tuple[Any, ...]]]" = {
    "gpu": _PLAIN,
    "compute-apps": _APPS,
    "accounted-apps": _ACCOUNTED,
    "retired-pages": _RETIRED,
    "remapped-rows": _REMAPPED,
}


def find(query, name):
    """Return (primary name, unit, value) of a query's field, or None; names must match exactly."""
    for primary, aliases, unit, value in QUERIES[query]:
        if name == primary or name in aliases:
            return primary, unit, value
    return None
