"""What a router admits by itself while its wall clock steps, and after a life whose clock was wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.errors import MeshError
from forebay.journal import Journal
from forebay.router.domain.local_share import WINDOW_S
from forebay.router.local_admission import LocalAdmission
from forebay.rpc.status import to_pb_duration
from forebay.testing.clock import FakeClock


class Stepped(FakeClock):
    """A clock whose wall time is set ahead or back by hand."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.fixture
def clock() -> Stepped:
    return Stepped()


def life(journal: Journal, clock: Stepped, incarnation: int = 1) -> LocalAdmission:
    """Returns a router's life, which may admit one request of acme in any minute."""
    local = LocalAdmission(journal, common_pb2.Peer(id="router-1", incarnation=incarnation), clock)
    share = quota_pb2.LocalShare(number=1, parts=1, holds_for=to_pb_duration(3_600))
    share.allowances.add(tenant_id="acme").limits.add(subject="tenant:acme", limit="requests_per_minute", value=1)
    local.hello()
    local.take_up(share)
    return local


async def admits(local: LocalAdmission, number: int) -> bool:
    request = quota_pb2.ReserveRequest(request_id=f"{number:032x}", tenant_id="acme", prompt_tokens=1)
    try:
        await local.admit(request)
    except MeshError:
        return False
    return True


@pytest.mark.parametrize("ahead", [600.0, -600.0, 400 * 86_400.0])
async def test_a_step_admits_nobody_and_holds_nobody_up(clock: Stepped, tmp_path: Path, ahead: float) -> None:
    journal = Journal(tmp_path / "journal")
    local = life(journal, clock)
    assert await admits(local, 1)
    for clock.ahead in (ahead, 0.0):
        assert not await admits(local, 2)
    clock.advance(WINDOW_S)
    assert await admits(local, 3)
    await journal.close()


async def test_a_life_whose_clock_was_ahead_holds_up_the_next_for_a_minute_only(clock: Stepped, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    clock.ahead = 600.0
    local = life(journal, clock)
    assert await admits(local, 1)
    local.charged(f"{1:032x}")
    await journal.close()
    clock.ahead = 0.0
    journal = Journal(tmp_path / "journal")
    local = life(journal, clock, 2)
    assert not await admits(local, 2)
    clock.advance(WINDOW_S)
    local.tidy()
    assert await admits(local, 3)
    await journal.close()
