"""`appliance support`: one file for those who help: settings, status, log, metrics, versions; no secrets.

It reads the environment as `serve` does, and asks the running appliance over its control API and its HTTP
port. What cannot be had is named in the bundle, with the reason.
"""

import http.client
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from appliance import __version__
from appliance.base.clock import SystemClock, format_rfc3339
from appliance.base.files import MAX_TEXT_BYTES, open_to_read
from appliance.base.logs import is_secret_name, is_secret_variable
from appliance.base.proxies import Proxies
from appliance.base.settings import PackageSettings
from appliance.cli.client import CallFailed, ControlClient, ServerAddress, default_address, read_token
from appliance.cli.render.values import as_object
from appliance.settings import PACKAGES, Settings, described, effective_environ, load
from appliance.support_bundle import Redactor, SupportBundle

PATIENCE_S = 10
MAX_PAGE_BYTES = 8 << 20
LOG_LINES = 2000
RECEIPTS = 1000
LOOPBACK_OF = {"0.0.0.0": "127.0.0.1", "::": "::1"}
HEAD_FIELDS = (
    *("id", "at", "route", "model", "public_model", "served_model", "backend", "pool", "reason", "overflow"),
    *("streamed", "queue_ms", "upstream_ms", "total_ms", "prompt_tokens", "completion_tokens", "finish"),
    *("status", "key"),
)
SYSTEM_FILES = {
    "os-release": "/etc/os-release",
    "meminfo": "/proc/meminfo",
    "loadavg": "/proc/loadavg",
    "memory limit": "/sys/fs/cgroup/memory.max",
    "cpu limit": "/sys/fs/cgroup/cpu.max",
}


def main(output: str | None) -> int:
    """Write the bundle.

    Args:
        output: The file to write; None = one in this folder, named after the time.

    Returns:
        The exit code: 0 written, 1 not written.
    """
    clock = SystemClock()
    name = f"appliance-support-{datetime.fromtimestamp(clock.now_s(), UTC):%Y%m%d-%H%M%S}"
    path = Path(output or f"{name}.tar.gz")
    bundle = collect(dict(os.environ), folder=name, now_s=clock.now_s())
    try:
        bundle.write(path, made_at_s=clock.now_s())
    except FileExistsError:
        print(f"support: {path} exists. Name a new file with -o.", file=sys.stderr)
        return 1
    except (OSError, ValueError) as exc:
        print(f"support: {path} was not written: {exc}.", file=sys.stderr)
        return 1
    print(f"{path}: {', '.join(bundle.names)}")
    for what, reason in bundle.missing.items():
        print(f"left out: {what}: {reason}", file=sys.stderr)
    print("Secrets are blanked; names of models, backends and files are not. Look at it before you send it.")
    return 0


def collect(environ: Mapping[str, str], *, folder: str, now_s: float) -> SupportBundle:
    """Collect the files of a bundle.

    Args:
        environ: As `serve` has it.
        folder: The name of the folder in the bundle.
        now_s: Seconds since 1970.
    """
    settings, problems = load(environ)
    merged, _ = effective_environ(environ)
    redactor = Redactor()
    redactor.learn(find_secrets(merged, settings))
    bundle = SupportBundle(redactor, folder)
    rows = [asdict(row) for row in described(settings, merged)]
    bundle.add_object("settings.json", {"settings": rows, "problems": [str(problem) for problem in problems]})
    bundle.add_object("versions.json", _versions(merged))
    bundle.add_object("host.json", _host(settings))
    _ask_control(bundle, merged)
    _attempt(bundle, "metrics.txt", lambda: bundle.add_text("metrics.txt", _metrics(settings)))
    bundle.add_object(
        "manifest.json",
        {
            "made_at": format_rfc3339(now_s, fraction_digits=3),
            "version": __version__,
            "files": [*bundle.names, "manifest.json"],
            "left_out": bundle.missing,
        },
    )
    return bundle


def find_secrets(environ: Mapping[str, str], settings: Settings | None) -> Iterator[str]:
    """Yield all secrets that the environment and the settings hold.

    1. secret settings, the keys of backends, and variables of models whose names say so
    2. variables whose names say so, such as HF_TOKEN
    3. the content of files that such variables name, as CONTROL_TOKEN_FILE
    4. credentials of proxies
    """
    if settings is not None:  # 1
        for package in PACKAGES:
            group: PackageSettings = getattr(settings, package)
            for field in type(group).model_fields:
                value = getattr(group, field)
                if isinstance(value, SecretStr):
                    yield value.get_secret_value()
        yield from (backend.api_key.get_secret_value() for backend in settings.fleet.backends)
        yield from settings.catalogue.secrets()
    for name, value in environ.items():
        if is_secret_name(name) or (is_secret_variable(name) and not value.isdigit()):  # 2
            yield value
        elif name.endswith("_FILE") and is_secret_name(name.removesuffix("_FILE")) and value:  # 3
            try:
                with open_to_read(Path(value)) as file:
                    yield file.read(MAX_TEXT_BYTES).decode("utf-8", "replace").strip()
            except OSError:
                continue
    yield from Proxies.from_environ(environ).secrets  # 4


