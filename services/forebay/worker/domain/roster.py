"""Who may run here: the way of each attempt from a batch's entry to its end.

    unknown ──announce──▶ PENDING ──admit──▶ RUNNING ──finish──▶ DONE (exactly once)
       │                     └─expire, withdraw─┐    └─release (the engine never had it)─┐
       │                                        └──▶ lapsed: for that draw, not another ◀─┘
       └──────admit (the payload came before its batch)──▶ RUNNING

A batch and its payloads come over different connections, so no order between them is assumed. DONE attempts and lapsed
entries are remembered, so that a late batch revives none and a late or repeated payload runs none. The memory is bounded:
what is forgotten is older than any grant that could still name it, unless more than `memory` attempts run within a grant's
life of 2 s.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import TypeVar

from forebay.errors import Code, MeshError
from forebay.worker.domain.attempt_id import AttemptId
from forebay.worker.domain.grant import Grant, Payload, Standing, refusal

V = TypeVar("V")
Draw = tuple[int, int]  # (epoch, batch_id): grows from draw to draw


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a batch: room that is kept until `expires_at` (monotonic seconds)."""

    id: AttemptId
    draw: Draw
    tenant_id: str
    kv_tokens: int
    expires_at: float


class Roster:
    """The entries that wait for their payload, the attempts that run, and a memory of those that did."""

    def __init__(
        self,
        worker_id: str,
        incarnation: int,
        *,
        max_running: int = 4096,
        max_pending: int = 4096,
        memory: int = 65_536,
    ) -> None:
        self.worker_id = worker_id
        self.incarnation = incarnation
        self.epoch = 0
        self.draining = False
        self._max_running = max_running
        self._max_pending = max_pending
        self._memory = memory
        self._pending: dict[AttemptId, Entry] = {}
        self._running: dict[AttemptId, Draw] = {}
        self._done: OrderedDict[AttemptId, None] = OrderedDict()
        self._lapsed: OrderedDict[AttemptId, Draw] = OrderedDict()

    @property
    def pending(self) -> list[Entry]:
        """The entries whose payload has not come."""
        return list(self._pending.values())

    @property
    def running(self) -> int:
        """How many attempts run."""
        return len(self._running)

    def saw_epoch(self, epoch: int) -> None:
        """Takes note of a leader's epoch; grants of earlier ones are refused from now on, so their entries lapse."""
        if epoch > self.epoch:
            self.epoch = epoch
            for entry in self.pending:
                if entry.draw[0] < epoch:
                    self.withdraw(entry.id)

    def announce(self, entry: Entry) -> bool:
        """Takes an entry of a batch; False when there is no room for it and it counts as expired.

        An attempt whose payload has come already, or an entry that was taken back before, changes nothing.
        """
        known = entry.id in self._running or entry.id in self._done or self._has_lapsed(entry.id, entry.draw)
        if known:
            return True
        if entry.id not in self._pending and len(self._pending) >= self._max_pending:
            self._lapse(entry.id, entry.draw)
            return False
        self._pending[entry.id] = entry
        return True

    def withdraw(self, id: AttemptId) -> bool:
        """Frees the room of an entry that will not come; False when it does not wait for its payload."""
        entry = self._pending.pop(id, None)
        if entry is not None:
            self._lapse(id, entry.draw)
        return entry is not None

    def expire(self, now: float) -> list[AttemptId]:
        """Frees the room of entries whose payload did not come in time, and returns them."""
        late = [entry for entry in self._pending.values() if entry.expires_at <= now]
        for entry in late:
            self.withdraw(entry.id)
        return [entry.id for entry in late]

    def admit(self, grant: Grant, payload: Payload) -> None:
        """Lets a payload run: it is RUNNING from here on.

        Raises:
            MeshError: the grant does not hold (see `refusal`), or UNAVAILABLE WORKER_FULL.
        """
        standing = Standing(
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            epoch=self.epoch,
            lapsed=self._has_lapsed(grant.id, (grant.epoch, grant.batch_id)),
            ran=grant.id in self._running or grant.id in self._done,
            draining=self.draining,
        )
        error = refusal(grant, payload, standing)
        if error is None and len(self._running) >= self._max_running:
            error = MeshError(
                Code.UNAVAILABLE, "WORKER_FULL", f"the worker runs {self._max_running} attempts, its bound"
            )
        if error is not None:
            raise error
        self._pending.pop(grant.id, None)
        self._running[grant.id] = (grant.epoch, grant.batch_id)

    def release(self, id: AttemptId) -> None:
        """Takes a running attempt back that never reached the engine; another grant may bring it again."""
        self._lapse(id, self._running.pop(id))

    def finish(self, id: AttemptId) -> None:
        """Ends a running attempt; it never runs here again.

        Raises:
            KeyError: it does not run, so that whoever ends it twice has a bug.
        """
        del self._running[id]
        _remember(self._done, id, None, self._memory)

    def _has_lapsed(self, id: AttemptId, draw: Draw) -> bool:
        return draw <= self._lapsed.get(id, (-1, -1))

    def _lapse(self, id: AttemptId, draw: Draw) -> None:
        _remember(self._lapsed, id, draw, self._memory)


def _remember(memory: OrderedDict[AttemptId, V], id: AttemptId, value: V, bound: int) -> None:
    memory[id] = value
    memory.move_to_end(id)
    if len(memory) > bound:
        memory.popitem(last=False)
