"""Which waiting request goes to which worker next, within one pool of one model.

The order is that of the virtual counters, the place the worker with the most free room. Where the two disagree, because the
neediest flow's head fits nowhere, rule P8 decides: up to MAX_SKIPS others are served before it, or for MAX_SKIP_S, so
that room does not lie idle; after that the freed room of one worker is kept for it, so that small requests cannot hold up a
large one for ever. While its head is passed over a flow falls behind, by what MAX_SKIPS requests cost at most for each such head;
law 4 leaves these intervals out. A draw looks at no more than MAX_SKIPS heads that do not fit, which bounds its cost.
"""

from collections.abc import Iterator

from forebay.scheduler.domain.request import Queued, Request
from forebay.scheduler.domain.virtual_counters import VirtualCounters
from forebay.scheduler.domain.worker import Worker

MAX_SKIPS = 16
MAX_SKIP_S = 0.5


class Pool:
    """The flows and workers of one pool.

    Attributes:
        name: empty for the model's shared pool.
        workers: every worker known to serve it, those that are away too.
        queued: how many requests wait, parked ones included.
    """

    def __init__(self, model: str, name: str) -> None:
        self.model = model
        self.name = name
        self.flows: VirtualCounters[Queued] = VirtualCounters()
        self.workers: dict[str, Worker] = {}
        self.queued = 0

    @property
    def empty(self) -> bool:
        """Whether nobody would miss the pool."""
        return not self.workers and not self.queued

    def too_large(self, request: Request) -> bool:
        """Whether no known worker could ever hold the request; never so while none is known."""
        return bool(self.workers) and not any(w.info.capacity.can_ever_hold(request) for w in self.workers.values())

    def enqueue(self, queued: Queued) -> None:
        """Adds a request that waits."""
        self.queued += 1
        self.flows.enqueue(queued.flow, queued, queued.place)

    def dequeue(self, queued: Queued) -> None:
        """Takes a request out, whether it is to run or not."""
        self.queued -= 1
        self.flows.dequeue(queued.flow, queued)
        if queued.keeps is not None:
            queued.keeps.kept_for = None
            queued.keeps = None

    def worker_came(self) -> None:
        """Gives every waiting request another chance; a worker may be present that can run what no other could."""
        self.flows.unpark()

    def worker_left(self, worker: Worker) -> None:
        """Gives up what was kept on a worker that takes no more."""
        if worker.kept_for is not None:
            worker.kept_for.keeps = None
            worker.kept_for = None

    def draw(self, now: float) -> Iterator[tuple[Queued, Worker]]:
        """Yields who runs where, neediest first, while anyone fits.

        The caller must take each request out of the queue, charge its flow and give it the worker's room before it asks for
        the next: that is what moves the draw on.
        """
        workers = [worker for worker in self.workers.values() if worker.present]
        for worker in workers:
            if worker.kept_for is not None and worker.has_room_for(worker.kept_for):
                yield worker.kept_for, worker
        passed: list[Queued] = []
        try:
            while len(passed) <= MAX_SKIPS and not all(worker.full for worker in workers):
                flow = self.flows.neediest()
                if flow is None:
                    break
                head = flow.head
                able = [worker for worker in workers if worker.may_run(head)]
                if not able:
                    # No worker that is here could run it: it must not hold up the rest of its flow.
                    self.flows.park(flow, head, head.place)
                    continue
                fitting = [worker for worker in able if worker.has_room_for(head)]
                if not fitting:
                    self.flows.set_aside(flow)
                    passed.append(head)
                    self._keep_if_overdue(head, now)
                    continue
                yield head, _roomiest(fitting)
                for other in passed:
                    other.skips += 1
                    other.skipped_since = now if other.skipped_since is None else other.skipped_since
                    self._keep_if_overdue(other, now)
        finally:
            for queued in passed:
                self.flows.put_back(queued.flow)

    def _keep_if_overdue(self, queued: Queued, now: float) -> None:
        if queued.keeps is not None or queued.skipped_since is None:
            return
        if queued.skips < MAX_SKIPS and now - queued.skipped_since < MAX_SKIP_S:
            return
        free = [w for w in self.workers.values() if w.kept_for is None and w.may_run(queued)]
        if free:
            queued.keeps = _roomiest(free)
            queued.keeps.kept_for = queued


def _roomiest(workers: list[Worker]) -> Worker:
    return min(workers, key=lambda worker: (-worker.free_kv_tokens, len(worker.in_flight), worker.info.id))