def _attempt(bundle: SupportBundle, name: str, add: Callable[[], None]) -> None:
    """Add a file, or record why it cannot be made."""
    try:
        add()
    except CallFailed as exc:
        bundle.add_missing(name, exc.message)
    except (OSError, http.client.HTTPException, ValueError) as exc:
        bundle.add_missing(name, f"{type(exc).__name__}: {exc}")


def _ask_control(bundle: SupportBundle, environ: Mapping[str, str]) -> None:
    """Add what the control API of the running appliance says."""
    from appliance.cli import messages as pb

    try:
        server = ServerAddress(
            default_address(environ), read_token(environ), None, None, None, float(PATIENCE_S)
        )
        client = ControlClient(server)
    except CallFailed as exc:
        bundle.add_missing("status.json", exc.message)
        return

    def add_heads() -> None:
        response = client.call(client.stub.ListReceipts, pb.ListReceiptsRequest(count=RECEIPTS))
        bundle.add_object("receipts.json", [receipt_head(as_object(one)) for one in response.receipts])

    def add_log() -> None:
        lines = client.stream(client.stub.TailLogs, pb.TailLogsRequest(count=LOG_LINES))
        with closing(lines):
            text = "\n".join(f"{line.at.ToJsonString()} {line.source}: {line.text}" for line in lines)
        bundle.add_text("log.txt", text)

    def add_call(name: str, method: str, request: Any) -> Callable[[], None]:
        return lambda: bundle.add_object(name, as_object(client.call(getattr(client.stub, method), request)))

    with client:
        for name, add in (
            ("status.json", add_call("status.json", "GetStatus", pb.GetStatusRequest())),
            (
                "settings-in-force.json",
                add_call("settings-in-force.json", "GetSettings", pb.GetSettingsRequest()),
            ),
            ("models.json", add_call("models.json", "ListModels", pb.ListModelsRequest())),
            ("receipts.json", add_heads),
            ("log.txt", add_log),
        ):
            _attempt(bundle, name, add)


def receipt_head(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a bundle has of a receipt: no text of an upstream server, which may quote a prompt."""
    head = {name: receipt[name] for name in HEAD_FIELDS if name in receipt}
    head["error_kind"] = str(receipt.get("error", "")).partition(":")[0]
    head["attempts"] = [str(attempt.get("outcome", "")) for attempt in receipt.get("attempts", ())]
    return head


def _metrics(settings: Settings | None) -> str:
    """Read the metrics of the running appliance; with a key of the settings, which stays on this machine."""
    if settings is None:
        raise ValueError("the settings are not valid")
    front = settings.front
    host = LOOPBACK_OF.get(front.proxy_host, front.proxy_host)
    keys = front.operator_api_keys.get_secret_value() or front.appliance_api_keys.get_secret_value()
    key = keys.replace(",", " ").split()[:1]
    connection = http.client.HTTPConnection(host, front.proxy_port, timeout=PATIENCE_S)
    with closing(connection):
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {key[0]}"} if key else {})
        response = connection.getresponse()
        page = response.read(MAX_PAGE_BYTES).decode("utf-8", "replace")
    if response.status != http.client.OK:
        raise ValueError(f"GET /metrics gives {response.status}")
    return page


def _versions(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the versions of the appliance, its packages, and the programs that it uses."""
    packages = {one.metadata["Name"]: one.version for one in distributions()}
    return {
        "appliance": __version__,
        "python": sys.version,
        "kernel": platform.release(),
        "packages": dict(sorted(packages.items())),
        "llama-server": _output([environ.get("LLAMA_SERVER_PATH") or "llama-server", "--version"]),
        "nvidia-smi": _output(["nvidia-smi", "-L"]),
    }


def _output(command: list[str]) -> str:
    """Return what a program says about itself; in words why it says nothing."""
    if shutil.which(command[0]) is None:
        return "not installed"
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PATIENCE_S, check=False, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"no answer: {type(exc).__name__}"
    return (done.stdout + done.stderr)[:4000].decode("utf-8", "replace").strip()


def _host(settings: Settings | None) -> dict[str, Any]:
    """Return facts about this machine."""
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)),
        "uid": os.getuid(),
    }
    for name, path in SYSTEM_FILES.items():
        try:
            facts[name] = Path(path).read_text(errors="replace")[:4000].splitlines()
        except OSError as exc:
            facts[name] = exc.strerror
    if settings is not None:
        folder = settings.host.state_dir
        try:
            facts["state_dir"] = shutil.disk_usage(folder)._asdict()
        except OSError as exc:
            facts["state_dir"] = exc.strerror
    return facts
