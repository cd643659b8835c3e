"""Which events of one session are durable: numbers go out of order, acknowledgements in order."""

from __future__ import annotations

from forebay.errors import Code, MeshError


class Window:
    """The numbered events of one session that are not settled yet.

    Attributes:
        acknowledged: all events up to this number are settled; 0 for none.
        taken: the last number taken in.
    """

    def __init__(self, limit: int) -> None:
        self.acknowledged = 0
        self.taken = 0
        self._limit = limit
        self._settled: set[int] = set()

    @property
    def empty(self) -> bool:
        """Whether everything taken in is settled."""
        return self.taken == self.acknowledged

    def take(self, seq: int) -> None:
        """Takes the next event in.

        Raises:
            MeshError: INVALID_ARGUMENT BAD_SEQUENCE, or RESOURCE_EXHAUSTED TOO_MANY_UNACKNOWLEDGED; the session must end.
        """
        if seq != self.taken + 1:
            raise MeshError(
                Code.INVALID_ARGUMENT,
                "BAD_SEQUENCE",
                f"event {seq} came after event {self.taken}; the numbers must grow by one from 1",
            )
        if seq - self.acknowledged > self._limit:
            raise MeshError(
                Code.RESOURCE_EXHAUSTED,
                "TOO_MANY_UNACKNOWLEDGED",
                f"more than {self._limit} events are unacknowledged; wait for acknowledgements as the welcome says",
            )
        self.taken = seq

    def settle(self, seq: int) -> None:
        """Notes that an event is durable or turned away."""
        self._settled.add(seq)
        while self.acknowledged + 1 in self._settled:
            self.acknowledged += 1
            self._settled.remove(self.acknowledged)
