"""The stand-in for NVML (fake_nvml.c): compiling it, and the file of figures that a test changes while it runs.

folder = fake_nvml.compiled(tmp_path)
figures = fake_nvml.Figures(tmp_path / "gpus")
figures.gpu(0, total_mib=24_576, used_mib=1000)
env = fake_nvml.environ(folder, figures)         # for a process that is to believe it
"""

import os
import subprocess
from pathlib import Path


def compiled(folder: Path) -> Path:
    """Compile the library into `folder` (gcc), and give that."""
    subprocess.run(
        [
            "gcc",
            "-shared",
            "-fPIC",
            "-Wall",
            "-Werror",
            "-o",
            folder / "libnvidia-ml.so.1",
            Path(__file__).with_name("fake_nvml.c"),
        ],
        check=True,
    )
    return folder


def environ(library: Path, figures: "Figures") -> dict[str, str]:
    return {**os.environ, "LD_LIBRARY_PATH": str(library), "FAKE_NVML_FILE": str(figures.path)}


class Figures:
    """What the driver says, at this moment. Each change is put in place at once, as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[tuple, str] = {}
        self._write()

    def gpu(
        self,
        index: int,
        *,
        total_mib: int = 24_576,
        used_mib: int = 0,
        percent: int = 0,
        celsius: int = 40,
        watts: int = 75,
    ) -> None:
        """Set a device; a negative percent, celsius or watts is "not supported"."""
        self._set(("gpu", index), f"gpu {index} {total_mib} {used_mib} {percent} {celsius} {watts}")

    def process(self, index: int, pid: int, mib: int, *, kind: str = "compute") -> None:
        """Let a process (kind: compute | graphics) take memory of a device; a negative figure is "not available"."""
        self._set((kind, index, pid), f"{kind} {index} {pid} {mib}")

    def lose(self, index: int) -> None:
        self._set(("lost", index), f"lost {index}")

    def find_again(self, index: int) -> None:
        self._lines.pop(("lost", index))
        self._write()

    def fail(self, code: int) -> None:
        """Let every call fail: 9 = the driver is not loaded; 0 = no more."""
        self._set(("error",), f"error {code}")

    def _set(self, key: tuple, line: str) -> None:
        self._lines[key] = line
        self._write()

    def _write(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text("".join(line + "\n" for line in self._lines.values()))
        fresh.replace(self.path)
