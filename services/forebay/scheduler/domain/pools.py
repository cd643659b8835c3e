"""The pools that there are: which lends to which, and in which order they are drawn from.

A pool is there while it has workers, or something of it waits or runs. One whose rules say so lends its idle workers to the
shared pool of its model.
"""

from collections.abc import Iterable, Iterator

from forebay.scheduler.domain.limits import Limits
from forebay.scheduler.domain.pool import Pool

SHARED = ""
"""The name of a model's shared pool."""


class Pools:
    """Every pool, by model and name."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lending = sorted(name for name, rules in limits.pools.items() if rules.lends and name != SHARED)
        self._pools: dict[tuple[str, str], Pool] = {}

    def __iter__(self) -> Iterator[Pool]:
        """Yields the pools in order of name and model."""
        return iter(sorted(self._pools.values(), key=lambda pool: (pool.name, pool.model)))

    def get(self, model: str, name: str) -> Pool | None:
        """Returns a pool that is there."""
        return self._pools.get((model, name))

    def open(self, model: str, name: str) -> Pool:
        """Returns a pool, making it on first sight."""
        pool = self._pools.get((model, name))
        if pool is None:
            pool = self._pools[model, name] = Pool(model, name, self._limits.pools.get(name, self._limits.pool))
            self._lend(model)
        return pool

    def close(self, pool: Pool) -> None:
        """Forgets a pool that nobody would miss."""
        del self._pools[pool.model, pool.name]
        self._lend(pool.model)

    def ordered(self, changed: Iterable[Pool]) -> list[Pool]:
        """Returns the pools to draw from: lenders before the one that borrows, and that one whenever a lender has changed."""
        pools = dict.fromkeys(changed)
        if not self._lending:
            return list(pools)
        for pool in list(pools):
            if pool.rules.lends and (borrower := self.get(pool.model, SHARED)) is not None:
                pools[borrower] = None
        return sorted(pools, key=lambda pool: bool(pool.lenders))

    def _lend(self, model: str) -> None:
        if (shared := self.get(model, SHARED)) is not None:
            shared.lenders = [pool for name in self._lending if (pool := self.get(model, name)) is not None]
