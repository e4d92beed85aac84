"""The .proto file: every name is explained and named as usual linters want it; its generated types are complete."""

import importlib.util
import re
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from appliance.control.servicer import Servicer
from appliance.control.v1 import control_pb2 as pb
from appliance.control.v1 import control_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
SERVICE = pb.DESCRIPTOR.services_by_name["Control"]
_spec = importlib.util.spec_from_file_location("generate", ROOT / "protos" / "generate.py")
assert _spec is not None
assert _spec.loader is not None
generate = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generate)


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> descriptor_pb2.FileDescriptorProto:
    from grpc_tools import protoc

    out = tmp_path_factory.mktemp("proto") / "set.pb"
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'protos'}",
            f"-I{files('grpc_tools') / '_proto'}",
            "--include_source_info",
            f"--descriptor_set_out={out}",
            "appliance/control/v1/control.proto",
        ]
    )
    assert code == 0
    return descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file[0]


def test_every_call_message_field_and_value_is_explained(parsed: descriptor_pb2.FileDescriptorProto) -> None:
    explained = {tuple(at.path) for at in parsed.source_code_info.location if at.leading_comments.strip()}
    wanted: dict[tuple[int, ...], str] = {}
    for m, message in enumerate(parsed.message_type):
        wanted[(4, m)] = message.name
        if not message.options.map_entry:
            wanted |= {(4, m, 2, f): f"{message.name}.{field.name}" for f, field in enumerate(message.field)}
    for e, enum in enumerate(parsed.enum_type):
        wanted[(5, e)] = enum.name
        wanted |= {(5, e, 2, v): value.name for v, value in enumerate(enum.value)}
    for s, service in enumerate(parsed.service):
        wanted[(6, s)] = service.name
        wanted |= {(6, s, 2, c): method.name for c, method in enumerate(service.method)}
    assert [name for path, name in wanted.items() if path not in explained] == []


def test_messages_are_named_after_their_call(
    parsed: descriptor_pb2.FileDescriptorProto,
) -> None:
    (service,) = parsed.service
    for method in service.method:
        assert method.input_type == f".{parsed.package}.{method.name}Request"
        assert method.output_type == f".{parsed.package}.{method.name}Response"


def test_names_follow_the_usual_rules(parsed: descriptor_pb2.FileDescriptorProto) -> None:
    assert parsed.package == "appliance.control.v1"
    for enum in parsed.enum_type:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper() + "_"
        assert enum.value[0].name == prefix + "UNSPECIFIED"
        assert all(value.name.startswith(prefix) for value in enum.value)
    for message in parsed.message_type:
        assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", field.name) for field in message.field)


def test_every_call_that_orchestrators_rely_on_is_there(parsed: descriptor_pb2.FileDescriptorProto) -> None:
    streams = {method.name: method.server_streaming for method in parsed.service[0].method}
    assert {name for name, is_stream in streams.items() if is_stream} == {
        "WatchStatus",
        "TailLogs",
        "Chat",
        "WatchBackends",
        "LoadModel",
        "WatchModels",
        "WatchJob",
        "WatchReceipts",
        "TailModelLogs",
    }
    assert set(streams) >= {
        "GetStatus",
        "GetIdentity",
        "GetSettings",
        "Reload",
        "Drain",
        "Resume",
        "Shutdown",
        "GetWorker",
        "StartWorker",
        "StopWorker",
        "RestartWorker",
        "ListBackends",
        "AddBackend",
        "RemoveBackend",
        "DrainBackend",
        "SetStrategy",
        "GetReceipt",
        "ListReceipts",
        "ListModels",
        "LoadModel",
        "EjectModel",
        "ResetModel",
        "PinModel",
        "WatchModels",
        "GetQueue",
        "GetVram",
    }


def test_the_servicer_has_every_call_of_the_service() -> None:
    inherited = control_pb2_grpc.ControlServicer
    missing = [m.name for m in SERVICE.methods if getattr(Servicer, m.name) is getattr(inherited, m.name)]
    assert missing == []


def test_the_generated_types_list_every_call() -> None:
    files = FileDescriptorSet()
    pb.DESCRIPTOR.CopyToProto(files.file.add())
    ((path, text),) = generate.service_types(files.SerializeToString())
    assert path == "appliance/control/v1/control.proto"
    for method in SERVICE.methods:
        asked, given = method.input_type.name, method.output_type.name
        kind = "UnaryStream" if method.server_streaming else "UnaryUnary"
        assert f"    {method.name}: grpc.{kind}MultiCallable[pb.{asked}, pb.{given}]" in text
        assert f"    async def {method.name}(" in text
    assert "-> None: ..." in text
    assert text.count("aio.ServicerContext[") == len(SERVICE.methods)
