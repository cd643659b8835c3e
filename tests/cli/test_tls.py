"""TLS between the client and a router, with the certificates that a mesh makes for itself; and that no key leaves unprotected."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import grpc
import pytest

from forebay.api.router.v1 import router_pb2_grpc
from forebay.cli.certificates import certify
from forebay.cli.main import main
from forebay.client import Code, ForebayClient, MeshError, Tls
from forebay.client.connection import host_of, is_local
from forebay.config import PublicTlsConfig
from forebay.rpc.server import RpcServer

from .conftest import KEY, ScriptedRouter

# For what the client waits to the end of, because it might pass; all else fails as soon as the handshake has.
PATIENCE_S = 0.05


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of a router's certificate, as `forebay up` makes them."""
    return certify(tmp_path_factory.mktemp("certificates"), "router", "router-1")


Serve = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
def serve(files: dict[str, str]) -> Serve:
    """Serves a scripted router, by default with public TLS; gives its address."""

    @asynccontextmanager
    async def serving(tls: bool = True) -> AsyncIterator[str]:
        config = PublicTlsConfig(certificate_file=Path(files["certificate_file"]), key_file=Path(files["key_file"]))
        server = RpcServer("127.0.0.1:0", tls=config if tls else None)
        scripted = ScriptedRouter()
        server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, scripted, "forebay.api.router.v1.RouterService")
        server.add(router_pb2_grpc.add_UsageServiceServicer_to_server, scripted, "forebay.api.router.v1.UsageService")
        await server.start()
        yield server.address
        await server.drain(0)

    return serving


async def test_a_client_trusts_the_authority_that_it_is_given(serve: Serve, files: dict[str, str]) -> None:
    async with serve() as address:
        for host in ("127.0.0.1", "localhost"):
            at = f"{host}:{address.rpartition(':')[2]}"
            async with ForebayClient(at, KEY, tls=Tls(ca_file=files["ca_file"])) as client:
                assert (await client.generate("The capital?")).text == "Paris it is."


async def test_a_client_trusts_whom_the_machine_trusts(
    serve: Serve, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", files["ca_file"])
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    async with serve() as address, ForebayClient(address, KEY, tls=True) as client:
        assert await client.list_models()


@pytest.mark.parametrize(
    ("server_tls", "tls", "reason"),
    [
        (True, True, "TLS_UNTRUSTED"),
        (True, Tls(server_name="elsewhere.example"), "TLS_WRONG_NAME"),
        (True, False, "TLS_EXPECTED"),
        (True, None, "TLS_EXPECTED"),  # to this machine plaintext is the default
        (False, True, "TLS_NOT_SPOKEN"),
    ],
)
async def test_a_handshake_that_fails_says_why(
    serve: Serve, files: dict[str, str], server_tls: bool, tls: bool | Tls | None, reason: str
) -> None:
    if isinstance(tls, Tls):
        tls = Tls(files["ca_file"], server_name=tls.server_name)
    async with (
        serve(server_tls) as address,
        ForebayClient(
            address, KEY, tls=tls, connect_timeout=PATIENCE_S if reason == "TLS_EXPECTED" else 60.0
        ) as client,
    ):
        with pytest.raises(MeshError) as caught:
            await client.list_models()
    assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, reason)
    assert address in caught.value.message


async def test_a_client_shows_its_own_certificate(files: dict[str, str]) -> None:
    ca, certificate, key = (Path(files[name]).read_bytes() for name in ("ca_file", "certificate_file", "key_file"))
    server = grpc.aio.server()
    router_pb2_grpc.add_RouterServiceServicer_to_server(ScriptedRouter(), server)
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    )
    await server.start()
    own = Tls(files["ca_file"], files["certificate_file"], files["key_file"])
    async with ForebayClient(f"127.0.0.1:{port}", KEY, tls=own) as client:
        assert await client.list_models()
    without = ForebayClient(f"127.0.0.1:{port}", KEY, tls=Tls(files["ca_file"]), connect_timeout=PATIENCE_S)
    async with without as client:
        with pytest.raises(MeshError) as caught:
            await client.list_models()
    assert caught.value.code is Code.UNAVAILABLE
    await server.stop(0)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.8.9.1:1", True),
        ("localhost:1", True),
        ("LOCALHOST:1", True),
        ("[::1]:1", True),
        ("unix:/tmp/x", True),
        ("dns:///localhost:1", True),
        ("0.0.0.0:1", False),
        ("10.0.0.1:1", False),
        ("[::ffff:10.0.0.1]:1", False),
        ("[2001:db8::1]:1", False),
        ("localhost.example.com:1", False),
        ("127.0.0.1.example.com:1", False),
        ("2130706433:1", False),
        ("router:1", False),
        ("dns:///router:1", False),
    ],
)
def test_which_addresses_are_of_this_machine(address: str, local: bool) -> None:
    assert is_local(host_of(address)) is local


