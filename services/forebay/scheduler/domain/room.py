"""How much of a worker may be spoken for: the rules that keep its engine full and never make it preempt.

A request may go to a worker if the number of its requests, the prompt tokens that it has still to compute, and the future peak
of its KV cache (peak.py) stay within bounds. The bound of the peak is a part, alpha, of the cache, because lengths are only
expected. It is 1 for a tenant that holds little: what that one adds is small, and it is the one that is kept waiting by others.
Each preemption that the engine reports lowers alpha by a step, and time brings it back: additive both ways,
so that a wrong length model costs throughput for a while and not preemptions for ever.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoomRules:
    """The bounds.

    Attributes:
        alpha: the part of the KV cache that the future peak may take.
        favoured_alpha: the same for a tenant that holds less than `favoured_below` of its share of the pool's KV cache.
        lowest_alpha, preemption_cost, recovery_per_s: how alpha follows preemptions.
        prefill_steps: how many steps' worth of prompt tokens may wait for their prefill on one worker.
        tenant_kv_share: the most of a pool's KV cache that a tenant may take while others wait; 0 for no bound.
        tenant_in_flight: the most requests in flight that a tenant may have in a pool while others wait; 0 for no bound.
        lent_share: the most of a worker's KV cache that requests of another pool may take.
    """

    alpha: float = 0.97
    favoured_alpha: float = 1.0
    favoured_below: float = 0.5
    lowest_alpha: float = 0.5
    preemption_cost: float = 0.05
    recovery_per_s: float = 0.002
    prefill_steps: int = 2
    tenant_kv_share: float = 0.0
    tenant_in_flight: int = 0
    lent_share: float = 0.8


class Strain:
    """How far alpha is below what it should be on one worker, because its engine had to preempt."""

    def __init__(self, rules: RoomRules) -> None:
        self._rules = rules
        self._lowered_by = 0.0
        self._since = 0.0

    def preempted(self, times: int, now: float) -> None:
        """Notes preemptions."""
        most = self._rules.alpha - self._rules.lowest_alpha
        self._lowered_by = min(most, self.lowered_by(now) + times * self._rules.preemption_cost)
        self._since = now

    def lowered_by(self, now: float) -> float:
        """Returns what is taken from alpha now."""
        if not self._lowered_by:
            return 0.0
        return max(0.0, self._lowered_by - (now - self._since) * self._rules.recovery_per_s)
