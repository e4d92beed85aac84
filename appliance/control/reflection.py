"""Server reflection: v1, and v1alpha for clients that know no other.

The package grpcio-reflection has v1alpha alone. v1 has the same messages under other names: the bytes are the
same, so that one servicer answers both.

Source:
    The gRPC project's reflection.proto, v1 and v1alpha.
"""

from collections.abc import Sequence
from functools import cache

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1, ALPHA = "grpc.reflection.v1", "grpc.reflection.v1alpha"
V1_SERVICE = f"{V1}.ServerReflection"


def enable_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Answer reflection at a server.

    Args:
        server: Not started yet.
        services: Full names of the other services.
    """
    _add_v1_file()
    names = (*services, V1_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.aio.ReflectionServicer(names).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(V1_SERVICE, {"ServerReflectionInfo": handler}),)
    )


@cache
def _add_v1_file() -> None:
    """Add the description of v1 to the pool: that of v1alpha with other names."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    file.name, file.package = "grpc/reflection/v1/reflection.proto", V1
    for message in file.message_type:
        for field in message.field:
            if not field.type_name:
                continue
            field.type_name = field.type_name.replace(f".{ALPHA}.", f".{V1}.")
    for method in file.service[0].method:
        method.input_type = method.input_type.replace(f".{ALPHA}.", f".{V1}.")
        method.output_type = method.output_type.replace(f".{ALPHA}.", f".{V1}.")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
