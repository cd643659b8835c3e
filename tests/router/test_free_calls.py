"""Calls that cost a tenant nothing are paced, for that tenant alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.router.domain.free_calls import BURST, MAX_WAIT_S, PER_S, FreeCalls


@given(st.lists(st.floats(0, 0.05), min_size=1, max_size=400))
def test_a_tenant_has_a_burst_and_then_its_pace(pauses: list[float]) -> None:
    """Callers that come when they may have no more than the burst and the pace in any time from the beginning."""
    calls, now = FreeCalls(), 0.0
    for count, pause in enumerate(pauses, 1):
        now += pause + calls.wait_s("acme", now)
        calls.note("acme", now)
        assert count <= BURST + 1 + now * PER_S + 1e-6


def test_other_tenants_do_not_wait() -> None:
    calls = FreeCalls()
    for _ in range(10 * BURST):
        calls.note("acme", 5.0)
    assert calls.wait_s("acme", 5.0) == pytest.approx(9.0)
    assert calls.wait_s("globex", 5.0) == 0.0
    assert calls.wait_s("acme", 14.1) == 0.0


def test_no_call_waits_for_ever_and_idle_tenants_are_forgotten() -> None:
    calls = FreeCalls()
    for number in range(3 * BURST):
        calls.note(f"tenant-{number}", number * 1.0)
    assert len(calls._arrives) <= BURST
    for _ in range(100 * BURST):
        calls.note("acme", 0.0)
    assert calls.wait_s("acme", 0.0) == MAX_WAIT_S
