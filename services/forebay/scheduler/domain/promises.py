"""What is in flight on which worker, and what its flow is charged for it.

A promise takes its worker's room and, once it is known whose it is, charges its flow: the input when it is granted, generated
tokens as they are reported, and at the end the difference that the prefix cache made. A continuation's input is charged to
nobody (rule P6): the attempt that delivered its first tokens was charged for the prompt, and computing all of it again is
the mesh's own doing.
"""

from forebay.scheduler.domain.decisions import Grant
from forebay.scheduler.domain.flow import CACHED_TENTHS, INPUT_TENTHS, OUTPUT_TENTHS, Flow
from forebay.scheduler.domain.pool import Pool
from forebay.scheduler.domain.request import AttemptKey, Queued, Request
from forebay.scheduler.domain.worker import InFlight, RunningAttempt, Worker


class Promises:
    """Every promise, by attempt; each attempt has at most one."""

    def __init__(self) -> None:
        self._entries: dict[AttemptKey, InFlight] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: AttemptKey) -> InFlight | None:
        """Returns an attempt's promise, if it has one."""
        return self._entries.get(key)

    def grant(self, queued: Queued, worker: Worker, grant: Grant) -> None:
        """Promises a worker's room to a request that was drawn, takes it out of its flow and charges its input."""
        request = queued.request
        entry = InFlight(
            key=request.key,
            worker=worker,
            pool=queued.pool,
            kv_tokens=grant.kv_tokens,
            prompt_tokens=request.prompt_tokens,
            unprefilled=request.prompt_tokens,
            max_tokens=request.max_tokens,
            delivered_tokens=request.delivered_tokens,
            expected_tokens=worker.expected_tokens(queued),
            grant=grant,
            pinned=request.pinned,
            adapter=request.adapter,
            charged_input=0 if request.delivered_tokens else request.prompt_tokens,
        )
        entry.flow = queued.flow
        entry.pool.flows.start(entry.flow, queued, entry.expected_tokens, INPUT_TENTHS * entry.charged_input)
        self._add(entry)

    def adopt(self, attempt: RunningAttempt, worker: Worker, request: Request | None) -> InFlight:
        """Counts what a worker held before this scheduler knew of it; what it has generated so far is charged to nobody.

        Args:
            request: what its router says of it; None while no router has. `attribute` is to be called when one has.
        """
        entry = InFlight(
            key=attempt.key,
            worker=worker,
            pool=worker.pool,
            kv_tokens=attempt.kv_tokens,
            prompt_tokens=request.prompt_tokens if request else 0,
            unprefilled=0 if attempt.generated_tokens else request.prompt_tokens if request else attempt.kv_tokens,
            max_tokens=request.max_tokens if request else attempt.kv_tokens,
            delivered_tokens=request.delivered_tokens if request else 0,
            expected_tokens=attempt.kv_tokens,
            generated=attempt.generated_tokens,
            started=attempt.started,
        )
        self._add(entry)
        return entry

    def attribute(self, entry: InFlight, pool: Pool, flow: Flow[Queued], request: Request) -> None:
        """Says whose service an adopted promise is, from now on, and how large it really is."""
        entry.worker.lent += entry.expected_tokens if pool is not entry.worker.pool else 0
        entry.pool, entry.flow = pool, flow
        entry.prompt_tokens, entry.max_tokens = request.prompt_tokens, request.max_tokens
        entry.delivered_tokens, entry.pinned, entry.adapter = request.delivered_tokens, request.pinned, request.adapter
        entry.worker.uses(entry.adapter, 1)
        entry.foresee()
        entry.worker.moved()
        pool.flows.begin(flow, entry.expected_tokens)

    def progress(self, entry: InFlight, generated_tokens: int, prefilled: bool) -> bool:
        """Charges newly generated tokens; returns whether room may have come free. A report that comes late changes nothing."""
        entry.started = True
        # No more is charged than was granted, whatever a worker reports.
        new = min(generated_tokens, entry.max_tokens) - entry.generated
        if new > 0:
            entry.generated += new
            self._charge(entry, OUTPUT_TENTHS * new)
            entry.pool.budget.earn(new)
            entry.foresee()
            entry.worker.moved()
        prompt_done = (prefilled or entry.generated > 0) and entry.worker.prefilled(entry)
        if prompt_done:
            entry.pool.budget.earn(entry.charged_input)
        return prompt_done or new > 0

    def settle(self, entry: InFlight, generated_tokens: int, cached_tokens: int) -> None:
        """Ends a promise whose attempt ran: charges what was not reported yet, and takes back what the cache saved."""
        self.progress(entry, generated_tokens, prefilled=True)
        if entry.evicted and not entry.generated:
            self.refund(entry)  # it ran for nothing, and is charged where it runs again
            return
        self._charge(entry, (CACHED_TENTHS - INPUT_TENTHS) * min(cached_tokens, entry.charged_input))
        if not entry.evicted:
            entry.pool.lengths.completed(entry.delivered_tokens + entry.generated)
        self.end(entry)

    def refund(self, entry: InFlight) -> None:
        """Ends a promise whose attempt never ran."""
        self._charge(entry, -INPUT_TENTHS * entry.charged_input)
        self.end(entry)

    def end(self, entry: InFlight) -> None:
        """Ends a promise, charged as it stands."""
        del self._entries[entry.key]
        entry.worker.release(entry)
        if entry.flow is not None:
            entry.pool.flows.end(entry.flow, entry.expected_tokens)

    def _add(self, entry: InFlight) -> None:
        self._entries[entry.key] = entry
        entry.worker.take(entry)

    def _charge(self, entry: InFlight, tenths: int) -> None:
        if entry.flow is not None:
            entry.pool.flows.charge(entry.flow, tenths)
