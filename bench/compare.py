"""The appliance beside nginx, Envoy, vllm-router and sglang-router, over the same upstream, in one run.

    python -m bench.compare [--quick] [--subjects nginx,envoy,appliance] [--tree before=PATH --tree after=PATH]

One core is the subject's, the other one is upstream's and load's. The subjects are measured in turn, in rounds, each
round beginning with another one; the figures are medians. Memory is measured with one subject running at a time. What is
compared, and how it is installed for Python 3.13: bench/peers.py. Prints one table in Markdown; a subject that cannot be
had is in it, with the reason below. Bounded in count and time; loopback only. What the rows mean: docs/performance.md.
"""

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.__main__ import HERE, LOAD_CPU, Bench, Subject, cpu_s, memory_mb, say
from bench.compare_table import DIRECT, Results, Row, markdown
from bench.peers import PEERS, Appliance, NotAvailable, Proxy, build_of, default_cache, find_python, peer

GROUPS = ("requests", "latency", "bursts", "paced", "first-token", "memory")
CONNECTIONS = (64, 1024)
BURST_STREAMS, FIRST_TOKEN_STREAMS, OPEN_STREAMS = 64, 8, 1000
RATE = 200  # requests a second, for the added latency
WARM_S = 1.0  # under the same load, before each measurement
GROWTH_WARM = 20_000  # requests before the memory is looked at for the first time
MAX_GROWTH, MAX_SECONDS, MAX_ROUNDS, MAX_STREAMS = 1_000_000, 60.0, 50, 4000
OPEN_FILES = 16384
Sample = Callable[[int], float]


class MeasurementFailed(Exception):
    """A measurement has no result; the text says why."""


