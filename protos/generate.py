"""Generate the Python code of every .proto file beside this script into the package.

Run by `make` and while a wheel is built (package_build.py beside it); the result is not committed.

The path of a file below `protos/` is its path in the package, so that imports in the generated code are right
as they are. Messages and stubs come from protoc with their types (`.pyi`). protoc gives a service no types:
those are written here, for servicers of grpc.aio that answer a stream by `context.write`, and for the
blocking client of the command line.
"""

import hashlib
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent
ENDINGS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def outputs_of(proto: Path) -> list[Path]:
    """Return the files that are generated from `proto`."""
    stem = (TARGET / proto.relative_to(HERE)).with_suffix("")
    return [stem.with_name(stem.name + ending) for ending in ENDINGS]


def mark_of(proto: Path) -> str:
    """Return the line of a generated file that says what it was made from: the source and this script.

    Their times would not do: they are lost in an archive.
    """
    digest = hashlib.sha256(proto.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return f"# Made by protos/generate.py; sha256 of its sources: {digest}"


def is_fresh(proto: Path) -> bool:
    """Return whether the generated files are there, and made from this source by this script."""
    *others, marked = outputs_of(proto)
    return all(path.exists() for path in (*others, marked)) and marked.read_text().partition("\n")[
        0
    ] == mark_of(proto)


def find_old() -> list[Path]:
    """Return every .proto file whose generated files are missing or old."""
    return [proto for proto in sorted(HERE.rglob("*.proto")) if not is_fresh(proto)]


def service_types(descriptors: bytes) -> Iterator[tuple[str, str]]:
    """Yield (path of the .proto file, text of its `_pb2_grpc.pyi`) for a serialized FileDescriptorSet.

    Source: the classes that grpc_tools writes into `_pb2_grpc.py`; the generic types of types-grpcio.
    """
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    for file in FileDescriptorSet.FromString(descriptors).file:
        module = Path(file.name).stem + "_pb2"
        lines = [
            mark_of(HERE / file.name),
            "from collections.abc import AsyncIterator",
            "import grpc",
            "from grpc import aio",
            f"from {'.'.join(Path(file.name).parent.parts)} import {module} as pb",
        ]
        for service in file.service:
            stub, servicer = [f"\nclass {service.name}Stub:"], [f"\nclass {service.name}Servicer:"]
            stub.append("    def __init__(self, channel: grpc.Channel) -> None: ...")
            for method in service.method:
                asked, given = (
                    f"pb.{name.rpartition('.')[2]}" for name in (method.input_type, method.output_type)
                )
                sent = "Stream" if method.client_streaming else "Unary"
                kind = sent + ("Stream" if method.server_streaming else "Unary")
                result = "None" if method.server_streaming else given
                stub.append(f"    {method.name}: grpc.{kind}MultiCallable[{asked}, {given}]")
                taken = f"request: {asked}"
                if method.client_streaming:
                    taken = f"request_iterator: AsyncIterator[{asked}]"
                servicer += [
                    f"    async def {method.name}(",
                    f"        self, {taken}, context: aio.ServicerContext[{asked}, {given}]",
                    f"    ) -> {result}: ...",
                ]
            add = f"\ndef add_{service.name}Servicer_to_server("
            adder = [add, f"    servicer: {service.name}Servicer, server: aio.Server", ") -> None: ..."]
            lines += [*stub, *servicer, *adder]
        yield file.name, "\n".join(lines) + "\n"


def generate(wanted: list[Path]) -> int:
    """Generate the code of these .proto files; return the exit code."""
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
    with TemporaryDirectory() as folder:
        descriptors = Path(folder, "descriptors")
        arguments = [
            f"-I{HERE}",
            f"-I{files('grpc_tools') / '_proto'}",
            f"--python_out={TARGET}",
            f"--pyi_out={TARGET}",
            f"--grpc_python_out={TARGET}",
            f"--descriptor_set_out={descriptors}",
        ]
        code = int(protoc.main(["protoc", *arguments, *map(str, wanted)]))
        if code == 0:
            for name, text in service_types(descriptors.read_bytes()):
                (TARGET / name).with_suffix("").with_name(Path(name).stem + "_pb2_grpc.pyi").write_text(text)
    return code


def main() -> int:
    """Generate what is missing or old; `--force` generates everything."""
    is_forced = "--force" in sys.argv[1:]
    return generate(sorted(HERE.rglob("*.proto")) if is_forced else find_old())


if __name__ == "__main__":
    sys.exit(main())
