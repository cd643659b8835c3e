"""Keys: who is let in, and what everyone else is told."""

from __future__ import annotations

from dataclasses import replace

import grpc
import pytest

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.errors import Code, MeshError
from forebay.policy.messages import to_pb_key, to_pb_tenant
from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.policy.watcher import PolicyWatcher
from forebay.router.access import Access
from forebay.testing.clock import FakeClock

from .samples import ACME, ACME_KEY, CALLER, KEY, PEPPER


class Door:
    """Access with policies that are put in by hand."""

    def __init__(self, clock: FakeClock, tenant: TenantPolicy = ACME, key: KeyPolicy = ACME_KEY) -> None:
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        self.policies = PolicyWatcher(channel, common_pb2.Peer(id="router-1"), quota_pb2.WATCHER_KIND_ROUTER, clock)
        self.access = Access(self.policies, PEPPER, clock, first_policies_s=0.01, honour_cut_off_s=30)
        self.snapshot = quota_pb2.WatchPoliciesResponse(
            version=1, snapshot_begin=True, snapshot_end=True, tenants=[to_pb_tenant(tenant)], keys=[to_pb_key(key)]
        )

    def hear(self) -> None:
        """Hears of the policies."""
        self.policies._received(self.snapshot)

    def lose(self) -> None:
        """Loses the connection to quota."""
        self.policies._ended()

    async def refusal(self, authorization: str = f"Bearer {KEY}") -> MeshError:
        with pytest.raises(MeshError) as caught:
            await self.access.verify(authorization)
        return caught.value


async def test_a_genuine_key_names_its_tenant(clock: FakeClock) -> None:
    door = Door(clock)
    door.hear()
    assert await door.access.verify(f"Bearer {KEY}") == CALLER
    assert await door.access.verify(KEY) == CALLER


async def test_every_key_that_is_not_valid_is_told_the_same(clock: FakeClock) -> None:
    messages = set()
    for key, presented in (
        (ACME_KEY, ""),
        (ACME_KEY, "Bearer nonsense"),
        (ACME_KEY, f"Bearer {KEY[:-1]}y"),
        (ACME_KEY, f"Bearer {KEY.replace('abcdef', 'bcdefg')}"),
        (replace(ACME_KEY, revoked=True), f"Bearer {KEY}"),
        (replace(ACME_KEY, expires_at=clock.now()), f"Bearer {KEY}"),
        (replace(ACME_KEY, tenant_id="gone"), f"Bearer {KEY}"),
    ):
        door = Door(clock, key=key)
        door.hear()
        error = await door.refusal(presented)
        assert error.code is Code.UNAUTHENTICATED
        messages.add(str(error))
    assert len(messages) == 1


async def test_a_key_is_good_until_it_expires(clock: FakeClock) -> None:
    door = Door(clock, key=replace(ACME_KEY, expires_at=clock.now() + 10))
    door.hear()
    clock.advance(9)
    await door.access.verify(KEY)
    clock.advance(1)
    assert (await door.refusal()).code is Code.UNAUTHENTICATED


async def test_a_suspended_tenant_is_refused(clock: FakeClock) -> None:
    door = Door(clock, replace(ACME, suspended=True))
    door.hear()
    error = await door.refusal()
    assert (error.code, error.reason) == (Code.PERMISSION_DENIED, "TENANT_SUSPENDED")


async def test_a_router_that_knows_nobody_yet_says_so(clock: FakeClock) -> None:
    error = await Door(clock).refusal()
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "POLICIES_STALE")


async def test_a_router_that_is_cut_off_honours_its_policies_for_a_while(clock: FakeClock) -> None:
    door = Door(clock)
    door.hear()
    clock.advance(1000)
    await door.access.verify(KEY)
    door.lose()
    clock.advance(30)
    await door.access.verify(KEY)
    clock.advance(0.1)
    error = await door.refusal()
    assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "POLICIES_STALE", 1)
    door.hear()
    await door.access.verify(KEY)


@pytest.mark.parametrize(
    ("tenant", "key", "reason"),
    [
        (ACME, ACME_KEY, None),
        (ACME, replace(ACME_KEY, expires_at=1.0), None),
        (replace(ACME, plan="basic"), ACME_KEY, None),
        (replace(ACME, suspended=True), ACME_KEY, "TENANT_SUSPENDED"),
        (ACME, replace(ACME_KEY, revoked=True), "KEY_REVOKED"),
        (ACME, replace(ACME_KEY, key_id="zzzzzzzzzzzz"), "KEY_REVOKED"),
        (replace(ACME, tenant_id="other"), ACME_KEY, "KEY_REVOKED"),
        (ACME, replace(ACME_KEY, hash=bytes(32)), "KEY_REVOKED"),
    ],
)
async def test_who_was_let_in_may_go_on_until_tenant_or_key_lose_their_leave(
    clock: FakeClock, tenant: TenantPolicy, key: KeyPolicy, reason: str | None
) -> None:
    door = Door(clock, tenant, key)
    door.hear()
    objection = door.access.objection(CALLER)
    assert (objection and objection.reason) == reason
    assert objection is None or objection.code is Code.PERMISSION_DENIED


@pytest.mark.parametrize(
    "authorization",
    ["Bearer {}", "bearer {}", "BEARER {}", "bEaReR    {}", "  Bearer {}  ", "Bearer\t{}", "{}", " {} "],
)
async def test_the_scheme_of_a_key_is_read_in_any_case(clock: FakeClock, authorization: str) -> None:
    door = Door(clock)
    door.hear()
    assert await door.access.verify(authorization.format(KEY)) == CALLER


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        " ",
        "Bearer",
        "Bearer ",
        "Basic {}",
        "Bearer Bearer {}",
        "Bearer{}",
        "Bearer {} x",
        "{} x",
        "Bearer {},{}",
        "Token: {}",
    ],
)
async def test_anything_else_is_refused_with_what_to_send(clock: FakeClock, authorization: str) -> None:
    door = Door(clock)
    door.hear()
    error = await door.refusal(authorization.format(KEY, KEY))
    assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "UNKNOWN_KEY")
    assert "authorization: Bearer fb_" in error.message
