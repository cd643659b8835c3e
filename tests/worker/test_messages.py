"""What crosses the wire means the same on both sides."""

from __future__ import annotations

import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.metering.v1 import metering_pb2
from forebay.api.worker.v1 import worker_pb2
from forebay.errors import MeshError
from forebay.rpc.session import Outbox
from forebay.worker.domain.usage import Attribution, Outcome, Place, Trace, UsageEvent
from forebay.worker.engine import Output
from forebay.worker.metering_link import to_pb_event
from forebay.worker.servicer import ExecuteStream
from forebay.worker.start_message import from_pb_start

from .doubles import attempt_id, event
from .peers import payload

WORKER = common_pb2.Peer(id="worker-1", incarnation=7)


def test_unset_sampling_takes_the_contracts_defaults() -> None:
    message = payload(WORKER, 1)
    message.sampling.ClearField("temperature")
    sampling = from_pb_start(message).sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (0.0, 0.0, 1.0)


def test_a_set_zero_is_a_zero() -> None:
    message = payload(WORKER, 1)
    message.sampling.temperature = 0.0
    assert from_pb_start(message).sampling.temperature == 0.0


def test_an_unset_expiry_is_the_contracts_and_a_set_one_counts() -> None:
    message = payload(WORKER, 1)
    assert from_pb_start(message).grant.expires_in == 2.0
    message.grant.expires_in.FromMilliseconds(0)
    assert from_pb_start(message).grant.expires_in == 0.0


def test_every_wrong_field_is_named() -> None:
    message = payload(WORKER, 1, attempt=1_001)
    message.sampling.n = 2
    message.attribution.model = ""
    with pytest.raises(MeshError) as error:
        from_pb_start(message)
    assert [violation.field for violation in error.value.field_violations] == [
        "grant.ref.attempt",
        "attribution.model",
        "sampling.n",
    ]


def test_an_event_keeps_every_nanosecond_and_its_trace() -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    attribution = Attribution("acme", "key", "basic", True, "bronze", "tiny", 0.5, "mine", {"team": "a"})
    used = UsageEvent(
        id=attempt_id(1, 2),
        attribution=attribution,
        place=Place("worker-1", 6, "gold"),
        adapter="",
        prompt_tokens=10,
        cached_tokens=4,
        completion_from=3,
        completion_to=5,
        recomputed_tokens=9,
        gpu_time_ns=3_000_000_001,
        recomputed_gpu_time_ns=2_000_000_001,
        time_to_first_token=None,
        started_at=1_700_000_000.25,
        finished_at=1_700_000_001.5,
        outcome=Outcome.HANDED_OVER,
        trace=Trace(traceparent),
    )
    message = to_pb_event(used)
    assert message.gpu_time.ToNanoseconds() == 3_000_000_001
    assert message.recomputed_gpu_time.ToNanoseconds() == 2_000_000_001
    assert not message.HasField("time_to_first_token")
    assert message.started_at.ToMilliseconds() == 1_700_000_000_250
    assert (message.outcome, message.source) == (metering_pb2.OUTCOME_HANDED_OVER, metering_pb2.EVENT_SOURCE_WORKER)
    assert (message.trace_id, message.trace.traceparent) == (traceparent[3:35], traceparent)
    assert (message.priced_by_plan, dict(message.labels)) == (True, {"team": "a"})
    assert message.queue_time.ToMilliseconds() == 500
    assert (message.worker.id, message.worker.incarnation, message.pool) == ("worker-1", 6, "gold")


def test_what_a_crash_left_is_reported_as_recovered() -> None:
    message = to_pb_event(event(1))
    assert (message.outcome, message.source) == (
        metering_pb2.OUTCOME_LOST,
        metering_pb2.EVENT_SOURCE_WORKER_RECOVERY,
    )
    assert message.worker.incarnation == 7


async def test_what_a_router_does_not_take_is_bounded_and_disturbs_nobody() -> None:
    async def write(message: worker_pb2.ExecuteResponse) -> None: ...

    outbox = Outbox(worker_pb2.ExecuteResponse, write, limit=2)
    stream = ExecuteStream(outbox)
    for n in range(4):
        stream.output(1, Output("a/1", [n], "x", "", n + 1, 0), None)
        stream.flush(n)
    with pytest.raises(MeshError, match="SESSION_OVERFLOW"):
        await outbox.run()


async def test_a_flush_of_nothing_sends_nothing() -> None:
    sent: list[worker_pb2.ExecuteResponse] = []

    async def write(message: worker_pb2.ExecuteResponse) -> None:
        sent.append(message)

    outbox = Outbox(worker_pb2.ExecuteResponse, write, limit=2)
    ExecuteStream(outbox).flush(1)
    outbox.close()
    await outbox.run()
    assert not sent
