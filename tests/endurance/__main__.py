"""`python -m tests.endurance`: the whole run, with its report."""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.endurance.run import Endurance


def main() -> int:
    """Run it; 0 = no problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.endurance", description=main.__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument(
        "--seed", type=int, default=int(time.time()), help="the same seed gives the same faults"
    )
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--keep", type=Path, default=None, help="a folder for the log, which is kept")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run = Endurance(folder, requests=given.requests, seed=given.seed, concurrency=given.concurrency)
        report = asyncio.run(run.run())
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
