"""Port 14444: what is decided from which facts, and the rule itself in a network namespace of our own."""

import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from appliance.host.nat.redirect import ensure_redirect, has_capability, is_host_network

ENSURE = "from appliance.host.nat.redirect import ensure_redirect as e; "
SERVER = (
    "import socket,sys,http.server\n"
    "class S(http.server.ThreadingHTTPServer):\n"
    "    address_family = socket.AF_INET6\n"
    "S(('::', int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()"
)


def decide(
    asked: str,
    *,
    permitted: bool = True,
    host: bool = False,
    answers: dict[str, str] | None = None,
    port: int = 14000,
):
    runs = []

    def run(tool: str, arguments: list[str]) -> str:
        runs.append((tool, arguments))
        return (answers or {}).get(tool, "")

    result = ensure_redirect(
        asked, port_to=port, is_permitted=lambda: permitted, is_host=lambda: host, run=run
    )
    return result, runs


@pytest.mark.parametrize(
    ("asked", "permitted", "host", "answers", "outcome", "tools"),
    [
        ("off", True, False, {}, "off", 0),
        ("auto", True, False, {}, "rule", 1),
        ("on", True, False, {}, "rule", 1),
        ("auto", False, False, {}, "listener", 0),
        ("on", False, False, {}, "failed", 0),
        ("auto", True, True, {}, "listener", 0),
        ("on", True, True, {}, "failed", 0),
        ("auto", True, False, {"nft": "no nf_tables"}, "rule", 2),
        ("auto", True, False, {"nft": "no", "legacy": "no"}, "listener", 2),
        ("on", True, False, {"nft": "no", "legacy": "no"}, "failed", 2),
    ],
)
def test_outcome_follows_from_setting_and_facts(
    asked,
    permitted,
    host,
    answers,
    outcome,
    tools,
) -> None:
    result, runs = decide(asked, permitted=permitted, host=host, answers=answers)
    assert result.outcome == outcome
    assert len(runs) == tools


def test_without_privilege_the_kernel_is_not_asked() -> None:
    result, runs = decide("on", permitted=False)
    assert runs == []
    assert "--cap-add NET_ADMIN" in result.remedy


def test_no_redirect_onto_itself() -> None:
    assert decide("on", port=14444)[0].outcome == "off"


@pytest.mark.parametrize(
    ("bits", "found"), [("0000000000001000", True), ("0000000000000fff", False), ("000001ffffffffff", True)]
)
def test_capability_is_read_from_the_effective_set(tmp_path: Path, bits: str, found: bool) -> None:
    (tmp_path / "status").write_text(f"Name:\tx\nCapPrm:\tffffffffffffffff\nCapEff:\t{bits}\n")
    assert has_capability(12, status=tmp_path / "status") is found


@pytest.mark.parametrize(
    ("devices", "host"),
    [
        (["lo", "eth0"], False),
        (["lo", "tap0"], False),
        (["lo", "eth0", "docker0"], True),
        (["lo", "ens3*"], True),
        (["lo", "virbr0"], True),
        ([], False),
    ],
)
def test_host_network_differs_from_a_containers(tmp_path: Path, devices: list[str], host: bool) -> None:
    (tmp_path / "net").mkdir()
    for name in devices:
        (tmp_path / "net" / name.rstrip("*")).mkdir()
        if name.endswith("*"):
            (tmp_path / "net" / name.rstrip("*") / "device").mkdir()
    assert is_host_network(sys_net=tmp_path / "net", proc=tmp_path) is host


def test_unreadable_devices_count_as_host_network(tmp_path: Path) -> None:
    assert is_host_network(sys_net=tmp_path / "none", proc=tmp_path)


# ---- in a namespace of our own

needs_namespace = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("ip") is None, reason="a network namespace needs root and iproute2"
)


