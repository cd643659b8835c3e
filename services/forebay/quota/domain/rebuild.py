"""What becomes of a tenant whose counters were lost (rule P10), and of one that is new.

```
            nothing is known of it: it is new
          ┌────────────────────────────────────────┐
          │                                        ▼
  ───▶  absent ──▶  gathering ─ a lease later ─▶  ready
          ▲         every limit is full,           │  minute windows are full until a minute after the loss
          │         routers bring what they hold   │
          └──────────── the store forgets ─────────┘
```

Nobody knows what an absent tenant had used, so nothing that has a limit is admitted until that is known again:

- **Rates and minute windows** start full. Whatever was admitted before the loss has left them a second, or 61 seconds, later: so
  then they are empty, and exact.
- **Holds** are brought by the routers: each renews all that it holds three times in a lease, and says with each lease what it
  is; so does a settlement. Who has not renewed for a lease has lost it anyway. That is why gathering lasts one lease, and why it
  needs no list of routers: they may be connected to other replicas of quota, or be on their way back.
- **Days and months** are summed up by the ledger when gathering ends, without the requests that are in these books by then: of
  those the counters themselves know what they cost. So no request counts twice, whether it is running, settled while gathering,
  or settled before the loss and again after it because nobody had acknowledged it.

The ledger adds up by when a request *ended*, the counters by when it was admitted. A request that ran across midnight is so
charged to the new day as well: too much, never too little. So is one that a router admitted by itself, and brings only when
gathering has ended and the ledger's sum has it already. What is too little: a request that had ended before the loss and is in
no ledger a lease later, because its worker died with it; it enters the ledger when that worker is back, or a minute after its
router reported it.
"""

from __future__ import annotations

from dataclasses import dataclass

from forebay.errors import Code, MeshError
from forebay.quota.domain.limits import Kind, Row
from forebay.quota.domain.rates import WEIGHT
from forebay.quota.domain.windows import WINDOW_SECONDS


class NeedsRebuildError(MeshError):
    """The tenant is absent, or its gathering has ended: nothing can be answered before its counters are rebuilt."""

    def __init__(self) -> None:
        super().__init__(
            Code.UNAVAILABLE, "NEEDS_REBUILD", "the tenant's counters are to be rebuilt; try again", retry_after=1.0
        )


class CountersUnknownError(MeshError):
    """What a tenant has used is not known, and not to be known now: the ledger cannot be asked, or takes too long."""

    def __init__(self, tenant_id: str, why: str = "") -> None:
        super().__init__(
            Code.UNAVAILABLE,
            "COUNTERS_UNKNOWN",
            f"what tenant {tenant_id} has used is being put together again{f' ({why})' if why else ''}; try again",
            retry_after=1.0,
        )


@dataclass(frozen=True, slots=True)
class Standing:
    """How far the counters of a tenant that is not absent can be believed; times in ms since the epoch.

    Attributes:
        began_ms: since when the counters are there.
        gathers_until_ms: until when routers bring what they hold.
        lost: whether there was something before, so that limits begin full.
        ready: whether the ledger's sums are in.
    """

    began_ms: int
    gathers_until_ms: int
    lost: bool
    ready: bool

    def full_until_ms(self, row: Row) -> int:
        """Returns until when a row counts as used up; 0 for never."""
        if not self.lost or row.value is None:
            return 0
        if row.kind is Kind.RATE:
            return self.began_ms - (-row.value * WEIGHT // row.drain)
        if row.kind is Kind.WINDOW:
            return (self.began_ms // 1000 + WINDOW_SECONDS + 1) * 1000
        return 0 if self.ready else self.gathers_until_ms


@dataclass(frozen=True, slots=True)
class Gathered:
    """A tenant whose gathering has ended.

    Attributes:
        began_ms: tells this loss from another.
        request_ids: every request in the books since then, live or settled; the ledger's sums leave them out.
    """

    began_ms: int
    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """What a tenant has used of days and months, as of one instant.

    Attributes:
        as_of_ms: the instant.
        live: the requests that are reserved and not settled.
        counted: by the rows' names, what is used without what `live` holds; rows of other periods than the present are left out.
    """

    as_of_ms: int
    live: tuple[str, ...]
    counted: dict[str, int]
