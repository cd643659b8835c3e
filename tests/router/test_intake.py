"""How public calls are taken in: whose they are first, then what they hold, and never more than is allowed at a time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import grpc
import pytest

from forebay.api.router.v1 import router_pb2
from forebay.errors import Code, MeshError
from forebay.router import intake
from forebay.router.domain.free_calls import BURST, PER_S
from forebay.router.intake import PACED_ABOVE_BYTES, PACED_BYTES_PER_S, READS_OF_TENANT, Intake
from forebay.rpc.status import from_rpc_error
from forebay.rpc.unread import UnreadMessage

from .conftest import METADATA, RouterWorld, options_for
from .peers import soon
from .samples import CALLER
from .streams import failure

ROUTER = "forebay.api.router.v1.RouterService"


def label(count: int) -> bytes:
    """Labels as they are on the wire, without building a map of them."""
    labels = b"\x3a\x0a\x0a\x05label\x12\x01v" * count
    size, encoded = len(labels), bytearray(b"\x0a")
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes((*encoded, size)) + labels


async def refusal(world: RouterWorld, rpc: str, data: bytes, metadata: Any = METADATA) -> MeshError:
    kind = world.channel.unary_stream if rpc.startswith("Stream") else world.channel.unary_unary
    service = "UsageService" if "Usage" in rpc else "RouterService"
    call = kind(f"/forebay.api.router.v1.{service}/{rpc}")(data, metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await soon(call.read() if rpc.startswith("Stream") else call)
    return from_rpc_error(caught.value)


@pytest.mark.parametrize(
    "rpc", ["Generate", "StreamGenerate", "CountTokens", "ListModels", "Embed", "SumUsage", "StreamUsage"]
)
async def test_without_a_key_a_message_is_not_even_looked_at(world: RouterWorld, rpc: str) -> None:
    await world.start()
    for data in (label(100_000), b"\xff\xff\xff"):
        error = await refusal(world, rpc, data, metadata=())
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "UNKNOWN_KEY")


@pytest.mark.parametrize(
    ("rpc", "data", "field"),
    [
        ("Generate", label(100_000), "labels"),
        ("StreamGenerate", label(9), "labels"),
        ("CountTokens", router_pb2.CountTokensRequest(model="m" * 2_000).SerializeToString(), "model"),
        ("ListModels", router_pb2.ListModelsRequest(page_token="t" * 2_000).SerializeToString(), "page_token"),
        ("Embed", router_pb2.EmbedRequest(texts=["t"] * 257).SerializeToString(), "texts"),
        ("SumUsage", router_pb2.SumUsageRequest(group_by=[1] * 100_000).SerializeToString(), "group_by"),
        ("StreamUsage", router_pb2.StreamUsageRequest(cursor="c" * 2_000).SerializeToString(), "cursor"),
    ],
)
async def test_a_field_above_its_bound_is_named(world: RouterWorld, rpc: str, data: bytes, field: str) -> None:
    await world.start()
    error = await refusal(world, rpc, data)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_REQUEST")
    assert [violation.field for violation in error.field_violations] == [field]


@pytest.mark.parametrize("rpc", ["Generate", "StreamGenerate", "CountTokens", "SumUsage", "StreamUsage"])
async def test_what_is_no_message_is_told_so(world: RouterWorld, rpc: str) -> None:
    await world.start()
    assert (await refusal(world, rpc, b"\xff\xff\xff")).reason == "MALFORMED_MESSAGE"
    assert (await refusal(world, rpc, b"\x0a\x7f")).reason == "MALFORMED_MESSAGE"


@pytest.mark.slow
async def test_a_long_prompt_is_answered_as_a_short_one_is(world: RouterWorld) -> None:
    await world.start()
    text = "the quick brown fox " * 100
    long = router_pb2.Prompt(chat={"messages": [{"role": "user", "content": text}]})
    count = await world.client.CountTokens(router_pb2.CountTokensRequest(prompt=long), metadata=METADATA)
    call = world.client.Generate(router_pb2.GenerateRequest(options=options_for(prompt=long)), metadata=METADATA)
    start = await world.worker.starts.get()
    assert len(start.prompt_token_ids) == count.prompt_tokens
    world.worker.finish(start, 0)
    assert (await call).usage.prompt_tokens == count.prompt_tokens
    bad = router_pb2.Prompt(chat={"messages": [{"role": "root", "content": text}]})
    error = await failure(world.stream(prompt=bad))
    assert error.field_violations[0].field == "prompt.chat.messages[0].role"
    too_long = router_pb2.Prompt(text="the quick brown fox " * 5_000)
    error = await failure(world.stream(prompt=too_long))
    assert error.field_violations[0].field == "prompt"
    assert "tokens" in error.field_violations[0].description


class Knows:
    """Lets everybody in as one tenant."""

    async def verify(self, authorization: str) -> Any:
        return CALLER


class Call:
    """A call whose message comes when the test lets it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reading = False
        self.arrives = asyncio.Event()

    def invocation_metadata(self) -> Any:
        return METADATA

    async def read(self) -> bytes:
        self.reading = True
        await self.arrives.wait()
        return self.data


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def receive(taking: Intake, call: Call) -> asyncio.Task[Any]:
    from forebay.router import bounds

    unread = UnreadMessage(call)  # type: ignore[arg-type]
    return asyncio.create_task(
        taking.receive(unread, call, router_pb2.ListModelsRequest, bounds.LIST_MODELS)  # type: ignore[arg-type]
    )


