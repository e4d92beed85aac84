"""The build backend: setuptools, with the gRPC code generated first.

pip, pipx, uv and `build` call the hooks (PEP 517, PEP 660). An sdist contains the generated code, so that a
wheel is built from it with setuptools alone. `make dist` runs this file: it makes the sdist, and the wheel
from what is in it.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import generate
from setuptools import build_meta

ROOT = Path(__file__).resolve().parent.parent
# Generated code demands packages of at least the generator's version: pyproject.toml has the same one.
GENERATOR = "grpcio-tools==1.85.1"
Settings = dict[str, Any] | None

prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable


def _requires(settings: Settings, of_setuptools: Any) -> list[str]:
    needs: list[str] = of_setuptools(settings)
    return [*needs, GENERATOR] if generate.find_old() else needs


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Return what a build needs beside `build-system.requires`: the generator, unless the code is there."""
    return _requires(config_settings, build_meta.get_requires_for_build_wheel)


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """Return the same for an editable installation."""
    return _requires(config_settings, build_meta.get_requires_for_build_editable)


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    """Return the same for an sdist."""
    return _requires(config_settings, build_meta.get_requires_for_build_sdist)


def _generate() -> None:
    if generate.generate(generate.find_old()) != 0:
        sys.exit("The gRPC code could not be generated; the lines above say why.")
    # Else modules that are gone, left there by an earlier build, would get into the wheel.
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel; return its file name."""
    _generate()
    return str(build_meta.build_wheel(wheel_directory, config_settings, metadata_directory))


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """Build the wheel of an editable installation; return its file name."""
    _generate()
    return str(build_meta.build_editable(wheel_directory, config_settings, metadata_directory))


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    """Build the sdist; return its file name."""
    _generate()
    return str(build_meta.build_sdist(sdist_directory, config_settings))


def main() -> None:
    """Build the sdist into a folder (default dist), unpack it elsewhere, and build the wheel there."""
    target = Path(*sys.argv[1:2] or ["dist"]).absolute()
    os.chdir(ROOT)
    target.mkdir(parents=True, exist_ok=True)
    sdist = target / build_sdist(str(target))
    with TemporaryDirectory() as folder:
        with tarfile.open(sdist) as archive:
            archive.extractall(folder, filter="data")
        unpacked = Path(folder, sdist.name.removesuffix(".tar.gz"))
        code = f"import package_build; print(package_build.build_wheel({str(target)!r}))"
        environ = {**os.environ, "PYTHONPATH": str(unpacked / "protos")}
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=unpacked,
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    for name in (sdist.name, run.stdout.splitlines()[-1]):
        print(target / name)  # noqa: T201


if __name__ == "__main__":
    main()
