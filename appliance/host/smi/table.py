"""The table that nvidia-smi prints without arguments, as drivers from 550 on do. Standard library only."""

import time

from appliance.host.smi.fields import IDLE_W, LIMIT_W
from appliance.host.smi.simulated import MARK

LEFT, MIDDLE, RIGHT = 41, 24, 22
NAME_WIDTH = 27


def short_name(name):
    """Fit a name into its cell: the name is cut, the mark never."""
    if len(name) <= NAME_WIDTH:
        return name
    width = NAME_WIDTH - len(MARK) - 3
    return name[: len(name) - len(MARK)][:width] + "..." + MARK


def _row(left, middle, right):
    return f"|{left:<{LEFT}.{LEFT}}|{middle:>{MIDDLE - 1}.{MIDDLE - 1}} |{right:>{RIGHT - 1}.{RIGHT - 1}} |"


def _head(left, middle, right):
    return f"|{left:<{LEFT}}|{middle:<{MIDDLE}}|{right:<{RIGHT}}|"


def _rule(sign):
    return f"+{sign * LEFT}+{sign * MIDDLE}+{sign * RIGHT}+"


def render(gpus, *, cuda):
    """Render the table for these GPUs, the date line first and the processes last."""
    driver = gpus[0].driver
    lines = [
        time.strftime("%a %b %e %H:%M:%S %Y") + " " * 7,
        "+" + "-" * 89 + "+",
        f"| NVIDIA-SMI {driver:<22} Driver Version: {driver:<14} CUDA Version: {cuda:<8} |",
        _rule("-"),
        _head(" GPU  Name                 Persistence-M", " Bus-Id          Disp.A", " Volatile Uncorr. ECC"),
        _head(" Fan  Temp   Perf          Pwr:Usage/Cap", "           Memory-Usage", " GPU-Util  Compute M."),
        _head("", "", "               MIG M."),
        "|" + "=" * LEFT + "+" + "=" * MIDDLE + "+" + "=" * RIGHT + "|",
    ]
    for gpu in gpus:
        name = f"{short_name(gpu.name):<{NAME_WIDTH}}"
        lines.append(f"|{gpu.index:>4}  {name}    Off |   {gpu.bus_id} Off |{'N/A':>{RIGHT - 1}} |")
        power = f"{IDLE_W:.0f}W / {LIMIT_W:>4.0f}W"
        memory = f"{gpu.used_mib:>5}MiB / {gpu.memory_mib:>6}MiB"
        lines.append(_row(f"{'0%':>4}   34C    P8{power:>24} ", memory, "0%      Default"))
        lines.append(_row("", "", "N/A"))
        lines.append(_rule("-"))
    lines += [
        " " * 90 + " ",
        "+" + "-" * 89 + "+",
        "| Processes:".ljust(90) + "|",
        "|  GPU   GI   CI              PID   Type   Process name                        GPU Memory |",
        "|        ID   ID                                                               Usage      |",
        "|" + "=" * 89 + "|",
        "|  No running processes found".ljust(90) + "|",
        "+" + "-" * 89 + "+",
    ]
    return "\n".join(lines) + "\n"