@pytest.fixture
def space():
    name = f"appliance-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    processes = []
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        for port in (18000, 18001):
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, sys.executable, "-c", SERVER, str(port)],
                    stderr=subprocess.DEVNULL,
                )
            )
            assert (
                inside(
                    name,
                    f"import socket,time\nfor _ in range(200):\n  s=socket.socket()\n"
                    f"  if s.connect_ex(('127.0.0.1',{port}))==0: break\n"
                    "  time.sleep(0.02)\nelse: raise SystemExit(1)",
                ).returncode
                == 0
            )
        yield name
    finally:
        for process in processes:
            process.kill()
            process.wait()
        subprocess.run(["ip", "netns", "del", name], check=True)


def inside(name: str, code: str, *, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, "ip", "netns", "exec", name, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def redirect(name: str, port_to: int) -> str:
    done = inside(
        name,
        f"from appliance.host.nat.redirect import ensure_redirect as e; r = e('on', port_to={port_to}); "
        "print(r.outcome, r.keeper, r.detail)",
    )
    return done.stdout.strip() or done.stderr


def reached(name: str, host: str) -> str:
    """Say which port a connection to 14444 came out at."""
    code = (
        f"import socket; s = socket.create_connection(('{host}', 14444), 3); "
        "s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); "
        "print(s.recv(12).decode()); "
    )
    return inside(name, code).stdout.strip()


@pytest.mark.netns
@needs_namespace
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connection_to_14444_is_redirected_for_ipv4_and_ipv6(space: str, host: str) -> None:
    assert reached(space, host) == ""
    assert redirect(space, 18000).startswith("rule nft")
    assert reached(space, host) == "HTTP/1.0 200"


@pytest.mark.netns
@needs_namespace
@pytest.mark.skipif(shutil.which("nft") is None, reason="nft is the witness")
def test_redirect_is_idempotent_and_replaces_an_older_rule(space: str) -> None:
    for port in (18000, 18000, 18001):
        assert redirect(space, port).startswith("rule")
    listed = json.loads(
        subprocess.run(
            ["ip", "netns", "exec", space, "nft", "-j", "list", "ruleset"], check=True, capture_output=True
        ).stdout
    )
    rules = [row["rule"] for row in listed["nftables"] if "rule" in row]
    assert len(rules) == 1
    assert "18001" in json.dumps(rules)
    assert reached(space, "127.0.0.1") == "HTTP/1.0 200"


@pytest.mark.netns
@needs_namespace
@pytest.mark.parametrize(("forwarded", "answer"), [(True, "HTTP/1.0 200"), (False, "")])
def test_forwarded_traffic_is_redirected_if_configured(space: str, forwarded: bool, answer: str) -> None:
    other = f"{space}-b"
    subprocess.run(["ip", "netns", "add", other], check=True)
    try:
        subprocess.run(
            [
                "ip",
                "link",
                "add",
                "near",
                "netns",
                space,
                "type",
                "veth",
                "peer",
                "name",
                "far",
                "netns",
                other,
            ],
            check=True,
        )
        for name, device, address in ((space, "near", "10.99.0.1/24"), (other, "far", "10.99.0.2/24")):
            subprocess.run(["ip", "-n", name, "addr", "add", address, "dev", device], check=True)
            subprocess.run(["ip", "-n", name, "link", "set", device, "up"], check=True)
        code = ENSURE + f"print(e('on', port_to=18000, forwarded={forwarded}).outcome)"
        assert inside(space, code).stdout.strip() == "rule"
        assert reached(other, "10.99.0.1") == answer
        assert reached(space, "127.0.0.1") == "HTTP/1.0 200"
    finally:
        subprocess.run(["ip", "netns", "del", other], check=True)


@pytest.mark.netns
@needs_namespace
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv takes the privilege away")
@pytest.mark.parametrize(("asked", "outcome"), [("auto", "listener"), ("on", "failed")])
def test_without_net_admin_it_does_not_hang(space: str, asked: str, outcome: str) -> None:
    code = ENSURE + f"print(e('{asked}', port_to=18000).outcome)"
    done = subprocess.run(
        [
            "ip",
            "netns",
            "exec",
            space,
            "setpriv",
            "--bounding-set=-net_admin",
            "--inh-caps=-all",
            sys.executable,
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout.strip() == outcome, done.stderr
