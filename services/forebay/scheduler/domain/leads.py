"""By how much flows are ahead of each other: what one leader tells the next, so that no change of leaders forgives anybody."""

import heapq
from collections import defaultdict
from collections.abc import Mapping

from forebay.scheduler.domain.pool import Pool
from forebay.scheduler.domain.pools import Pools
from forebay.scheduler.domain.takeover import Path

MAX_LEADS = 10_000
"""Nodes of which the next scheduler is told."""


class Leads:
    """The leads of all pools. Of one that has had no worker yet, they are what was inherited.

    Those are put into the tree when the first worker is there: who waits has come by then, in any order. Before, who comes first
    would have set the level for all others, however far ahead it is.
    """

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._inherited: defaultdict[tuple[str, str], dict[Path, int]] = defaultdict(dict)

    def all(self) -> dict[Path, int]:
        """Returns by how many steps of its counter each node is ahead of its neediest sibling; those at 0 are left out.

        Of more than MAX_LEADS those are left out first that nobody has come to yet, then tenants' keys before tenants and tenants
        before classes, and of these the least.
        """
        trees = {(pool.model, pool.name): pool.flows.leads() for pool in self._pools} | self._inherited
        leads = {(*pool, *path): steps for pool, found in trees.items() for path, steps in found.items()}
        if len(leads) > MAX_LEADS:
            leads = dict(heapq.nlargest(MAX_LEADS, leads.items(), key=self._weight))
        return leads

    def _weight(self, lead: tuple[Path, int]) -> tuple[bool, int, int]:
        (model, pool, *names), steps = lead
        return (model, pool) not in self._inherited, -len(names), steps

    def inherit(self, leads: Mapping[Path, int]) -> None:
        """Takes over what flows were ahead under the scheduler before."""
        for (model, name, *path), steps in leads.items():
            self._inherited[model, name][tuple(path)] = steps

    def bring(self, pool: Pool) -> None:
        """Puts a pool's flows ahead by what was inherited, as soon as there is a worker for them."""
        if self._inherited and (pool.lenders or any(worker.present for worker in pool.workers.values())):
            for path, steps in self._inherited.pop((pool.model, pool.name), {}).items():
                pool.flows.put_ahead(path, steps)
