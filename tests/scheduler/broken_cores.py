"""Cores that are broken on purpose, each in one way: what law 4's test must find.

Each is what to put in place of which attribute of which module.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from forebay.scheduler.domain import pool, promises
from forebay.scheduler.domain.flow import Flow, Node
from forebay.scheduler.domain.flow_tree import FlowTree, Step
from forebay.scheduler.domain.request import Queued

Tree = FlowTree[Queued]


class RoundRobin(Tree):
    """A turn is a turn, however many tokens it costs."""

    def start(self, flow: Flow[Queued], item: Queued, kv_tokens: int, tenths: int) -> None:
        super().start(flow, item, kv_tokens, 1)

    def charge(self, flow: Flow[Queued], tenths: int) -> None: ...


class NoLift(Tree):
    """Idle time is credit."""

    def _join(self, node: Node[Queued], *, lift: bool) -> None:
        super()._join(node, lift=False)


class NoWeights(Tree):
    """Everybody weighs the same."""

    def flow(self, *steps: Step) -> Flow[Queued]:
        return super().flow(*((name, 1000) for name, _ in steps))


class LiftToMaximum(Tree):
    """Who comes stands behind all others."""

    def _join(self, node: Node[Queued], *, lift: bool) -> None:
        below = node
        while lift and (parent := below.parent) is not None and below not in parent.waiting:
            below.counter = max(sibling.counter for sibling in parent.children.values())
            below = parent
        super()._join(node, lift=False)


BROKEN_CORES: dict[str, tuple[ModuleType, str, Any]] = {
    "round robin": (pool, "FlowTree", RoundRobin),
    "no lift": (pool, "FlowTree", NoLift),
    "weights ignored": (pool, "FlowTree", NoWeights),
    "input only": (promises, "OUTPUT_TENTHS", 0),
    "lift to the maximum": (pool, "FlowTree", LiftToMaximum),
}
