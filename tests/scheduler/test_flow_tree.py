"""The tree of flows: counters, weights, the lift, and who is owed what."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.scheduler.domain import flow_tree
from forebay.scheduler.domain.flow import RESOLUTION, Flow
from forebay.scheduler.domain.flow_tree import FlowTree

Tree = FlowTree[str]


def leaf(tree: Tree, name: str, weight_milli: int = 1000, *, service_class: str = "silver") -> Flow[str]:
    """The only key of a tenant."""
    return tree.flow((service_class, 1000), (name, weight_milli), ("key", 1000))


def wait(tree: Tree, flow: Flow[str], item: str = "item") -> None:
    tree.enqueue(flow, item, (0.0, 1))


@settings(max_examples=60)
@given(st.integers(1, 50_000_000), st.lists(st.integers(-(10**6), 10**9), max_size=40))
def test_a_counter_is_service_by_weight_with_no_error_that_adds_up(weight_milli: int, charges: list[int]) -> None:
    tree: Tree = FlowTree()
    flow = leaf(tree, "acme", weight_milli)
    for tenths in charges:
        tree.charge(flow, tenths)
    assert flow.service_tenths == flow.tenant.service_tenths == tree.root.service_tenths == sum(charges)
    assert flow.tenant.counter == sum(charges) * 1000 * RESOLUTION // weight_milli
    assert flow.tenant.virtual_tenths == Fraction(sum(charges) * 1000, weight_milli).__floor__()


def test_the_neediest_flow_is_the_one_with_least_service_for_its_weight() -> None:
    tree: Tree = FlowTree()
    heavy, light = leaf(tree, "heavy", 3000), leaf(tree, "light")
    wait(tree, heavy)
    wait(tree, light)
    tree.charge(heavy, 299)
    tree.charge(light, 100)
    assert tree.neediest() is heavy
    tree.charge(heavy, 2)
    assert tree.neediest() is light


def test_a_class_comes_before_its_tenants_and_a_tenant_before_its_keys() -> None:
    tree: Tree = FlowTree()
    gold = leaf(tree, "gold-1", service_class="gold")
    silver = [leaf(tree, f"silver-{number}") for number in range(3)]
    for flow in (gold, *silver):
        wait(tree, flow)
    order = []
    for _ in range(6):
        flow = tree.neediest()
        assert flow is not None
        order.append(flow.path[0])
        tree.charge(flow, 100)
    # Three silver tenants together get what one gold tenant gets, the classes weighing the same here.
    assert order.count("gold") == order.count("silver") == 3
    other_key = tree.flow(("silver", 1000), ("silver-0", 1000), ("other", 1000))
    wait(tree, other_key)
    assert other_key.tenant is silver[0].tenant
    assert other_key.counter == silver[0].counter + 1


def test_a_flow_hands_out_the_item_that_must_start_first() -> None:
    tree: Tree = FlowTree()
    flow = leaf(tree, "acme")
    for item, place in (("second", (5.0, 1)), ("third", (5.0, 2)), ("first", (1.0, 3))):
        tree.enqueue(flow, item, place)
    order = []
    while flow.queue:
        order.append(flow.head)
        tree.dequeue(flow, flow.head)
    assert order == ["first", "second", "third"]


def test_who_begins_to_wait_is_lifted_to_just_above_the_smallest_waiting_counter() -> None:
    tree: Tree = FlowTree()
    low, high, late = (leaf(tree, name) for name in ("low", "high", "late"))
    wait(tree, low)
    wait(tree, high)
    tree.charge(low, 500)
    tree.charge(high, 900)
    wait(tree, late)
    assert late.tenant.counter == low.tenant.counter + 1


def test_a_class_that_begins_to_wait_is_lifted_too() -> None:
    tree: Tree = FlowTree()
    silver, gold = leaf(tree, "s"), leaf(tree, "g", service_class="gold")
    wait(tree, silver)
    tree.charge(silver, 500)
    wait(tree, gold)
    assert tree.root.children["gold"].counter == tree.root.children["silver"].counter + 1


def test_when_none_waits_the_last_to_leave_sets_the_level() -> None:
    tree: Tree = FlowTree()
    first, second = leaf(tree, "first"), leaf(tree, "second")
    wait(tree, first)
    tree.dequeue(first, "item")
    tree.charge(first, 700)
    wait(tree, second)
    assert second.tenant.counter == first.tenant.counter


def test_who_comes_while_the_neediest_is_passed_over_gets_none_of_its_credit() -> None:
    tree: Tree = FlowTree()
    passed, served, late = (leaf(tree, name) for name in ("passed", "served", "late"))
    wait(tree, passed)
    wait(tree, served)
    tree.charge(served, 900)
    tree.enqueue(served, "next", (0.0, 2))
    tree.set_aside(passed)
    tree.start(served, "item", 1, 100)
    tree.put_back(passed)
    wait(tree, late)
    assert late.tenant.virtual_tenths == 900
    assert tree.neediest() is passed


def test_the_lift_never_lowers_a_counter() -> None:
    tree: Tree = FlowTree()
    ahead, behind = leaf(tree, "ahead"), leaf(tree, "behind")
    tree.charge(ahead, 900)
    wait(tree, behind)
    wait(tree, ahead)
    assert ahead.tenant.virtual_tenths == 900


def test_a_parked_item_does_not_wait_until_it_is_unparked() -> None:
    tree: Tree = FlowTree()
    flow = leaf(tree, "acme")
    wait(tree, flow)
    tree.park(flow, "item", (0.0, 1))
    assert tree.neediest() is None
    assert flow.queued == 1
    tree.unpark()
    assert tree.neediest() is flow
    assert flow.head == "item"


def test_a_parked_item_that_is_taken_out_leaves_nothing_behind() -> None:
    tree: Tree = FlowTree()
    flow = leaf(tree, "acme")
    for item in ("one", "two"):
        tree.enqueue(flow, item, (0.0, 1))
        tree.park(flow, item, (0.0, 1))
    tree.dequeue(flow, "one")
    assert list(tree.parked) == [flow]
    tree.dequeue(flow, "two")
    assert not tree.parked


def test_a_flow_set_aside_is_not_chosen_and_not_lifted_when_put_back() -> None:
    tree: Tree = FlowTree()
    low, high = leaf(tree, "low"), leaf(tree, "high")
    wait(tree, low)
    wait(tree, high)
    tree.charge(high, 500)
    tree.set_aside(low)
    assert tree.neediest() is high
    tree.set_aside(high)
    assert tree.neediest() is None
    tree.put_back(high)
    tree.put_back(low)
    assert tree.neediest() is low
    assert low.tenant.counter == 0


def test_near_are_the_tenants_within_the_slack_neediest_first() -> None:
    tree: Tree = FlowTree()
    flows = [leaf(tree, f"t{number}") for number in range(5)]
    for number, flow in enumerate(flows):
        wait(tree, flow)
        tree.charge(flow, 100 * number)
    assert list(tree.near(8, 250)) == flows[:3]
    assert list(tree.near(2, 250)) == flows[:2]


def test_another_weight_counts_from_then_on() -> None:
    tree: Tree = FlowTree()
    flow = leaf(tree, "acme", 1000)
    tree.charge(flow, 100)
    tree.charge(leaf(tree, "acme", 2000), 100)
    assert flow.tenant.virtual_tenths == 150


def test_a_share_is_the_classes_times_the_weight_among_those_that_are_busy() -> None:
    tree: Tree = FlowTree()
    gold = tree.flow(("gold", 3000), ("g", 1000), ("key", 1000))
    ours = tree.flow(("silver", 1000), ("ours", 1000), ("key", 1000))
    theirs = tree.flow(("silver", 1000), ("theirs", 3000), ("key", 1000))
    wait(tree, ours)
    assert ours.share == 1.0
    wait(tree, theirs)
    assert (ours.share, theirs.share) == (0.25, 0.75)
    tree.begin(gold, 10)
    assert (gold.share, ours.share) == (0.75, 0.25 * 0.25)
    tree.dequeue(theirs, "item")
    assert ours.share == 0.25


def test_what_is_owed_follows_the_shares_while_a_flow_is_busy() -> None:
    tree: Tree = FlowTree()
    ours, theirs = leaf(tree, "ours", 1000), leaf(tree, "theirs", 3000)
    wait(tree, ours)
    tree.charge(ours, 100)
    wait(tree, theirs)
    tree.charge(ours, 400)
    assert (ours.owed_tenths(), theirs.owed_tenths()) == (200.0, 300.0)
    # Theirs leaves with all that it asked for, which was nothing: what it was owed beyond that is nobody's debt.
    tree.dequeue(theirs, "item")
    assert theirs.owed_tenths() == 0.0


def test_the_tag_orders_flows_of_all_classes_as_they_are_owed_service() -> None:
    tree: Tree = FlowTree()
    silver, ahead, gold = leaf(tree, "s"), leaf(tree, "s-ahead"), leaf(tree, "g", service_class="gold")
    for flow in (silver, ahead, gold):
        wait(tree, flow)
    tree.charge(ahead, 500)
    tree.charge(gold, 300)
    assert [flow.path[1] for flow in sorted((silver, ahead, gold), key=tree.tag)] == ["g", "s", "s-ahead"]
    assert tree.tag(ahead) == 1000


@pytest.mark.slow
@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(("gold", "silver")), st.integers(1, 4000)), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5000)), max_size=30),
)
def test_no_tag_is_smaller_than_that_of_the_flow_that_is_owed_most(
    tenants: list[tuple[str, int]], charges: list[tuple[int, int]]
) -> None:
    tree: Tree = FlowTree()
    flows = [leaf(tree, f"t{n}", weight, service_class=name) for n, (name, weight) in enumerate(tenants)]
    for flow in flows:
        wait(tree, flow)
    least = 0
    for number, tenths in charges:
        flow = flows[number % len(flows)]
        before = tree.tag(flow)
        tree.charge(flow, tenths)
        assert tree.tag(flow) >= before
        neediest = tree.neediest()
        assert neediest is not None
        # Over time, too: what is drawn later has no smaller tag.
        assert least <= tree.tag(neediest) == min(map(tree.tag, flows))
        least = tree.tag(neediest)


def test_of_many_idle_flows_the_longest_idle_is_forgotten_and_the_level_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_tree, "MAX_IDLE_FLOWS", 2)
    tree: Tree = FlowTree()
    running = leaf(tree, "running")
    tree.begin(running, 1)
    flows = {name: leaf(tree, name) for name in ("a", "b", "c")}
    assert leaf(tree, "running") is running
    assert leaf(tree, "c") is flows["c"]
    assert leaf(tree, "a") is not flows["a"]
    wait(tree, flows["c"])
    tree.charge(flows["c"], 50)
    tree.dequeue(flows["c"], "item")
    for name in ("d", "e", "f"):
        leaf(tree, name)
    late = leaf(tree, "late")
    wait(tree, late)
    assert late.tenant.virtual_tenths == 50