async def test_one_tenants_messages_are_read_a_few_at_a_time() -> None:
    taking = Intake(Knows(), max_waiting=100)  # type: ignore[arg-type]
    calls = [Call(b"") for _ in range(READS_OF_TENANT + 2)]
    tasks = [receive(taking, call) for call in calls]
    await settled()
    assert [call.reading for call in calls] == [True] * READS_OF_TENANT + [False] * 2
    calls[0].arrives.set()
    await settled()
    assert [call.reading for call in calls[READS_OF_TENANT:]] == [True, False]
    for call in calls:
        call.arrives.set()
    assert len(await asyncio.gather(*tasks)) == READS_OF_TENANT + 2


async def test_a_large_message_keeps_its_place_for_a_while_and_holds_its_sender_up_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    later: list[tuple[float, Any, tuple[Any, ...]]] = []
    loop = asyncio.get_running_loop()
    taking = Intake(Knows(), max_waiting=100)  # type: ignore[arg-type]
    monkeypatch.setattr(loop, "call_later", lambda *call: later.append((call[0], call[1], call[2:])))
    size = PACED_ABOVE_BYTES + PACED_BYTES_PER_S // 4
    calls = [Call(b"\xf8\x7f\x01" * (size // 3 + 1)) for _ in range(READS_OF_TENANT)]
    tasks = [receive(taking, call) for call in calls]
    for call in calls:
        call.arrives.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(end, MeshError) for end in ends), "refused at once, whatever its place does"
    small = Call(b"")
    waiting = receive(taking, small)
    await settled()
    assert not small.reading
    pauses = [(pause, act, arguments) for pause, act, arguments in later if act == taking._turns.give_back]
    assert [round(pause, 2) for pause, _, _ in pauses] == [0.25] * READS_OF_TENANT
    pauses[0][1](*pauses[0][2])
    small.arrives.set()
    await waiting


async def test_a_tenant_whose_calls_cost_it_nothing_waits_before_it_is_read() -> None:
    """Refused calls are such calls, too; and no more of them wait than may."""
    taking = Intake(Knows(), max_waiting=1)  # type: ignore[arg-type]
    for _ in range(BURST + 100 * int(PER_S)):
        with pytest.raises(MeshError), taking.free_if_refused(CALLER.tenant.tenant_id):
            raise MeshError(Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", "a limit is used up")
    call = Call(b"")
    waiting = receive(taking, call)
    await settled()
    assert not call.reading
    with pytest.raises(MeshError, match="wait on this router") as refused:
        await receive(taking, Call(b""))
    assert refused.value.reason == "TENANT_FULL"
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert not taking._paced


async def test_what_large_messages_leave_behind_is_given_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(intake, "TRIM_AFTER_S", 0)
    monkeypatch.setattr(intake, "trim", lambda: loop.call_soon_threadsafe(trimmed.set))
    taking = Intake(Knows(), max_waiting=100)  # type: ignore[arg-type]
    calls = [Call(bytes(intake.LARGE_BYTES)) for _ in range(2)]
    for call in calls:
        call.arrives.set()
    await asyncio.gather(*(receive(taking, call) for call in calls), return_exceptions=True)
    await soon(trimmed.wait())
    assert taking._trimming is None


class Watched(bytearray):
    """A message of which a weak reference can be made."""


async def test_a_refused_message_is_freed_without_the_garbage_collector(
    world: RouterWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages: list[weakref.ref[Watched]] = []
    read = UnreadMessage.read

    async def watched(self: UnreadMessage, reads: Any) -> Any:
        message = Watched(await read(self, reads))
        messages.append(weakref.ref(message))
        return message

    monkeypatch.setattr(UnreadMessage, "read", watched)
    await world.start()
    gc.disable()
    try:
        assert (await refusal(world, "Generate", label(9))).reason == "BAD_REQUEST"
        await settled()
        assert [message() for message in messages] == [None]
    finally:
        gc.enable()
