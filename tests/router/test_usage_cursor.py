"""What a tenant sees of its place in the ledger of all tenants: nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.api.metering.v1 import metering_pb2
from forebay.errors import Code, MeshError
from forebay.router.usage_cursor import UsageCursors
from forebay.router.usage_servicer import to_tenant

PEPPER = b"0123456789abcdef"
CURSORS = UsageCursors(PEPPER)
LAST = f"v1:{2**63 - 1}"

# What a tenant is shown of a row and of its event; a new field is put here once somebody has thought of what it tells.
SHOWN = {
    "event",
    "lines",
    "cost_nano_usd",
    "recorded_at",
    "billed_completion_tokens",
    "billed_prompt_tokens",
    "correction",
}
HIDDEN = {"position", "corrects", "chain_hash"}
SHOWN_OF_EVENT = {
    "request_id", "attempt", "source", "tenant_id", "key_id", "plan", "priced_by_plan", "service_class", "model", "adapter",
    "pool", "prompt_tokens", "cached_tokens", "completion_from", "completion_to", "recomputed_tokens", "gpu_time",
    "recomputed_gpu_time", "queue_time", "time_to_first_token", "started_at", "finished_at", "outcome", "trace_id",
    "client_request_id", "labels",
}  # fmt: skip


def refusal(cursor: str, tenant_id: str = "acme") -> MeshError:
    with pytest.raises(MeshError) as caught:
        CURSORS.open(tenant_id, cursor)
    return caught.value


@given(st.integers(0, 2**63 - 1))
def test_a_cursor_comes_back_on_any_router_and_after_a_restart(position: int) -> None:
    sealed = CURSORS.seal("acme", f"v1:{position}")
    assert UsageCursors(PEPPER).open("acme", sealed) == f"v1:{position}"


def test_a_cursor_says_nothing() -> None:
    sealed = [CURSORS.seal("acme", cursor) for cursor in ("v1:0", "v1:0", "v1:1", LAST)]
    assert len(set(sealed)) == 4  # no two are alike, so that nobody can see whether the ledger has grown
    assert {len(cursor) for cursor in sealed} == {89}
    assert [CURSORS.seal("acme", ""), CURSORS.open("acme", ""), CURSORS.open("acme", "now")] == ["", "", "now"]


@pytest.mark.parametrize(
    "cursor", ["v1:1", "v1:0", "0", "u1.", "NOW", "u1." + "A" * 86, "u1." + "é" * 86, "x" * 10_000, "now "]
)
def test_a_cursor_that_no_router_has_sent_is_refused(cursor: str) -> None:
    error = refusal(cursor)
    assert (error.code, error.reason, error.field_violations[0].field) == (
        Code.INVALID_ARGUMENT, "BAD_CURSOR", "cursor",
    )  # fmt: skip


def test_a_cursor_is_one_tenants_and_cannot_be_changed() -> None:
    sealed = CURSORS.seal("acme", "v1:7")
    assert refusal(sealed, "globex").reason == "BAD_CURSOR"
    assert refusal(UsageCursors(b"another pepper, 16+").seal("acme", "v1:7")).reason == "BAD_CURSOR"
    for at in range(3, len(sealed)):
        other = "B" if sealed[at] == "A" else "A"
        if at == len(sealed) - 1:
            other = chr(ord(sealed[at]) + 1) if sealed[at].isalpha() and sealed[at] not in "zZ" else "A"
        assert refusal(sealed[:at] + other + sealed[at + 1 :]).reason == "BAD_CURSOR", at


def test_a_row_tells_its_tenant_of_no_other_and_of_no_worker() -> None:
    entry = metering_pb2.LedgerEntry(position=9, corrects=4, chain_hash=b"h" * 32, cost_nano_usd=5)
    entry.event.tenant_id = "acme"
    entry.event.worker.id = "worker-1"
    shown = to_tenant(entry)
    assert {field.name for field, _ in shown.ListFields()} == {"event", "cost_nano_usd", "correction"}
    assert {field.name for field, _ in shown.event.ListFields()} == {"tenant_id"}
    assert (shown.correction, to_tenant(metering_pb2.LedgerEntry(position=9)).correction) == (True, False)
    assert (entry.position, entry.event.worker.id) == (9, "worker-1")


def test_every_field_of_a_row_was_thought_of() -> None:
    assert {field.name for field in metering_pb2.LedgerEntry.DESCRIPTOR.fields} == SHOWN | HIDDEN
    assert {field.name for field in metering_pb2.UsageEvent.DESCRIPTOR.fields} == SHOWN_OF_EVENT | {"worker", "trace"}
