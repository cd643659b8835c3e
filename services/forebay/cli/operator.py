"""The operator of a mesh on this machine: who may ask the internal services, and where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from forebay.cli.certificates import certify
from forebay.cli.data_dir import DataDir
from forebay.cli.mesh_state import MeshState
from forebay.config import TlsConfig
from forebay.errors import Code, MeshError
from forebay.rpc.allowlist import ADMIN
from forebay.rpc.client import connect
from forebay.rpc.status import from_rpc_error


@dataclass(frozen=True, slots=True)
class Operator:
    """Opens channels to the services of one mesh.

    Attributes:
        mesh: what is running.
        tls: the operator's certificate.
    """

    mesh: MeshState
    tls: TlsConfig

    @classmethod
    def load(cls, data: DataDir) -> Operator:
        """Returns the operator of the mesh in a data directory.

        Raises:
            DataDirError: no mesh is there.
        """
        return cls(MeshState.load(data.mesh_file), operator_certificate(data))

    def channel(self, name: str) -> grpc.aio.Channel:
        """Returns a channel to one process, such as worker-1.

        Raises:
            DataDirError: the mesh has no such process.
        """
        return connect_to(name, self.mesh.address(name), self.tls)

    @contextmanager
    def errors(self, name: str) -> Iterator[None]:
        """Turns what gRPC raises of a call to one process into `MeshError`, which names the process."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            told = from_rpc_error(error)
            raise self._silence(name, told) if told.reason.startswith("GRPC_") else told from None

    def _silence(self, name: str, told: MeshError) -> MeshError:
        """Returns what a call means that the process itself did not answer."""
        where = f"{name} at {self.mesh.address(name)}"
        if told.code is Code.DEADLINE_EXCEEDED:
            message = f"{where} has not answered in time; see `forebay status`, and {name}'s log in the data directory"
        elif told.code is Code.UNIMPLEMENTED:
            message = f"{where} does not know this call; the running mesh is of another version, restart it"
        elif told.code in (Code.UNAVAILABLE, Code.UNKNOWN, Code.INTERNAL):
            message = f"{where} does not answer; see `forebay status`"
        else:
            message = f"{where} cannot be asked: {told.message}"
        return MeshError(told.code, "NO_ANSWER", message)


def operator_certificate(data: DataDir) -> TlsConfig:
    """Returns the operator's certificate in a data directory; makes it where there is none."""
    return TlsConfig.model_validate(certify(data.folder("certificates"), ADMIN, ADMIN))


def connect_to(name: str, address: str, tls: TlsConfig) -> grpc.aio.Channel:
    """Returns a channel to one process by its name. Routers are public and take no certificate."""
    service = name.rstrip("-0123456789")
    return connect(address, caller="cli", service=service, tls=None if service == "router" else tls)