@pytest.mark.parametrize("tls", [None, True])
async def test_no_key_leaves_this_machine_in_plaintext_unless_told_to(tls: bool | None) -> None:
    heard = asyncio.Event()
    seen = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.read(65_536))
        heard.set()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    # An address that is not loopback by its looks and leads here all the same.
    address = f"0.0.0.0:{server.sockets[0].getsockname()[1]}"
    async with ForebayClient(address, KEY, tls=tls, connect_timeout=60.0) as client:
        with pytest.raises(MeshError, match="TLS_NOT_SPOKEN"):
            await client.generate("secret")
    async with asyncio.timeout(60):
        await heard.wait()
    server.close()
    assert seen[:2] == b"\x16\x03"  # the beginning of a TLS handshake
    assert KEY.encode() not in seen


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("ca_file", None, os.strerror(errno.ENOENT)),
        ("ca_file", "hello", "holds no certificate in PEM form"),
        (
            "ca_file",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "holds a certificate that cannot be read",
        ),
        ("key_file", "hello", "holds no private key in PEM form"),
    ],
)
async def test_a_file_that_is_none_is_named(
    tmp_path: Path, files: dict[str, str], file: str, content: str | None, problem: str
) -> None:
    wrong = tmp_path / "wrong.pem"
    if content is not None:
        wrong.write_text(content)
    given = files | {file: str(wrong)}
    with pytest.raises((OSError, ValueError), match=problem) as caught:
        ForebayClient("127.0.0.1:1", KEY, tls=Tls(given["ca_file"], given["certificate_file"], given["key_file"]))
    assert "wrong.pem" in str(caught.value)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="certificate_file and key_file go together"):
        Tls(certificate_file="x")


async def forebay(*arguments: str) -> int:
    """Runs a command in a thread, beside the loop that serves it."""

    def run() -> int:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        return caught.value.code if isinstance(caught.value.code, int) else 0

    return await asyncio.to_thread(run)


@pytest.mark.slow
async def test_generate_speaks_to_a_router_with_public_tls(
    serve: Serve, files: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FOREBAY_KEY", "FOREBAY_TLS", "FOREBAY_CA", "FOREBAY_ROUTER", "FOREBAY_CERT", "FOREBAY_CERT_KEY"):
        monkeypatch.delenv(name, raising=False)
    async with serve() as address:
        call = ("generate", "The capital?", "--router", address, "--key", KEY)
        assert await forebay(*call, "--ca", files["ca_file"]) == 0
        assert capsys.readouterr().out == "Paris it is.\n"
        assert await forebay("usage", "sum", *call[2:], "--ca", files["ca_file"]) == 0
        assert await forebay(*call, "--ca", files["ca_file"], "--insecure") == 2
        assert "--insecure sends plaintext" in capsys.readouterr().err
        assert await forebay(*call, "--cert", files["certificate_file"]) == 2
        assert "go together" in capsys.readouterr().err
        monkeypatch.setenv("FOREBAY_CA", files["ca_file"])
        monkeypatch.setenv("FOREBAY_TLS", "1")
        monkeypatch.setenv("FOREBAY_ROUTER", address)
        monkeypatch.setenv("FOREBAY_KEY", KEY)
        assert await forebay("generate", "The capital?") == 0
    async with serve(tls=False) as address:
        monkeypatch.delenv("FOREBAY_TLS")  # an authority in the environment does not make plaintext TLS
        assert await forebay("generate", "The capital?", "--router", address) == 0
