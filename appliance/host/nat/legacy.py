"""The redirect by python-iptables, for kernels that have only the legacy tables.

Run as a child process, one for each of IPv4 and IPv6: after one of them the library cannot load the target of
the other.

    python -m appliance.host.nat.legacy FROM TO local|forwarded [4|6]
"""

import subprocess
import sys
from typing import Any


def run(arguments: list[str], family: str) -> None:
    """Add our rules to the nat table of IPv4 or IPv6; what an earlier run left is replaced.

    Args:
        arguments: FROM, TO, and local or forwarded.
        family: 4 or 6.
    """
    import iptc

    table_of = iptc.Table if family == "4" else iptc.Table6
    rule_of = iptc.Rule if family == "4" else iptc.Rule6
    table = table_of(table_of.NAT)
    port_from, port_to, scope = arguments
    hooks = ["OUTPUT", "PREROUTING"]
    for hook in hooks:
        chain = iptc.Chain(table, hook)
        for rule in list(chain.rules):
            if _is_ours(rule, port_from):
                chain.delete_rule(rule)
    for hook in hooks if scope == "forwarded" else hooks[:1]:
        rule = rule_of()
        rule.protocol = "tcp"
        if hook == "OUTPUT":
            rule.out_interface = "lo"
        rule.create_match("tcp").dport = port_from
        rule.create_target("REDIRECT").to_ports = port_to
        iptc.Chain(table, hook).append_rule(rule)


def _is_ours(rule: Any, port_from: str) -> bool:
    return (
        rule.target is not None
        and rule.target.name == "REDIRECT"
        and any(m.name == "tcp" and m.dport == port_from for m in rule.matches)
    )


def main(arguments: list[str]) -> int:
    """Do both families, each in a child process, or the one that is named last; return the exit code."""
    if arguments[-1] in {"4", "6"}:
        run(arguments[:-1], arguments[-1])
        return 0
    results = [
        subprocess.run(
            [sys.executable, "-m", "appliance.host.nat.legacy", *arguments, family],
            check=False,
            timeout=8,
            capture_output=True,
            text=True,
        )
        for family in ("4", "6")
    ]
    if results[0].returncode:  # IPv6 may fail: a host may have it switched off
        print(results[0].stderr.strip().splitlines()[-1:] or "failed", file=sys.stderr)  # noqa: T201 - the parent reads it
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)  # noqa: T201 - the parent reads it
        sys.exit(1)
