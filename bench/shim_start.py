"""How long the nvidia-smi shim takes to start and reply, beside `python3 -c pass` in the same run.

Run by `python -m bench.shim_start`.
"""

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

SHIM = Path(__file__).resolve().parent.parent / "shims" / "nvidia-smi"
ROUNDS = 30


def measure_ms(command: list[str], environ: dict[str, str]) -> float:
    started_s = time.perf_counter()
    subprocess.run(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return (time.perf_counter() - started_s) * 1000


def main() -> None:
    """Alternate, so that changes of the machine affect all alike; print median and range in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "GPU_SPOOF_STATE_DIR": folder, "GPU_MODE": "simulated"}
        commands = {
            "python3 -c pass": (["python3", "-c", "pass"], environ),
            "python3 -I -S -c pass": (["python3", "-I", "-S", "-c", "pass"], environ),
            "shim, simulated, -L": ([str(SHIM), "-L"], environ),
            "shim, simulated, table": ([str(SHIM)], environ),
            "shim, simulated, csv": (
                [str(SHIM), "--query-gpu=name,utilization.gpu,memory.used", "--format=csv"],
                environ,
            ),
            "shim, no GPU": ([str(SHIM), "-L"], {**environ, "GPU_MODE": "none"}),
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, (command, env) in commands.items():
                found[name].append(measure_ms(command, env))
        for name, times in found.items():
            print(
                f"{name:26} median {statistics.median(times):6.1f} ms   {min(times):6.1f} to {max(times):6.1f}"
            )


if __name__ == "__main__":
    main()
