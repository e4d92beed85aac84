"""The comparison of bench/compare.py: its command line, its table, what it installs and starts, and one short run."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bench.compare import Comparison, MeasurementFailed, parse
from bench.compare_table import DIRECT, Results, Row, markdown
from bench.peers import PACKAGED, Appliance, NotAvailable, environment, find_python, free_ports, serving

ROOT = Path(__file__).parents[2]
COST = Row("CPU a request, µs", 1)
ADDED = Row("added p50, ms", 3, False)


def test_table_has_medians_multiples_and_reasons() -> None:
    """A subject that cannot be had has its column, and its reason below."""
    results = Results(
        {"nginx": "1.22", "envoy": "", "appliance": "0.2"}, {"envoy": "no wheel for this machine"}
    )
    for name, values in {"nginx": [14.0, 10.0, 15.0], "appliance": [42.0, 40.0, 47.0]}.items():
        for value in values:
            results.add(COST, name, value)
    for name, value in {DIRECT: 0.02, "nginx": -0.0001, "appliance": 0.1}.items():
        results.add(ADDED, name, value)
    results.notes.append("nginx: something to know")
    assert markdown(results, "nginx").splitlines() == [
        "| | nginx 1.22 | envoy | appliance 0.2 |",
        "| --- | --- | --- | --- |",
        "| CPU a request, µs | 14.0 | not available | 42.0 (3.00×) |",
        "| added p50, ms | 0.000 | not available | 0.100 |",
        "",
        "- envoy: not available: no wheel for this machine",
        "- Without a proxy, in the same run: p50, ms 0.020.",
        "- nginx: something to know",
    ]
    assert "| 42.0 (3.00×), 40.0–47.0 |" in markdown(results, "nginx", has_spread=True)


def test_table_without_the_base_has_no_multiples() -> None:
    """A base that could not be measured leaves the plain figures; a round without a figure leaves a dash."""
    results = Results({"nginx": "", "a": "", "b": ""}, {"nginx": "not installed"}, {COST: {"a": [3.0]}})
    assert "| CPU a request, µs | not available | 3.0 | — |" in markdown(results, "nginx")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--subjects", "nginx,haproxy"],
            "haproxy: allowed are nginx, envoy, vllm-router, sglang-router, appliance",
        ),
        (["--subjects", ","], "nothing: allowed are"),
        (["--only", "speed"], "speed: allowed are requests, latency, bursts, paced, first-token, memory"),
        (["--tree", "before"], "before: name=path is needed, such as before=../before"),
        (["--tree", "before=/"], "before=/: / is no source tree of the appliance"),
        (["--tree", f"envoy={ROOT}"], "each needs a name of its own, other than nginx, envoy"),
        (["--tree", f"a={ROOT}", "--tree", f"a={ROOT}"], "each needs a name of its own"),
        (["--rounds", "0"], "0: a number from 1 to 50 is needed"),
        (["--rounds", "many"], "many: a number from 1 to 50 is needed"),
        (["--seconds", "61"], "61: a number from 0.2 to 60 is needed"),
        (["--seconds", "nan"], "nan: a number from 0.2 to 60 is needed"),
        (["--growth", "1000001"], "1000001: a number from 0 to 1e+06 is needed"),
        (["--pace-ms", "0"], "0: a number from 1 to 1000 is needed"),
    ],
)
def test_wrong_argument_is_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the value and what is allowed."""
    with pytest.raises(SystemExit):
        parse(arguments)
    assert said in capsys.readouterr().err


def test_quick_run_is_one_short_round() -> None:
    """Unless the command line says otherwise."""
    assert (parse([]).rounds, parse([]).seconds, parse([]).growth) == (5, 8.0, 100_000)
    quick = parse(["--quick"])
    assert (quick.rounds, quick.seconds, quick.growth) == (1, 1.0, 0)
    assert parse(["--quick", "--growth", "1000000"]).growth == 1_000_000
    assert parse([]).tree == [("appliance", ROOT)]


def test_two_trees_are_columns_of_one_table() -> None:
    """Each by both ways to the upstream, where that is requested."""
    arguments = ["--tree", f"before={ROOT}", "--tree", f"after={ROOT}", "--via", "both"]
    comparison = Comparison(parse([*arguments, "--subjects", "nginx,appliance"]))
    assert [proxy.name for proxy in comparison.proxies] == [
        "nginx",
        "before (hosted)",
        "before (backends)",
        "after (hosted)",
        "after (backends)",
    ]
    assert comparison.base == "nginx"
    shutil.rmtree(comparison.dir)
    with pytest.raises(SystemExit, match="--relative-to envoy: it is not measured; measured are nginx"):
        Comparison(parse([*arguments, "--subjects", "nginx", "--relative-to", "envoy"]))


