"""Wherever, however often and in whatever way workers are lost, the client sees one stream, and each position is billed once."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2
from forebay.api.worker.v1 import worker_pb2
from forebay.errors import Code, MeshError
from forebay.router import metering_link

from .conftest import RouterWorld, StreamCall
from .peers import FakeWorker, soon

ANSWER_TOKENS = 16


class Loss(enum.Enum):
    """How an attempt ends that is not the last."""

    BROKEN = enum.auto()
    HANDED_OVER = enum.auto()
    REFUSED = enum.auto()


@dataclass(frozen=True)
class Lost:
    """An attempt that is lost after deltas of these sizes; a refused one yields nothing."""

    loss: Loss
    deltas: list[int]


class Model:
    """A model whose next token is a function of all before; the text of odd tokens is held back until the next."""

    def __init__(self, start: worker_pb2.Start) -> None:
        self.tokens = list(start.continuation.token_ids)
        self.held = start.continuation.held_text
        self._prompt = sum(start.prompt_token_ids)

    def step(self, count: int) -> tuple[list[int], str]:
        """Yields up to `count` tokens and the text to deliver now."""
        new, text = [], ""
        while len(new) < count and len(self.tokens) < ANSWER_TOKENS:
            token = (self._prompt + 31 * sum(self.tokens) + len(self.tokens)) % 997
            self.tokens.append(token)
            new.append(token)
            text, self.held = text + self.held, f"<{token}>"
            if token % 2 == 0:
                text, self.held = text + self.held, ""
        return new, text


class Client:
    """Reads a stream and checks that it has no gap and no repeat."""

    def __init__(self, call: StreamCall) -> None:
        self.call = call
        self.tokens: list[int] = []
        self.text = ""

    async def read_until(self, tokens: int) -> None:
        while len(self.tokens) < tokens:
            await self.read()

    async def read(self) -> common_pb2.TokenUsage | None:
        """Returns the usage when the answer is complete."""
        event = await soon(self.call.read())
        if event.HasField("finished"):
            return event.finished.usage
        assert event.delta.position == len(self.tokens)
        self.tokens += event.delta.token_ids
        self.text += event.delta.text
        return None


def by_id(world: RouterWorld) -> dict[str, FakeWorker]:
    return {worker.id: worker for worker in (world.worker, world.other)}


async def next_start(
    world: RouterWorld, request_id: str
) -> tuple[FakeWorker, worker_pb2.Start, scheduler_pb2.Submission]:
    submission = await soon(world.scheduler.submissions.get())
    assert submission.ref.request_id == request_id
    worker = next(w for w in by_id(world).values() if w.id not in submission.excluded_workers)
    return worker, await soon(worker.starts.get()), submission


def whole_answer(start: worker_pb2.Start) -> tuple[list[int], str]:
    model = Model(worker_pb2.Start(prompt_token_ids=start.prompt_token_ids))
    tokens, text = model.step(ANSWER_TOKENS)
    return tokens, text + model.held


LOST = st.builds(Lost, st.sampled_from(Loss), st.lists(st.integers(1, 5), max_size=4))


@pytest.fixture(autouse=True)
def reports_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering_link, "GATHER_S", 0.005)


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(losses=st.lists(LOST, max_size=5), last=st.lists(st.integers(1, 6), min_size=1, max_size=8))
async def test_the_client_sees_one_stream_and_each_position_is_billed_once(
    world: RouterWorld, losses: list[Lost], last: list[int]
) -> None:
    if not hasattr(world, "client"):
        await world.start()
    call = world.stream(sampling=common_pb2.Sampling(max_tokens=ANSWER_TOKENS + 8))
    first = (await soon(call.read())).started
    client, expected = Client(call), []
    received = 0
    ran = False
    model, worker, start = None, None, None

    for lost in [*losses, None]:
        worker, start, submission = await next_start(world, first.request_id)
        assert start.HasField("continuation") == ran
        assert start.continuation.completion_from == len(start.continuation.token_ids) == received
        assert submission.delivered_tokens == received
        assert submission.prompt_tokens == len(start.prompt_token_ids) + received
        model = Model(start)
        attempt = start.grant.ref.attempt
        if lost is None:
            break
        if lost.loss is Loss.REFUSED:
            worker.refuse(start.ref, MeshError(Code.ABORTED, "STALE_GRANT", "too late"))
            continue
        began, ran = received, True
        for size in lost.deltas:
            yield_some(worker, start, model, size)
        received = len(model.tokens)
        await client.read_until(received)
        if lost.loss is Loss.BROKEN:
            worker.break_off()
        else:
            worker.hand_over(start.ref)
        outcome = metering_pb2.OUTCOME_LOST if lost.loss is Loss.BROKEN else metering_pb2.OUTCOME_HANDED_OVER
        expected.append((attempt, outcome, began, received))

    assert model is not None
    assert worker is not None
    assert start is not None
    for size in [*last, ANSWER_TOKENS]:
        yield_some(worker, start, model, size)
    # As the contract says: what was held is text at the end.
    assert worker.outbox is not None
    if model.held:
        worker.say(start.ref, ANSWER_TOKENS, [], model.held)
    worker.finish(start, ANSWER_TOKENS)
    expected.append((start.grant.ref.attempt, metering_pb2.OUTCOME_COMPLETED, received, ANSWER_TOKENS))
    while (usage := await client.read()) is None:
        pass

    assert (client.tokens, client.text) == whole_answer(start)
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(start.prompt_token_ids), ANSWER_TOKENS)
    assert settled(await soon(world.quota.settles.get())) == (True, len(start.prompt_token_ids), ANSWER_TOKENS)
    events = [await soon(world.metering.events.get()) for _ in expected]
    assert {event.request_id for event in events} == {first.request_id}
    assert [(e.attempt, e.outcome, e.completion_from, e.completion_to) for e in events] == expected
    assert {(e.source, e.tenant_id, e.prompt_tokens) for e in events} == {
        (metering_pb2.EVENT_SOURCE_ROUTER, "acme", len(start.prompt_token_ids))
    }
    assert world.metering.events.empty(), "each attempt is reported once"


def yield_some(worker: FakeWorker, start: worker_pb2.Start, model: Model, count: int) -> None:
    position = len(model.tokens)
    tokens, text = model.step(count)
    if tokens:
        worker.say(start.ref, position, tokens, text, held=model.held)


def settled(settle: quota_pb2.SettleRequest) -> tuple[bool, int, int]:
    return settle.started, settle.prompt_tokens, settle.completion_tokens
