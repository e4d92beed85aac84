"""Port 14444 to our own port: a NAT rule if NET_ADMIN allows it, else a second listener.

The capability is checked before the kernel is asked for anything, and the request runs in a child process
with a time-out: without the privilege netlink calls wait for ever. Rules are never put into a host's own
network. Two tools can set the rule: `nft` first (one inet table for IPv4 and IPv6), `legacy` for kernels with
only the legacy tables.
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

CAP_NET_ADMIN = 12
WORKER_PORT = 14444
CHILD_TIMEOUT_S = 10
TOOLS = ("nft", "legacy")  # in the order of trial


@dataclass(frozen=True, slots=True)
class NatResult:
    """The result of the redirect.

    Attributes:
        outcome: rule; listener: the caller must listen on 127.0.0.1:14444; off; failed: NAT_REDIRECT=on, but
            there can be no rule.
        keeper: The tool that set the rule, `listener`, or ""; a JSON field, so its name stays.
        detail: A sentence for people.
        remedy: What to do if it failed.
    """

    outcome: Literal["rule", "listener", "off", "failed"]
    keeper: str
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def has_capability(bit: int, *, status: Path = Path("/proc/self/status")) -> bool:
    """Say whether the process has an effective capability.

    Args:
        bit: Its number, see capabilities(7).
        status: The process's status file.
    """
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def is_host_network(*, sys_net: Path = Path("/sys/class/net"), proc: Path = Path("/proc")) -> bool:
    """Say whether this is a machine's own network, not that of a container or a namespace.

    1. a real device (one with a `device` link: a network card, virtual ones included)   → the machine's
    2. a bridge or the host end of containers (docker0, virbr0, cni0, a bridge folder)   → the machine's

    A container or namespace has only lo, veth, tap or dummy devices. If the devices cannot be read, the
    network counts as the machine's: a refusal costs one listener, a rule in a host's network costs more.

    Args:
        sys_net: The folder of network devices.
        proc: The folder of processes.
    """
    try:
        devices = list(sys_net.iterdir())
    except OSError:
        return True
    listed = _devices_of_namespace(proc)
    for device in devices:
        if listed and device.name not in listed:
            continue  # /sys may show another namespace's devices; /proc/self/net/dev shows this one's
        if (
            (device / "device").exists()
            or (device / "bridge").exists()
            or device.name.startswith(("docker", "virbr", "cni", "br-"))
        ):
            return True
    return False


def _devices_of_namespace(proc: Path) -> set[str]:
    try:
        lines = (proc / "self/net/dev").read_text().splitlines()[2:]
    except OSError:
        return set()
    return {line.partition(":")[0].strip() for line in lines}


def run_tool(tool: str, arguments: list[str]) -> str:
    """Run a tool in a child process.

    Args:
        tool: nft or legacy.
        arguments: Of its command line.

    Returns:
        "" or the reason why it failed.
    """
    command = [sys.executable, "-m", f"appliance.host.nat.{tool}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"the kernel did not respond within {CHILD_TIMEOUT_S} s"
    if done.returncode == 0:
        return ""
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1][:300] if lines else f"exit code {done.returncode}"


def ensure_redirect(
    asked: str,
    *,
    port_to: int,
    forwarded: bool = False,
    port_from: int = WORKER_PORT,
    is_permitted: Callable[[], bool] | None = None,
    is_host: Callable[[], bool] | None = None,
    run: Callable[[str, list[str]], str] = run_tool,
) -> NatResult:
    """Make sure that `port_from` reaches `port_to` on this machine; an older rule of ours is replaced.

    1. off, or both ports are the same   → off
    2. no NET_ADMIN                      → listener (auto) or failed (on)
    3. the machine's own network         → listener (auto) or failed (on)
    4. the first tool that succeeds      → rule
    5. none succeeds                     → listener (auto) or failed (on)

    Args:
        asked: NAT_REDIRECT: auto, on or off.
        port_to: Where the traffic is redirected to.
        forwarded: Traffic from other machines too.
        port_from: What is redirected.
        is_permitted: For tests; None = check for NET_ADMIN.
        is_host: For tests; None = `is_host_network`.
        run: For tests.
    """
    if asked == "off":  # 1
        return NatResult("off", "", "NAT_REDIRECT=off")
    if port_to == port_from:
        return NatResult("off", "", f"PROXY_PORT is {port_from} itself")
    if not (is_permitted or (lambda: has_capability(CAP_NET_ADMIN)))():  # 2
        return _without(
            asked,
            port_from,
            "the NET_ADMIN capability is missing",
            "Run the container with --cap-add NET_ADMIN.",
        )
    if (is_host or is_host_network)():  # 3
        return _without(
            asked,
            port_from,
            "this is the host's own network, where the appliance never sets rules",
            "Run in a container with a network of its own, or set NAT_REDIRECT=auto.",
        )
    reasons = []
    for tool in TOOLS:  # 4
        reason = run(tool, [str(port_from), str(port_to), "forwarded" if forwarded else "local"])
        if not reason:
            scope = "local clients and forwarded traffic" if forwarded else "local clients"
            return NatResult("rule", tool, f"tcp {port_from} → {port_to} for {scope}")
        reasons.append(f"{tool}: {reason}")
    remedy = "Use a kernel with nf_tables, or set NAT_REDIRECT=auto."
    return _without(asked, port_from, "; ".join(reasons), remedy)  # 5


def _without(asked: str, port_from: int, why: str, remedy: str) -> NatResult:
    """Return the result without a rule."""
    if asked == "on":
        return NatResult("failed", "", f"NAT_REDIRECT=on, but {why}", remedy)
    return NatResult(
        "listener",
        "listener",
        f"{why}: a second listener on 127.0.0.1:{port_from} has the same effect for local clients",
    )
