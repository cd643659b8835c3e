"""The global safety limit: at most so many requests in any second over all tenants and replicas, taken in leased chunks.

The rule, exactly. A *permit* lets one request pass. The store grants permits in chunks; the replica spends those of requests that
were waiting at the instant of the grant, and the rest within `LEASE_MS` of it, or never. Every interval of a second in which
permits are spent is so covered by the grants of that second and of one lease before it. Grants are counted in buckets of
`BUCKET_MS`, and the sum over the present bucket and the `SPAN` before it never exceeds the limit; an interval of a second and a
lease touches no more buckets than these. So no second, wherever it begins, has more than the limit.

The price is that a permit counts for up to 1.11 s: nine tenths of the limit can be had for as long as one likes. What a replica
has not spent it gives back when it asks again, and it asks for no more than it has use for.

The store's clock may step. Buckets are on a timeline (`forebay.quota.domain.timeline`): a step back changes nothing, and after a
step forward the limit is granted once more. So it is if the store forgets what it has granted.

Replicas tell times by clocks of their own and measure a lease from before they asked, so that no two clocks need agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from forebay.quota.domain.timeline import Timeline

LEASE_MS = 100
BUCKET_MS = 10
SPAN = (1_000 + LEASE_MS) // BUCKET_MS


@dataclass(frozen=True, slots=True)
class Ask:
    """What a replica asks of the store.

    Attributes:
        permits: how many it has use for.
        returned: unspent permits of the chunk before, which it gives back.
        bucket: the bucket in which that chunk was granted.
    """

    permits: int
    returned: int = 0
    bucket: int = 0


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the store grants.

    Attributes:
        permits: at most as many as were asked for; there is no room for more when they are fewer.
        bucket: the bucket in which they count.
        wait_ms: until some of what counts counts no longer.
    """

    permits: int
    bucket: int
    wait_ms: int


class Grants:
    """What was granted to all replicas in the last second: the specification that `lua/safety.lua` must equal."""

    def __init__(self) -> None:
        self._timeline = Timeline()
        self._buckets: dict[int, int] = {}

    def grant(self, clock_ms: int, limit: int, ask: Ask) -> Chunk:
        """Takes back what is returned, then grants what fits. The clock reads in ms since the epoch, and may step."""
        now_ms = self._timeline.advance(clock_ms)
        bucket = now_ms // BUCKET_MS
        self._buckets = {at: permits for at, permits in self._buckets.items() if at >= bucket - SPAN}
        if ask.bucket in self._buckets:
            self._buckets[ask.bucket] -= ask.returned
        room = limit - sum(self._buckets.values())
        permits = max(0, min(ask.permits, room))
        self._buckets[bucket] = self._buckets.get(bucket, 0) + permits
        oldest = min((at for at, taken in self._buckets.items() if taken > 0), default=bucket)
        return Chunk(permits, bucket, (oldest + SPAN + 1) * BUCKET_MS - now_ms)


class Share:
    """One replica's chunk. Times are in ms of any clock of the replica that only goes forward."""

    def __init__(self) -> None:
        self._left = 0
        self._spent = 0
        self._bucket = 0
        self._ends_ms = 0.0
        self._full_until_ms = 0.0

    def spend(self, now_ms: float) -> bool:
        """Spends a permit; False when there is none."""
        if self._left == 0 or now_ms > self._ends_ms:
            return False
        self._left -= 1
        self._spent += 1
        return True

    def wait_ms(self, now_ms: float) -> float:
        """Returns how long asking is in vain; 0 when the store may have room."""
        return max(0.0, self._full_until_ms - now_ms)

    def ask(self, now_ms: float, waiting: int) -> Ask:
        """Returns what to ask for so many waiting requests: their permits, and as many as the chunk before was good for.

        The rest of that chunk is given up.
        """
        foreseen = self._spent if now_ms <= self._ends_ms + LEASE_MS else 0
        ask = Ask(waiting + foreseen, self._left, self._bucket)
        self._left = self._spent = 0
        return ask

    def receive(self, asked_at_ms: float, waiting: int, chunk: Chunk) -> int:
        """Takes a chunk; returns how many of the waiting requests pass.

        Args:
            asked_at_ms: when the replica asked, which was not after the grant.
            waiting: how many requests waited then.
            chunk: what was granted.
        """
        passing = min(waiting, chunk.permits)
        self._left, self._spent = chunk.permits - passing, passing
        self._bucket, self._ends_ms = chunk.bucket, asked_at_ms + LEASE_MS
        if passing < waiting:
            self._full_until_ms = asked_at_ms + chunk.wait_ms
        return passing
