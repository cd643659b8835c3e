"""What a server says that it serves, by gRPC's reflection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc.

    Attributes:
        path: such as /forebay.api.router.v1.RouterService/Generate.
        request: what it takes.
        streams_in, streams_out: whether requests and responses are streams.
    """

    path: str
    request: Descriptor
    streams_in: bool
    streams_out: bool


async def methods(channel: grpc.aio.Channel) -> list[Method]:
    """Returns every rpc of a server, its health and reflection included."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()

    async def ask(**what: str) -> reflection_pb2.ServerReflectionResponse:
        await call.write(reflection_pb2.ServerReflectionRequest(**what))
        answer = await call.read()
        assert isinstance(answer, reflection_pb2.ServerReflectionResponse)
        return answer

    files: dict[str, FileDescriptorProto] = {}

    async def fetch(**what: str) -> None:
        for data in (await ask(**what)).file_descriptor_response.file_descriptor_proto:
            file = FileDescriptorProto.FromString(data)
            files[file.name] = file

    names = [service.name for service in (await ask(list_services="")).list_services_response.service]
    for name in names:
        await fetch(file_containing_symbol=name)
    while missing := {name for file in files.values() for name in file.dependency} - files.keys():
        for name in sorted(missing):
            await fetch(file_by_filename=name)
    call.cancel()

    pool = DescriptorPool()
    for file in _in_order(files):
        pool.Add(file)
    return [
        Method(f"/{name}/{method.name}", method.input_type, method.client_streaming, method.server_streaming)
        for name in names
        for method in pool.FindServiceByName(name).methods
    ]


def _in_order(files: dict[str, FileDescriptorProto]) -> Iterator[FileDescriptorProto]:
    """Yields each file after those that it imports."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[FileDescriptorProto]:
        if name not in done:
            done.add(name)
            for dependency in files[name].dependency:
                yield from visit(dependency)
            yield files[name]

    for name in files:
        yield from visit(name)
