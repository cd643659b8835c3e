"""Who leads: the lease of one lending domain, as its holder may rely on it.

All schedulers of a domain bid for one lease in a store that they share. `Tenure` is the specification of the store: what it
holds, and how it answers a bid, in one step. `Lease` is one scheduler's view: it says whether that scheduler may grant now.

What the lease is for. At most one leader at a time makes one queue, fair across all routers. Nothing worse depends on it: a
request is its router's (P1), an attempt runs once on its worker, and a worker takes no grant of an epoch below the highest that
it has seen (P2). So two leaders at a time would cost fairness and room, not correctness, and only until workers and routers,
who refuse a welcome of an older epoch, have moved to the later one.

Two rules pull in different directions, and both hold:

1. A leader grants only while its lease is certainly unexpired by its own monotonic clock: the time runs from before it asked,
   so the store's own reckoning ends later, and a tenth is left off for clocks that run apart. A leader that was stopped for
   longer than that does not grant when it wakes, until the store has answered.
2. While the store is away the leader goes on, and nobody is elected. Each attempt that finds no store prolongs the leader's own
   view from when the attempt began, so it goes on as long as it keeps trying, and a stopped process does not try. If the store
   is away for the leader alone, another is elected; the old one hears of it with the first answer that it gets, and until then
   epochs fence it.

A follower that has found the store away waits for one lease's length after its return before it takes the lease: the leader
that went on is back first. One that has just started does not wait, for most likely everything has. A leader whose lease
lapsed goes on in its epoch if nobody has led since.
"""

from dataclasses import dataclass, replace

TTL_S = 3.0
KEEP_S = 0.9 * TTL_S
RENEW_S = 1.0
RETRY_S = 0.25
ANY_TIME_US = 1 << 53
"""Later than any time, and exact as a float, which numbers are in the store's script."""

MOST_EPOCH = 1 << 52
"""Higher than the time in µs until the year 2112."""


@dataclass(frozen=True, slots=True)
class Bid:
    """One scheduler asks for the lease, or to keep it.

    Attributes:
        id, incarnation: who asks; a later life of a replica takes over what an earlier one held.
        address: where it listens, host:port.
        epoch: of the term that it leads in; 0 while it follows.
        latest: the highest epoch that it has heard of, so that a store that has forgotten begins no term below it.
        takes_until_us: until when by the store's clock it would take a free lease; 0 for not at all.
        checkpoint: stored when the lease is kept; None leaves the one that is there.
    """

    id: str
    incarnation: int
    address: str
    epoch: int
    latest: int
    takes_until_us: int
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Who holds the lease after a bid.

    Attributes:
        epoch: of the holder's term; 0 when nobody holds it.
        address: where the holder listens; empty likewise.
        mine: whether the bidder holds it.
        now_us: when that was decided, by the store's clock.
        checkpoint: the last that was stored, empty for none; given when the bidder has begun a term, else empty.
    """

    epoch: int
    address: str
    mine: bool
    now_us: int
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Tenure:
    """What a store holds of one domain. Times are µs since the epoch by the store's clock.

    Attributes:
        epoch: of the last term; kept when the lease has expired.
        until_us: when the lease expires; 0 when it was given up.
    """

    id: str = ""
    incarnation: int = 0
    address: str = ""
    epoch: int = 0
    until_us: int = 0
    checkpoint: str = ""

    def on(self, bid: Bid, now_us: int) -> tuple["Tenure", Answer]:
        """Decides on a bid; returns what is held from then on, and the answer."""
        end_us = now_us + round(TTL_S * 1e6)
        # Who has heard of a later term than the store has met one that has forgotten: what it still holds is over.
        last = max(self.epoch, bid.latest)
        held = now_us < self.until_us and self.epoch == last
        if held and (bid.id, bid.incarnation) == (self.id, self.incarnation):
            epoch = self.epoch
        elif not held and bid.epoch and bid.epoch >= last:
            epoch = bid.epoch  # nobody has led since, or the store has forgotten
        elif now_us < bid.takes_until_us and (not held or (bid.id == self.id and bid.incarnation > self.incarnation)):
            epoch = max(last + 1, now_us)
        elif held:
            # No lease is longer: if this one is the clock was set back, and a dead leader would be waited for as long.
            return replace(self, until_us=min(self.until_us, end_us)), Answer(self.epoch, self.address, False, now_us)
        else:
            return self, Answer(0, "", False, now_us)
        begins = epoch != bid.epoch
        checkpoint = self.checkpoint if begins or bid.checkpoint is None else bid.checkpoint
        tenure = Tenure(bid.id, bid.incarnation, bid.address, epoch, end_us, checkpoint)
        return tenure, Answer(epoch, bid.address, True, now_us, checkpoint if begins else "")

    def released(self, epoch: int) -> "Tenure":
        """Returns what is held once the leader of a term has given it up; a term that is over changes nothing."""
        return replace(self, until_us=0) if epoch == self.epoch else self


class Lease:
    """One scheduler's view of the lease. Times are monotonic seconds of its own clock.

    Attributes:
        epoch: of the term that it leads in; 0 while it follows.
        latest: the highest that it has heard of.
        leader: where the leader listens, as far as is known; empty for not.
    """

    def __init__(self) -> None:
        self.epoch = self.latest = 0
        self.leader = ""
        self._until = 0.0
        self._met = self._away = False
        self._waits_until = 0.0
        # What the store's clock is ahead of this one; without an answer it is not known.
        self._store_ahead: float | None = None

    def may_grant(self, now: float) -> bool:
        """Whether it leads for certain, or as certainly as can be while the store is away."""
        return self.epoch != 0 and now < self._until

    def takes_until_us(self, now: float) -> int:
        """Until when by the store's clock it is to take the lease if that is free; 0 for not at all.

        A store that was stopped gets to a bid when its bidder has long known that it was away.
        """
        if self._away or now < self._waits_until:
            return 0
        return ANY_TIME_US if self._store_ahead is None else round((now + self._store_ahead + TTL_S) * 1e6)

    def heard(self, epoch: int) -> None:
        """Takes note of the epoch of a leader that a router or a worker has met.

        It may be higher than the store knows, which has forgotten it or fell back to an earlier state, while its clock is behind
        what it was. Epochs that no clock of this century reads are passed over: the next one above must exist.
        """
        if epoch < MOST_EPOCH:
            self.latest = max(self.latest, epoch)

    def answered(self, answer: Answer, asked_at: float, now: float) -> float:
        """Takes the store's answer to a bid; returns after how many seconds to ask again."""
        if self._away and not self.epoch:
            self._waits_until = now + TTL_S
        self._met, self._away = True, False
        self._store_ahead = answer.now_us / 1e6 - now
        self.epoch = answer.epoch if answer.mine else 0
        self.latest = max(self.latest, answer.epoch)
        self.leader = answer.address
        self._until = asked_at + KEEP_S
        return RENEW_S if answer.mine else RETRY_S

    def unanswered(self, asked_at: float) -> float:
        """Takes note that the store did not answer; returns after how many seconds to ask again.

        The time runs from when it was asked: to who was stopped meanwhile it only seems that no answer came in time.
        """
        self._away = self._met
        self._until = max(self._until, asked_at + KEEP_S)
        return RETRY_S