class Comparison(Bench):
    """The measurements of several subjects in turn."""

    def __init__(self, requested: argparse.Namespace) -> None:
        super().__init__(requested.quick)
        self.requested = requested
        self.rounds, self.round_s = requested.rounds, requested.seconds
        self.found = Results()
        self.proxies: list[Proxy] = []
        for name in requested.subjects:
            if name != "appliance":
                self.proxies.append(peer(name, self, requested.cache, requested.python))
                continue
            for title, tree in requested.tree:
                self.proxies += self.appliances(title, tree)
        names = [proxy.name for proxy in self.proxies]
        self.base = requested.relative_to or names[0]
        if self.base not in names:
            shutil.rmtree(self.dir)
            raise SystemExit(
                f"--relative-to {self.base}: it is not measured; measured are {', '.join(names)}"
            )

    def appliances(self, title: str, tree: Path) -> Iterator[Appliance]:
        """Yield the columns of one source tree."""
        both = self.requested.via == "both"
        for via in ("hosted", "backends") if both else (self.requested.via,):
            name = f"{title} ({via})" if both else title
            yield Appliance(
                name,
                tree,
                self.dir,
                self.requested.cache,
                self.requested.python,
                has_backends=via == "backends",
            )

    # ---- set-up, and what runs

    def prepare(self) -> None:
        """Install what is missing; a subject that cannot be had is left out from now on."""
        for proxy in self.proxies:
            self.found.versions[proxy.name] = ""
            try:
                self.found.versions[proxy.name] = proxy.prepare()
            except NotAvailable as exc:
                self.miss(proxy, exc)

    def miss(self, proxy: Proxy, reason: NotAvailable) -> None:
        """Leave a subject out from now on."""
        self.found.missing[proxy.name] = str(reason)
        say(f"{proxy.name}: not available: {reason}")

    def opened(self, stack: ExitStack, proxies: Sequence[Proxy], upstream: int) -> dict[str, Subject]:
        """Start subjects; each runs until the stack is closed."""
        running: dict[str, Subject] = {}
        for proxy in proxies:
            if proxy.name in self.found.missing:
                continue
            try:
                running[proxy.name] = stack.enter_context(proxy.open(upstream))
            except NotAvailable as exc:
                self.miss(proxy, exc)
        return running

    def turns(self, running: dict[str, Subject], title: str) -> Iterator[tuple[str, Subject]]:
        """Yield every subject once per round, each round beginning with another one."""
        names = list(running)
        for number in range(self.rounds):
            say(f"{title}, round {number + 1} of {self.rounds}")
            at = number % max(len(names), 1)
            for name in names[at:] + names[:at]:
                yield name, running[name]
            self.empty_logs()

    def empty_logs(self) -> None:
        """Empty what the subjects have logged: a million lines are hundreds of megabytes."""
        for log in self.dir.rglob("*.log"):
            os.truncate(log, 0)

    # ---- one measurement

    def window(
        self, mode: str, port: int, number: int, body: str, pid: int, sample: Sample
    ) -> tuple[dict[str, float], float, float]:
        """Put load on a port.

        Args:
            mode: See load.c.
            port: Of the subject, or of the upstream itself.
            number: See load.c.
            body: Name of the file with the request's body.
            pid: Of the subject.
            sample: Called with `pid` as the counted time begins, and as it ends.

        Returns:
            What the load program counted, the first sample, the second one.

        Raises:
            MeasurementFailed: The load program has no result.
        """
        with open(self.dir / "load.err", "w+") as errors:
            process = subprocess.Popen(
                [
                    *("taskset", "-c", LOAD_CPU, str(self.dir / "load"), mode, str(port), str(number)),
                    *(str(self.round_s), str(self.dir / body), str(WARM_S)),
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            limit = threading.Timer(WARM_S + self.round_s + 60, process.kill)
            limit.start()
            try:
                assert process.stdout is not None
                samples = [
                    sample(pid) for mark in ("begin", "end") if process.stdout.readline().strip() == mark
                ]
                out = process.stdout.read()
            finally:
                limit.cancel()
                process.kill()
                process.wait()
            errors.seek(0)
            said = " ".join(errors.read(200).split())
        found = {name: float(value) for name, _, value in (pair.partition("=") for pair in out.split())}
        if len(samples) < 2 or "bad" not in found:
            raise MeasurementFailed(f"the load program ended without a result {said}".strip())
        if found["bad"]:
            raise MeasurementFailed(
                f"{found['bad']:.0f} bad responses, {found['done']:.0f} good ones {said}".strip()
            )
        return found, samples[0], samples[1]

    def attempt(self, name: str, title: str, measure: Callable[[], None]) -> None:
        """Measure once; a failure becomes a note below the table."""
        try:
            measure()
        except (MeasurementFailed, OSError, subprocess.SubprocessError) as exc:
            note = f"{name}: no figure in one round of {title}: {exc}"
            self.found.notes.append(note)
            say(note)

    def cost(
        self, rows: tuple[Row, Row], name: str, subject: Subject, load: tuple[str, int, str, str]
    ) -> None:
        """Measure the processor time of each request or event, and how many fit in a second of it.

        Args:
            rows: For the time in microseconds, and for the number per second.
            name: Of the subject.
            subject: Process and port.
            load: Mode and number of the load, the body's file, and what of its result is counted.
        """
        mode, number, body, counted = load
        pid, port = subject
        found, before, after = self.window(mode, port, number, body, pid, cpu_s)
        if not found[counted] or after <= before:
            raise MeasurementFailed("nothing was counted")
        self.found.add(rows[0], name, (after - before) * 1e6 / found[counted])
        self.found.add(rows[1], name, found[counted] / (after - before))

    def times(self, rows: dict[str, Row], port: int, load: tuple[str, int, str]) -> dict[Row, float]:
        """Return times in milliseconds: `rows` says which of the load program's result is which row."""
        mode, number, body = load
        found, _, _ = self.window(mode, port, number, body, 0, lambda _: 0.0)
        return {row: found[field] for field, row in rows.items()}

    # ---- all measurements

    def run(self) -> None:
        """Measure everything that was requested."""
        requested: list[str] = self.requested.only
        if {"requests", "latency", "bursts"} & set(requested):
            with self.upstream() as upstream, ExitStack() as stack:
                running = self.opened(stack, self.proxies, upstream)
                if "requests" in requested:
                    self.requests(running)
                if "latency" in requested:
                    rows = {
                        f"{p}_ms": Row(f"added {p} at {RATE} requests/s, ms", 3, False)
                        for p in ("p50", "p99")
                    }
                    self.added(running, upstream, "added latency", rows, ("rate", RATE, "chat.json"))
                if "bursts" in requested:
                    self.streams(running, f"as fast as they come, {BURST_STREAMS} streams", BURST_STREAMS)
        if "paced" in requested:
            pace_ms, number = self.requested.pace_ms, self.requested.streams
            events = max(1, 10_000 // pace_ms)  # ten seconds: what a stream's start costs hardly counts
            with self.upstream(events, pace_ms) as upstream, ExitStack() as stack:
                running = self.opened(stack, self.proxies, upstream)
                self.streams(running, f"one every {pace_ms} ms a stream, {number} streams", number)
        if "first-token" in requested:
            with self.upstream(5, 10) as upstream, ExitStack() as stack:
                running = self.opened(stack, self.proxies, upstream)
                rows = {
                    "ttft_p50_ms": Row(
                        f"added time to first token, p50, {FIRST_TOKEN_STREAMS} streams, ms", 3, False
                    )
                }
                load = ("stream", FIRST_TOKEN_STREAMS, "stream.json")
                self.added(running, upstream, "time to first token", rows, load)
        if "memory" in requested:
            self.memory()

    def requests(self, running: dict[str, Subject]) -> None:
        """Measure requests as fast as they are answered."""
        for number in CONNECTIONS:
            title = f"{number:,} connections"
            rows = (Row(f"CPU a request, {title}, µs", 1), Row(f"requests per core second, {title}", 0))
            for name, subject in self.turns(running, f"requests, {title}"):
                load = ("closed", number, "chat.json", "done")
                self.attempt(name, title, lambda: self.cost(rows, name, subject, load))  # noqa: B023

    def streams(self, running: dict[str, Subject], title: str, number: int) -> None:
        """Measure stream events."""
        rows = (
            Row(f"CPU a stream event, {title}, µs", 1),
            Row(f"stream events per core second, {title}", 0),
        )
        for name, subject in self.turns(running, f"events, {title}"):
            load = ("stream", number, "stream.json", "events")
            self.attempt(name, title, lambda: self.cost(rows, name, subject, load))  # noqa: B023

    def added(
        self,
        running: dict[str, Subject],
        upstream: int,
        title: str,
        rows: dict[str, Row],
        load: tuple[str, int, str],
    ) -> None:
        """Measure what a subject adds to the times of the upstream itself, in the same round."""
        direct: dict[Row, float] = {}

        def measure(name: str, port: int) -> None:
            nonlocal direct
            if name == DIRECT:
                direct = self.times(rows, port, load)
                for row, value in direct.items():
                    self.found.add(row, DIRECT, value)
                return
            if not direct:
                raise MeasurementFailed("nothing to compare with: no figure without a proxy in this round")
            for row, value in self.times(rows, port, load).items():
                self.found.add(row, name, value - direct[row])

        for number, (name, (_, port)) in enumerate(self.turns(running, title)):
            if number % len(running) == 0:
                direct = {}
                self.attempt(DIRECT, title, lambda: measure(DIRECT, upstream))
            self.attempt(name, title, lambda: measure(name, port))  # noqa: B023

    def memory(self) -> None:
        """Measure memory, one subject running at a time: pages that two share count by their share."""
        idle = Row("memory idle (PSS), MB", 1)
        held = Row(f"more for {OPEN_STREAMS:,} open streams, MB", 1)
        grown = Row(f"more after {self.requested.growth:,} further requests, MB", 1, False)
        with self.upstream(events=100, pace_ms=100) as upstream:
            for proxy in self.proxies:
                with ExitStack() as stack:
                    for name, (pid, port) in self.opened(stack, [proxy], upstream).items():
                        say(f"memory: {name}")
                        time.sleep(1)
                        before = memory_mb(pid)
                        self.found.add(idle, name, before)
                        self.attempt(name, held.title, lambda: self.hold(held, name, pid, port, before))  # noqa: B023
                        if self.requested.growth:
                            self.attempt(name, grown.title, lambda: self.grow(grown, name, pid, port))  # noqa: B023
                self.empty_logs()

    def hold(self, row: Row, name: str, pid: int, port: int, before: float) -> None:
        """Measure the memory of open streams."""
        _, _, after = self.window("hold", port, OPEN_STREAMS, "stream.json", pid, memory_mb)
        self.found.add(row, name, after - before)

    def grow(self, row: Row, name: str, pid: int, port: int) -> None:
        """Measure how the memory grows with requests, after GROWTH_WARM of them."""
        marks = []
        for goal in (GROWTH_WARM, self.requested.growth):
            done = 0.0
            while done < goal:
                found = self.load("closed", port, CONNECTIONS[0], 2)
                if not found["done"]:
                    raise MeasurementFailed("no request was answered in 2 s")
                done += found["done"]
                self.empty_logs()
            marks.append(memory_mb(pid))
        self.found.add(row, name, marks[1] - marks[0])

    # ---- the result

    def heading(self) -> str:
        """Return on what was measured, in two lines."""
        model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        try:
            python = build_of(find_python(self.requested.python))
        except NotAvailable:
            python = "not available"
        return (
            f"{time.strftime('%d %B %Y %H:%M')}, {model[1] if model else platform.machine()}, {os.cpu_count()} cores, "
            f"one for the subject, {platform.system()} {platform.release()}, Python {python}.\n"
            f"Medians of {self.rounds} rounds of {self.round_s:g} s in turn; in brackets: times the figure of "
            f"{self.base}. Load of the machine at the start: {LOAD_AT_START[0]:.2f}."
        )

    def show(self) -> None:
        """Print the table, and write all rounds to a file."""
        table = markdown(self.found, self.base, has_spread=self.requested.spread)
        print(f"\n{self.heading()}\n\n{table}")
        folder: Path = self.requested.results
        folder.mkdir(exist_ok=True)
        (folder / f"compare-{time.strftime('%Y%m%d-%H%M%S')}.json").write_text(
            json.dumps(
                {
                    "versions": self.found.versions,
                    "missing": self.found.missing,
                    "notes": self.found.notes,
                    "rounds": {row.title: samples for row, samples in self.found.samples.items()},
                },
                indent=1,
                ensure_ascii=False,
            )
        )


LOAD_AT_START = os.getloadavg()


# ---- the command line


def names_of(allowed: Sequence[str]) -> Callable[[str], list[str]]:
    """Return a reader of a comma list of allowed names."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        wrong = [name for name in names if name not in allowed]
        if wrong or not names:
            raise argparse.ArgumentTypeError(
                f"{', '.join(wrong) or 'nothing'}: allowed are {', '.join(allowed)}"
            )
        return list(dict.fromkeys(names))

    return read


def number_of(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """Return a reader of a number from `low` to `high`."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = high + 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}: a number from {low:g} to {high:g} is needed")
        return value

    return read


def tree_of(text: str) -> tuple[str, Path]:
    """Read `name=path`: a source tree of the appliance."""
    name, _, path = text.partition("=")
    tree = Path(path).expanduser().resolve()
    if not name.strip() or not path:
        raise argparse.ArgumentTypeError(f"{text}: name=path is needed, such as before=../before")
    if not (tree / "appliance/__main__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text}: {tree} is no source tree of the appliance")
    return name.strip(), tree


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description="Measure the appliance beside other proxies, in turn."
    )
    subjects = (*PEERS, "appliance")
    parser.add_argument(
        "--subjects",
        type=names_of(subjects),
        default=list(subjects),
        metavar="LIST",
        help=", ".join(subjects),
    )
    parser.add_argument(
        "--tree",
        type=tree_of,
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="a source tree of the appliance, may be repeated; default: this one",
    )
    parser.add_argument(
        "--via",
        choices=("hosted", "backends", "both"),
        default="hosted",
        help="what the upstream is to the appliance: the hosted API, one of its backends, or each in a column",
    )
    parser.add_argument(
        "--only", type=names_of(GROUPS), default=list(GROUPS), metavar="LIST", help=", ".join(GROUPS)
    )
    parser.add_argument("--rounds", type=number_of(int, 1, MAX_ROUNDS), help="default 5")
    parser.add_argument(
        "--seconds", type=number_of(float, 0.2, MAX_SECONDS), help="of each measurement; default 8"
    )
    parser.add_argument(
        "--streams", type=number_of(int, 1, MAX_STREAMS), default=400, help="paced streams; default 400"
    )
    parser.add_argument(
        "--pace-ms", type=number_of(int, 1, 1000), default=25, help="between two events of them; default 25"
    )
    parser.add_argument(
        "--growth",
        type=number_of(int, 0, MAX_GROWTH),
        help=f"requests for the growth of memory, up to {MAX_GROWTH}; 0 = none; default 100000",
    )
    parser.add_argument(
        "--relative-to",
        metavar="SUBJECT",
        help="the column that others are a multiple of; default: the first",
    )
    parser.add_argument("--spread", action="store_true", help="show the lowest and the highest round")
    parser.add_argument("--quick", action="store_true", help="see whether all works: one round of 1 s each")
    parser.add_argument("--set-up", action="store_true", help="only install what is needed")
    parser.add_argument(
        "--results", type=Path, default=HERE / "results", help="folder of the file with all rounds"
    )
    parser.add_argument("--python", help="interpreter for all subjects; default: a Python 3.13")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of what is installed")
    requested = parser.parse_args(arguments)
    requested.rounds = requested.rounds or (1 if requested.quick else 5)
    requested.seconds = requested.seconds or (1.0 if requested.quick else 8.0)
    if requested.growth is None:
        requested.growth = 0 if requested.quick else 100_000
    requested.tree = requested.tree or [("appliance", HERE.parent)]
    names = [name for name, _ in requested.tree]
    if len(set(names)) < len(names) or set(names) & set(PEERS):
        parser.error(
            f"--tree: each needs a name of its own, other than {', '.join(PEERS)}; got {', '.join(names)}"
        )
    return requested


def main() -> int:
    """Install, measure, print; 1 = a source tree of the appliance could not be measured."""
    requested = parse()
    for tool in ("gcc", "taskset"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is missing; `make bench-peers` installs it")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    comparison = Comparison(requested)
    try:
        comparison.prepare()
        if not requested.set_up:
            comparison.run()
            comparison.show()
        return int(
            any(isinstance(p, Appliance) and p.name in comparison.found.missing for p in comparison.proxies)
        )
    finally:
        shutil.rmtree(comparison.dir, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
