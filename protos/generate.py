"""Generate the Python code of every .proto file beside this script into the package. Run by `make`; the result is not committed.

The path of a file below `protos/` is its path in the package, so that imports in the generated code are right as they are.
"""

import sys
from importlib.resources import files
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent


def outputs_of(proto: Path) -> list[Path]:
    """Give the files that are generated from `proto`."""
    stem = (TARGET / proto.relative_to(HERE)).with_suffix("")
    return [stem.with_name(stem.name + ending) for ending in ("_pb2.py", "_pb2_grpc.py")]


def is_fresh(proto: Path) -> bool:
    """Say whether the generated files are there and newer than their source and this script."""
    changed = max(proto.stat().st_mtime, Path(__file__).stat().st_mtime)
    return all(path.exists() and path.stat().st_mtime >= changed for path in outputs_of(proto))


def main() -> int:
    """Generate what is missing or old; `--force` generates everything."""
    protos = sorted(HERE.rglob("*.proto"))
    wanted = [p for p in protos if "--force" in sys.argv[1:] or not is_fresh(p)]
    if not wanted:
        return 0
    try:
        from grpc_tools import protoc
    except ImportError:
        print(  # noqa: T201
            "protos/generate.py: the package grpcio-tools is missing; it is in requirements-dev.lock.",
            file=sys.stderr,
        )
        return 1
    arguments = [
        f"-I{HERE}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={TARGET}",
        f"--grpc_python_out={TARGET}",
    ]
    code = protoc.main(["protoc", *arguments, *map(str, wanted)])
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
