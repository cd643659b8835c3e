"""A tenant's day or month as its counters have it, beside what the ledger has.

Both are taken of one instant: from the counters what is used less what reservations hold; from the ledger what had ended by then,
without the requests that were reserved then. What ended before the instant and was not settled by then still holds, and is in
neither; what came later is in neither. So they are equal, but for two things that are no faults and are allowed for:

- **Rounding.** The ledger rounds each price line of each attempt, the counters each item of a request.
- **The beginning of the period.** The ledger counts an attempt when it ends, the counters a request when it is admitted. So
  the ledger may have more: up to all that ended in the period's first `LONGEST_MS`.

The comparison corrects nothing. A difference that is left has a cause that the two numbers do not tell: an event that is still to
come will correct the ledger by itself, and a correction here would then count it a second time.
"""

from __future__ import annotations

from dataclasses import dataclass

from forebay.quota.domain.limits import BUDGETS

# Of a request that crosses the beginning of a period; a longer one shows as a difference.
LONGEST_MS = 3_600_000
# Price lines of an attempt, each rounded by half a nano-USD here and there.
ROUNDING = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a limit stands against the ledger.

    Attributes:
        as_of_ms: the instant.
        counted: by the counters.
        recorded: by the ledger.
        difference: counted less recorded, as far as it is not explained.
    """

    as_of_ms: int
    counted: int
    recorded: int
    difference: int


def compare(limit: str, as_of_ms: int, counted: int, recorded: int, attempts: int, early: int) -> Comparison:
    """Returns what is left to be explained.

    Args:
        limit: which.
        as_of_ms: the instant.
        counted: by the counters.
        recorded: by the ledger, in so many `attempts`.
        attempts: see recorded.
        early: what of `recorded` ended in the period's first LONGEST_MS.
    """
    difference = counted - recorded
    if difference < 0:
        difference = min(0, difference + early)
    if limit in BUDGETS and abs(difference) <= ROUNDING * attempts:
        difference = 0
    return Comparison(as_of_ms, counted, recorded, difference)
