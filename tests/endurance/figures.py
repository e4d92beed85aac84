"""What the process holds: descriptors by kind, threads, memory; and what its metrics page says."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True)
class Figures:
    """What a process holds at one moment.

    Attributes:
        descriptors: How many of each kind: socket, pipe, file …
        threads: How many.
        resident_mib: Resident memory, MiB.
    """

    descriptors: dict[str, int] = field(default_factory=dict)
    threads: int = 0
    resident_mib: float = 0.0


def take(pid: int) -> Figures:
    """Read the figures of a process."""
    kinds: Counter[str] = Counter()
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue  # closed meanwhile
        kinds["file" if target.startswith("/") else target.partition("[")[0].rstrip(":")] += 1
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    threads = len(os.listdir(f"/proc/{pid}/task"))
    return Figures(dict(kinds), threads, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def least(samples: list[Figures]) -> Figures:
    """Of several moments the least of each kind: a probe may have a connection open at any moment."""
    names = {name for one in samples for name in one.descriptors}
    return Figures(
        {name: min(one.descriptors.get(name, 0) for one in samples) for name in names},
        min(one.threads for one in samples),
        samples[-1].resident_mib,
    )


def parse(page: str) -> Samples:
    """Read a metrics page."""
    samples: Samples = {}
    for name, labels, value in SAMPLE.findall(page):
        samples[name, tuple(sorted(LABEL.findall(labels)))] = float(value)
    return samples


def total(samples: Samples, name: str, **labels: str) -> float:
    """Sum the samples of a name that have these labels."""
    wanted = set(labels.items())
    return sum(value for (found, own), value in samples.items() if found == name and wanted <= set(own))


def by_label(samples: Samples, name: str, label: str) -> Counter[str]:
    """Sum the samples of a name by one of their labels."""
    sums: Counter[str] = Counter()
    for (found, own), value in samples.items():
        if found == name:
            sums[dict(own)[label]] += int(value)
    return sums
