"""Port 14444 → our port: a NAT rule where NET_ADMIN allows it, else a second listener with the same effect for local callers.

The capability is read before anything is asked of the kernel, and the asking happens in a child process under a time-out:
without the privilege the netlink calls wait for ever. Rules are never put into a host's own network. Keepers of the promise:
`nft` (one inet table, IPv4 and IPv6) first, `legacy` where a kernel has only the legacy tables.
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
KEEPERS = ("nft", "legacy")


@dataclass(frozen=True, slots=True)
class NatResult:
    """What became of the redirect. listener: the caller opens 127.0.0.1:14444 itself; failed: NAT_REDIRECT=on was not possible."""

    outcome: Literal["rule", "listener", "off", "failed"]
    keeper: str
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def has_capability(bit: int, *, status: Path = Path("/proc/self/status")) -> bool:
    """Whether the process has an effective capability, by its number."""
    for line in status.read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False


def is_host_network(*, sys_net: Path = Path("/sys/class/net"), proc: Path = Path("/proc")) -> bool:
    """Whether this is a machine's own network rather than a container's or a namespace's.

    1. a real device (one with a `device` link: a network card, virtual ones included)   → the machine's
    2. a bridge or the host end of containers (docker0, virbr0, cni0, a bridge folder)   → the machine's
    Every container and namespace of our own has only lo, veth, tap or dummy devices. When the devices cannot be read we
    assume the machine's: refusing costs a listener, a rule in a host's network costs more.
    """
    try:
        devices = list(sys_net.iterdir())
    except OSError:
        return True
    listed = _devices_of_namespace(proc)
    for device in devices:
        if listed and device.name not in listed:
            continue  # /sys may still show another namespace's devices; /proc/net/dev is this one's
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


def ask_keeper(keeper: str, arguments: list[str]) -> str:
    """Run a keeper in a child; give "" or the reason why it failed."""
    command = [sys.executable, "-m", f"appliance.host.nat.{keeper}", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHILD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer from the kernel within {CHILD_TIMEOUT_S} s"
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
    ask: Callable[[str, list[str]], str] = ask_keeper,
) -> NatResult:
    """Make sure that `port_from` reaches `port_to` on this machine; a stale rule of ours is replaced, an equal one stays.

    Takes   asked: NAT_REDIRECT (auto|on|off); forwarded: traffic from other machines too; the callables are for tests
    Gives   NatResult
            1. off, or both ports are the same → off     2. no NET_ADMIN → listener (auto) or failed (on)
            3. the machine's own network → the same      4. the first keeper that can → rule
            5. none can → listener (auto) or failed (on)
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
            "this is the host's own network, and rules of ours never go there",
            "Run in a container with a network of its own, or set NAT_REDIRECT=auto.",
        )
    reasons = []
    for keeper in KEEPERS:  # 4
        reason = ask(keeper, ["add", str(port_from), str(port_to), "forwarded" if forwarded else "local"])
        if not reason:
            scope = "local callers and forwarded traffic" if forwarded else "local callers"
            return NatResult("rule", keeper, f"tcp {port_from} → {port_to} for {scope}")
        reasons.append(f"{keeper}: {reason}")
    return _without(
        asked, port_from, "; ".join(reasons), "Use a kernel with nf_tables, or set NAT_REDIRECT=auto."
    )  # 5


def _without(asked: str, port_from: int, why: str, remedy: str) -> NatResult:
    if asked == "on":
        return NatResult("failed", "", f"NAT_REDIRECT=on, but {why}", remedy)
    return NatResult(
        "listener",
        "listener",
        f"{why}: a second listener on 127.0.0.1:{port_from} has the same effect for local callers",
    )


def remove_redirect() -> None:
    """Take our rules away again, where we may."""
    if has_capability(CAP_NET_ADMIN) and not is_host_network():
        for keeper in KEEPERS:
            ask_keeper(keeper, ["remove", str(WORKER_PORT)])
