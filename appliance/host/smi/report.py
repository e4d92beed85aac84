"""`nvidia-smi -q`: everything about each GPU, as indented text or as XML. Standard library only."""

import time
from xml.sax.saxutils import escape

from appliance.host.smi.fields import IDLE_W, LIMIT_W

COLON = 55  # column
NA = "N/A"
# section of -d → the branches of the tree that it shows
DISPLAY = {
    "MEMORY": ["FB Memory Usage", "BAR1 Memory Usage"],
    "UTILIZATION": ["Utilization"],
    "ECC": ["ECC Mode", "ECC Errors"],
    "TEMPERATURE": ["Temperature"],
    "POWER": ["GPU Power Readings"],
    "CLOCK": ["Clocks", "Applications Clocks", "Max Clocks"],
    "COMPUTE": ["Compute Mode"],
    "PIDS": ["Processes"],
    "PERFORMANCE": ["Performance State", "Clocks Event Reasons"],
    "PAGE_RETIREMENT": ["Retired Pages"],
    "ACCOUNTING": ["Accounting Mode", "Accounting Mode Buffer Size"],
    "ENCODER_STATS": ["Encoder Stats"],
    "FBC_STATS": ["FBC Stats"],
    "ROW_REMAPPER": ["Remapped Rows"],
}


def build_tree(gpu):
    """Return everything about a GPU, as nested pairs in the tool's order."""
    not_active = [
        (name, "Not Active")
        for name in (
            "Applications Clocks Setting",
            "SW Power Cap",
            "HW Slowdown",
            "HW Thermal Slowdown",
            "HW Power Brake Slowdown",
            "Sync Boost",
            "SW Thermal Slowdown",
            "Display Clock Setting",
        )
    ]
    bus = gpu.bus_id.split(":")
    return [
        ("Product Name", gpu.name),
        ("Product Brand", "Simulated"),
        ("Product Architecture", "Simulated"),
        ("Display Mode", "Disabled"),
        ("Display Active", "Disabled"),
        ("Persistence Mode", "Disabled"),
        ("Addressing Mode", "None"),
        ("MIG Mode", [("Current", NA), ("Pending", NA)]),
        ("Accounting Mode", "Disabled"),
        ("Accounting Mode Buffer Size", "4000"),
        ("Driver Model", [("Current", NA), ("Pending", NA)]),
        ("Serial Number", NA),
        ("GPU UUID", gpu.uuid),
        ("Minor Number", str(gpu.index)),
        ("VBIOS Version", NA),
        ("MultiGPU Board", "No"),
        ("Board ID", NA),
        ("Board Part Number", NA),
        ("GPU Part Number", NA),
        (
            "PCI",
            [
                ("Bus", f"0x{bus[1]}"),
                ("Device", f"0x{bus[2][:2]}"),
                ("Domain", f"0x{bus[0][-4:]}"),
                ("Bus Id", gpu.bus_id),
            ],
        ),
        ("Fan Speed", "0 %"),
        ("Performance State", "P8"),
        ("Clocks Event Reasons", [("Idle", "Active"), *not_active]),
        (
            "FB Memory Usage",
            [
                ("Total", f"{gpu.memory_mib} MiB"),
                ("Reserved", f"{gpu.reserved_mib} MiB"),
                ("Used", f"{gpu.used_mib} MiB"),
                ("Free", f"{gpu.free_mib} MiB"),
            ],
        ),
        ("BAR1 Memory Usage", [("Total", "256 MiB"), ("Used", "1 MiB"), ("Free", "255 MiB")]),
        ("Compute Mode", "Default"),
        (
            "Utilization",
            [
                ("GPU", "0 %"),
                ("Memory", "0 %"),
                ("Encoder", "0 %"),
                ("Decoder", "0 %"),
                ("JPEG", "0 %"),
                ("OFA", "0 %"),
            ],
        ),
        ("Encoder Stats", [("Active Sessions", "0"), ("Average FPS", "0"), ("Average Latency", "0")]),
        ("FBC Stats", [("Active Sessions", "0"), ("Average FPS", "0"), ("Average Latency", "0")]),
        ("ECC Mode", [("Current", NA), ("Pending", NA)]),
        ("Retired Pages", [("Single Bit ECC", NA), ("Double Bit ECC", NA)]),
        ("Remapped Rows", NA),
        (
            "Temperature",
            [
                ("GPU Current Temp", "34 C"),
                ("GPU T.Limit Temp", NA),
                ("GPU Shutdown Temp", "100 C"),
                ("GPU Slowdown Temp", "95 C"),
            ],
        ),
        (
            "GPU Power Readings",
            [
                ("Average Power Draw", f"{IDLE_W:.2f} W"),
                ("Instantaneous Power Draw", f"{IDLE_W:.2f} W"),
                ("Current Power Limit", f"{LIMIT_W:.2f} W"),
                ("Requested Power Limit", f"{LIMIT_W:.2f} W"),
                ("Default Power Limit", f"{LIMIT_W:.2f} W"),
                ("Min Power Limit", "150.00 W"),
                ("Max Power Limit", "600.00 W"),
            ],
        ),
        (
            "Clocks",
            [("Graphics", "210 MHz"), ("SM", "210 MHz"), ("Memory", "405 MHz"), ("Video", "1185 MHz")],
        ),
        (
            "Max Clocks",
            [("Graphics", "3105 MHz"), ("SM", "3105 MHz"), ("Memory", "10501 MHz"), ("Video", "2415 MHz")],
        ),
        ("Processes", "None"),
    ]


