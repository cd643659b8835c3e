"""Editions of the policies, and who is told."""

from __future__ import annotations

import pytest

from forebay.errors import Code, MeshError
from forebay.policy.model import KeyPolicy, ServiceClass, TenantPolicy
from forebay.quota.domain.policies import Change, Policies, difference
from forebay.quota.policies import MAX_WAITING, PolicyFeed
from forebay.testing.clock import FakeClock


def policies(*weights: int) -> Policies:
    tenants = {
        f"t{number}": TenantPolicy(f"t{number}", "basic", ServiceClass.BRONZE, weight)
        for number, weight in enumerate(weights)
    }
    return Policies(tenants, {f"k{name}": KeyPolicy(f"k{name}", name, b"") for name in tenants})


def test_the_difference_holds_what_changed_only() -> None:
    old, new = policies(1, 2, 3), policies(1, 5)
    assert difference(old, new) == Change((new.tenants["t1"],), (), ("t2",), ("kt2",))
    assert difference(old, old) == Change((), (), (), ())


async def test_watchers_are_told_of_each_change_from_where_they_began(clock: FakeClock) -> None:
    feed = PolicyFeed(policies(1), clock)
    with feed.watch() as watch:
        assert watch.first.policies == policies(1)
        feed.publish(policies(1))
        feed.publish(policies(2))
        feed.publish(policies(2, 3))
        first, second = await watch.next(), await watch.next()
    assert [len(first.change.tenants), len(second.change.keys)] == [1, 1]
    assert watch.first.version < first.version < second.version == feed.edition.version
    feed.publish(policies(9))  # nobody listens any more


async def test_versions_of_a_later_process_are_later(clock: FakeClock) -> None:
    first = PolicyFeed(policies(1), clock).edition.version
    clock.advance(0.001)
    assert PolicyFeed(policies(1), clock).edition.version > first


async def test_a_watcher_that_falls_behind_has_to_begin_again(clock: FakeClock) -> None:
    feed = PolicyFeed(policies(1), clock)
    with feed.watch() as watch:
        for weight in range(2, MAX_WAITING + 3):
            feed.publish(policies(weight))
        with pytest.raises(MeshError) as caught:
            await watch.next()
    assert caught.value.code is Code.ABORTED
