"""What is an event, and which of two reports to believe."""

from __future__ import annotations

from typing import Any

import pytest

from forebay.errors import Code, MeshError
from forebay.metering.domain.entry import read_event, write_event
from forebay.metering.domain.event import MAX_TOKENS, NANO, Source, better, check

from .samples import usage_event


def test_a_plausible_event_passes() -> None:
    check(usage_event())
    check(usage_event(source=Source.ROUTER, worker_id="", started_at_ns=None, time_to_first_token_ns=None))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("request_id", {"request_id": "A" * 32}),
        ("attempt", {"attempt": 0}),
        ("tenant_id", {"tenant_id": ""}),
        ("tenant_id", {"tenant_id": "Acme!"}),
        ("model", {"model": ""}),
        ("plan", {"plan": "p" * 257}),
        ("worker.id", {"worker_id": ""}),
        ("prompt_tokens", {"prompt_tokens": MAX_TOKENS + 1}),
        ("cached_tokens", {"cached_tokens": 101}),
        ("completion_to", {"completion_from": 21}),
        ("gpu_time", {"gpu_time_ns": 10**7 * NANO}),
        ("recomputed_gpu_time", {"recomputed_gpu_time_ns": 50_000_001}),
        ("time_to_first_token", {"time_to_first_token_ns": 10**7 * NANO}),
        ("started_at", {"started_at_ns": -1}),
        ("finished_at", {"finished_at_ns": 0}),
        ("finished_at", {"finished_at_ns": 2**63}),
        ("trace_id", {"trace_id": "abc"}),
        ("labels", {"labels": {str(n): "" for n in range(17)}}),
        ("labels", {"labels": {"team": "é" * 65}}),
    ],
)
def test_what_can_never_be_recorded_is_named(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(MeshError) as caught:
        check(usage_event(**changes))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert [violation.field for violation in caught.value.field_violations] == [field]


def test_all_violations_are_named_at_once() -> None:
    with pytest.raises(MeshError) as caught:
        check(usage_event(attempt=0, tenant_id="", finished_at_ns=0))
    assert {violation.field for violation in caught.value.field_violations} == {"attempt", "tenant_id", "finished_at"}


def test_the_better_source_wins_in_either_order() -> None:
    worker = usage_event(source=Source.WORKER, completion_to=20)
    recovery = usage_event(source=Source.WORKER_RECOVERY, completion_to=30)
    router = usage_event(source=Source.ROUTER, completion_to=25)
    for other in (recovery, router):
        assert better(worker, other) == worker
        assert better(other, worker) == worker


def test_a_checkpoint_rises_to_what_the_router_delivered() -> None:
    recovery = usage_event(source=Source.WORKER_RECOVERY, completion_to=20, gpu_time_ns=5)
    router = usage_event(source=Source.ROUTER, completion_to=25, gpu_time_ns=0)
    for believed in (better(recovery, router), better(router, recovery)):
        assert (believed.source, believed.completion_to, believed.gpu_time_ns) == (Source.WORKER_RECOVERY, 25, 5)


def test_the_written_form_gives_the_event_back() -> None:
    event = usage_event(labels={"b": "2", "a": "ü"}, started_at_ns=None)
    assert read_event(write_event(event)) == event
    assert write_event(event) == write_event(usage_event(labels={"a": "ü", "b": "2"}, started_at_ns=None))
