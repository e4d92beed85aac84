"""The redirect by nftables, over netlink with pyroute2: one inet table of our own for IPv4 and IPv6.

Run as a child process:

    python -m appliance.host.nat.nft FROM TO local|forwarded
"""

import socket
import struct
import sys
from typing import Any

TABLE = "appliance"
META_OIFNAME, META_L4PROTO, TRANSPORT_HEADER, INET, ACCEPT = 7, 16, 2, 1, 1


def _expressions(port_from: int, port_to: int, *, is_loopback: bool) -> tuple[list[Any]]:
    """Build the rule: TCP to `port_from`, by `lo` alone if `is_loopback`, is redirected to `port_to`."""
    from pyroute2.nftables.expressions import genex

    def equals(data: bytes) -> Any:  # register 1 holds this
        return genex("cmp", {"sreg": 1, "op": 0, "data": {"attrs": [("NFTA_DATA_VALUE", data)]}})

    found = []
    if is_loopback:  # what leaves by `lo` was sent by this machine to itself
        found += [genex("meta", {"key": META_OIFNAME, "dreg": 1}), equals(b"lo".ljust(16, b"\0"))]
    found += [
        genex("meta", {"key": META_L4PROTO, "dreg": 1}),
        equals(bytes([socket.IPPROTO_TCP])),
        genex("payload", {"dreg": 1, "base": TRANSPORT_HEADER, "offset": 2, "len": 2}),
        equals(struct.pack(">H", port_from)),
        genex("immediate", {"dreg": 1, "data": {"attrs": [("NFTA_DATA_VALUE", struct.pack(">H", port_to))]}}),
        genex("redir", {"reg_proto_min": 1}),
    ]
    return (found,)


def _remove(nft: Any) -> None:
    """Remove the table; it is added first, so that removing it works in any case."""
    nft.begin()
    nft.table("add", name=TABLE)
    nft.table("del", name=TABLE)
    nft.commit()


def run(arguments: list[str]) -> None:
    """Add the table; what an earlier run left is replaced.

    Args:
        arguments: FROM, TO, and local or forwarded.
    """
    from pyroute2.nftables.main import NFTables

    nft = NFTables(nfgen_family=INET)
    try:
        _remove(nft)
        port_from, port_to, is_forwarded = int(arguments[0]), int(arguments[1]), arguments[2] == "forwarded"
        nft.begin()
        nft.table("add", name=TABLE)
        hooks = [("output", True), *([("prerouting", False)] if is_forwarded else [])]
        for name, is_loopback in hooks:
            nft.chain("add", table=TABLE, name=name, hook=name, type="nat", priority=-100, policy=ACCEPT)
            nft.rule(
                "add",
                table=TABLE,
                chain=name,
                expressions=_expressions(port_from, port_to, is_loopback=is_loopback),
            )
        nft.commit()
    finally:
        nft.close()


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}", file=sys.stderr)  # noqa: T201 - the parent reads it
        sys.exit(1)