@pytest.fixture
def comparison() -> Iterator[Comparison]:
    one = Comparison(parse(["--subjects", "nginx", "--seconds", "0.2"]))
    yield one
    shutil.rmtree(one.dir)


class Failing(BaseHTTPRequestHandler):
    """Answers every request with an error."""

    def do_POST(self) -> None:
        self.send_error(503)

    def log_message(self, *arguments: object) -> None:
        pass


def test_bad_responses_are_no_figure(comparison: Comparison) -> None:
    """A subject that refuses quickly is not fast; what it said stands below the table."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Failing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(MeasurementFailed, match=r"\d+ bad responses, 0 good ones HTTP/1.0 503"):
            comparison.window("closed", server.server_port, 1, "chat.json", 0, lambda _: 0.0)
        server.shutdown()


def test_subject_that_died_is_a_note(comparison: Comparison) -> None:
    """The run goes on with the others."""
    port = free_ports(1)[0]
    row = (Row("a", 1), Row("b", 1))
    load = ("closed", 1, "chat.json", "done")
    comparison.attempt("nginx", "a", lambda: comparison.cost(row, "nginx", (0, port), load))
    assert comparison.found.samples == {}
    assert comparison.found.notes == [
        "nginx: no figure in one round of a: the load program ended without a result connect: Connection refused"
    ]


def test_lock_of_the_peers_has_hashes_and_no_host() -> None:
    """As the other lock files; it has every peer that is a package."""
    text = (ROOT / "bench/peers.lock").read_text()
    assert "://" not in text
    pins = re.findall(r"^([\w.-]+)==\S+ \\\n    --hash=sha256:", text, re.MULTILINE)
    assert set(PACKAGED.values()) <= set(pins)
    assert len(pins) == len(re.findall(r"^\S", text, re.MULTILINE))


def test_free_ports_are_all_different() -> None:
    """Also when many are taken at once."""
    assert len(set(free_ports(200))) == 200


@pytest.mark.parametrize("has_backends", [False, True])
def test_appliance_runs_with_everything_on(tmp_path: Path, has_backends: bool) -> None:
    """Keys and JSON log; each listener has its own port; two trees share no folder."""
    one, two = (
        Appliance(name, ROOT, tmp_path, tmp_path, None, has_backends=has_backends) for name in ("a (x)", "b")
    )
    one.dir.mkdir()
    variables = one.variables(1, 2, 3, 4)
    ports = [variables[name] for name in ("PROXY_PORT", "CONTROL_PORT", "STATUS_PORT")]
    assert ports == ["2", "3", "4"]
    assert variables["APPLIANCE_API_KEYS"] == "bench-client-key"
    assert (variables["LOG_FORMAT"], variables["NAT_REDIRECT"]) == ("json", "off")
    assert ("CONFIG_PATH" in variables) == has_backends == ("NOVITA_API_KEY" not in variables)
    assert one.dir != two.dir
    checked = subprocess.run(
        [sys.executable, "-m", "appliance", "check"], cwd=ROOT, env=variables, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    """And the option that helps."""
    with pytest.raises(
        NotAvailable, match=f"{tmp_path}/python does not run; give an interpreter with --python"
    ):
        find_python(f"{tmp_path}/python")


def test_installation_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no complete environment, so that the next run tries again."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    lock = f"no-such-package==1.0 --hash=sha256:{'0' * 64}\n"
    for _ in range(2):
        with pytest.raises(
            NotAvailable, match="the installation of peers failed: ERROR: No matching distribution"
        ):
            environment(tmp_path / "cache", "peers", sys.executable, {lock: []})


def test_program_that_ends_at_its_start_says_why(tmp_path: Path) -> None:
    """With the last line of its log that speaks of an error."""
    command = ["sh", "-c", "echo 'error: port is taken'; echo bye; exit 3"]
    with (
        pytest.raises(NotAvailable, match="it ended at its start: error: port is taken"),
        serving(command, free_ports(1)[0], tmp_path / "log", {}),
    ):
        pass


def test_short_run_prints_a_table(tmp_path: Path) -> None:
    """nginx has figures; a peer that cannot be installed is in the table with its reason."""
    done = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "bench.compare",
                "--subjects",
                "nginx,envoy",
                "--only",
                "requests,latency",
            ),
            *("--rounds", "1", "--seconds", "0.3", "--results", str(tmp_path / "results")),
            *("--cache", str(tmp_path / "cache"), "--python", str(tmp_path / "none")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    figure = r"[\d,.]+"
    assert re.search(
        rf"^\| CPU a request, 64 connections, µs \| {figure} \| not available \|$", done.stdout, re.M
    )
    assert re.search(
        rf"^\| added p50 at 200 requests/s, ms \| -?{figure} \| not available \|$", done.stdout, re.M
    )
    assert "- envoy: not available: " in done.stdout
    assert len(list((tmp_path / "results").glob("compare-*.json"))) == 1