def _line(depth, name, value=None):
    indent = " " * 4 * depth
    return indent + name if value is None else f"{indent + name:<{COLON}}: {value}"


def _branch(pairs, depth):
    lines = []
    for name, value in pairs:
        if isinstance(value, list):
            lines += [_line(depth, name), *_branch(value, depth + 1)]
        else:
            lines.append(_line(depth, name, value))
    return lines


def render_text(gpus, *, count, cuda, sections=None):
    """Render the text of -q; `sections`: those of -d, None = all."""
    lines = [
        "",
        "==============NVSMI LOG==============",
        "",
        _line(0, "Timestamp", time.strftime("%a %b %e %H:%M:%S %Y")),
        _line(0, "Driver Version", gpus[0].driver),
        _line(0, "CUDA Version", cuda),
        "",
        _line(0, "Attached GPUs", str(count)),
    ]
    shown = None if sections is None else {name for section in sections for name in DISPLAY.get(section, [])}
    for gpu in gpus:
        pairs = [pair for pair in build_tree(gpu) if shown is None or pair[0] in shown]
        lines += [f"GPU {gpu.bus_id}", *_branch(pairs, 1), ""]
    return "\n".join(lines) + "\n"


def _tag(name):
    special = {
        "GPU UUID": "uuid",
        "FB Memory Usage": "fb_memory_usage",
        "BAR1 Memory Usage": "bar1_memory_usage",
        "PCI": "pci",
        "Bus": "pci_bus",
        "Device": "pci_device",
        "Domain": "pci_domain",
        "Bus Id": "pci_bus_id",
        "Serial Number": "serial",
        "VBIOS Version": "vbios_version",
    }
    return special.get(name) or "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_")


def _elements(pairs, depth):
    lines = []
    tab = "\t" * depth
    for name, value in pairs:
        tag = _tag(name)
        if isinstance(value, list):
            names = {
                "Utilization": lambda n: f"{_tag(n)}_util",
                "Clocks": lambda n: f"{_tag(n)}_clock",
                "Max Clocks": lambda n: f"{_tag(n)}_clock",
            }
            if name in names:
                inner = [f"{tab}\t<{names[name](n)}>{escape(v)}</{names[name](n)}>" for n, v in value]
            else:
                inner = _elements(value, depth + 1)
            lines += [f"{tab}<{tag}>", *inner, f"{tab}</{tag}>"]
        else:
            lines.append(
                f"{tab}<{tag}>{escape(value)}</{tag}>"
                if name != "Processes"
                else f"{tab}<processes>\n{tab}</processes>"
            )
    return lines


def render_xml(gpus, *, count, cuda):
    """Render the document of -q -x."""
    lines = [
        '<?xml version="1.0" ?>',
        '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">',
        "<nvidia_smi_log>",
        f"\t<timestamp>{time.strftime('%a %b %e %H:%M:%S %Y')}</timestamp>",
        f"\t<driver_version>{escape(gpus[0].driver)}</driver_version>",
        f"\t<cuda_version>{cuda}</cuda_version>",
        f"\t<attached_gpus>{count}</attached_gpus>",
    ]
    for gpu in gpus:
        lines += [f'\t<gpu id="{escape(gpu.bus_id)}">', *_elements(build_tree(gpu), 2), "\t</gpu>"]
    return "\n".join([*lines, "</nvidia_smi_log>"]) + "\n"
