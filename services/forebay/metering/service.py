"""What metering does: record reports durably and once, confirm those that were held, and show the ledger.

Group commit clocks itself: what is submitted while a commit runs becomes the next commit. There is no timer and no
fixed delay; one report alone is committed at once, and under load the cost of a commit is shared by all that gathered
meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.killpoints import reached
from forebay.metering.domain.event import NANO, UsageEvent
from forebay.metering.domain.posting import Disposition
from forebay.metering.domain.selection import Dimension, Total, UsageFilter
from forebay.metering.ledger import Ledger, Page
from forebay.metering.price_book import PriceBook
from forebay.telemetry.logs import get_logger

MAX_COMMIT = 1_000
PAGE = 500
CONFIRM_EVERY_S = 5.0
# How often it is seen whether the ledger can be written, and how often once it could not.
PROBE_EVERY_S = 5.0
PROBE_AGAIN_S = 1.0
IDLE_S = 15.0

# Hears what became of a report, once, on the event loop; must not block.
Done = Callable[[Disposition | MeshError], None]

log = get_logger("metering")


class Metering:
    """The use cases of metering over one ledger.

    `commit_reports`, `confirm_held` and `watch_ledger` must run beside it.
    """

    def __init__(self, ledger: Ledger, prices: PriceBook, clock: Clock, *, hold_s: float, max_waiting: int) -> None:
        """Makes the service.

        Args:
            hold_s: how long a router's report waits for a worker's, in seconds.
            max_waiting: the most reports that may wait for the next commit.
        """
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._hold_s = hold_s
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[UsageEvent, Done]] = deque()
        self._submitted = asyncio.Event()
        self._committed = asyncio.Event()
        self._failing = asyncio.Event()

    def submit(self, report: UsageEvent, done: Done) -> None:
        """Puts a checked report into the next commit; `done` hears CONFLICT, a failure, or that it is durable.

        Raises:
            MeshError: RESOURCE_EXHAUSTED LEDGER_BUSY; too many wait. It was not taken in.
        """
        if len(self._waiting) >= self._max_waiting:
            raise MeshError(
                Code.RESOURCE_EXHAUSTED,
                "LEDGER_BUSY",
                f"{self._max_waiting:,} events wait for the ledger, as many as may; send them again later",
                retry_after=1.0,
            )
        self._waiting.append((report, done))
        self._submitted.set()

    async def commit_reports(self) -> None:
        """Commits what is submitted, in order, until cancelled. A commit that fails fails its reports and no others."""
        while True:
            await self._submitted.wait()
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_COMMIT))]
            if not self._waiting:
                self._submitted.clear()
            results: Sequence[Disposition | MeshError]
            reached("metering.before_commit")
            try:
                results = await self._ledger.append(
                    [report for report, _ in batch], self._prices.current.table, self._now_ns()
                )
            except MeshError as error:
                results = [error] * len(batch)
                self._failing.set()
            else:
                reached("metering.after_commit")
                self._wake_readers()
            for (_, done), result in zip(batch, results, strict=True):
                done(result)

    async def confirm_held(self) -> None:
        """Every few seconds books the routers' reports that no worker's report took up in time, until cancelled.

        Reports held before a restart have their whole wait again: while this service was away, no worker could report.
        """
        await self._clock.sleep(self._hold_s)
        while True:
            try:
                while await self._confirm_some() == MAX_COMMIT:
                    pass
            except MeshError as error:
                log.warning("held reports not confirmed", reason=error.reason)
            await self._clock.sleep(min(CONFIRM_EVERY_S, self._hold_s))

    async def watch_ledger(self, writable: Callable[[bool], None]) -> None:
        """Says whether the ledger can be written, within a second of each change that a commit or the ledger shows."""
        while True:
            self._failing.clear()
            try:
                await self._ledger.probe()
            except MeshError:
                writable(False)
                await self._clock.sleep(PROBE_AGAIN_S)
            else:
                writable(True)
                await self._either(self._failing, PROBE_EVERY_S)

    async def _confirm_some(self) -> int:
        now_ns = self._now_ns()
        held_since_ns = now_ns - int(self._hold_s * NANO)
        dispositions = await self._ledger.confirm(held_since_ns, self._prices.current.table, now_ns, MAX_COMMIT)
        if dispositions:
            self._wake_readers()
            log.info(
                "held reports confirmed", count=len(dispositions), conflicts=dispositions.count(Disposition.CONFLICT)
            )
        return len(dispositions)

    async def head(self) -> int:
        """Returns the ledger's last position."""
        return await self._ledger.head()

    async def stream(self, after: int, selection: UsageFilter, *, follow: bool) -> AsyncIterator[Page]:
        """Yields the selected rows after a position, in order, without gap or repeat, at most PAGE at a time.

        Nothing is buffered for a slow reader: each page is read from the ledger when the one before was taken. The
        first page comes at once and may be empty, so that a reader has a position to resume from; so may a page after
        IDLE_S seconds without rows.

        Args:
            follow: go on with rows as they are committed; otherwise end at the present end.
        """
        shown_at = float("-inf")
        while True:
            committed = self._committed
            page = await self._ledger.read(after, selection, PAGE)
            after = page.position
            if page.entries or not follow or self._clock.monotonic() - shown_at >= IDLE_S:
                yield page
                shown_at = self._clock.monotonic()
            if len(page.entries) < PAGE:
                if not follow:
                    return
                await self._either(committed, shown_at + IDLE_S - self._clock.monotonic())

    async def sum(self, selection: UsageFilter, dimensions: Sequence[Dimension]) -> list[Total]:
        """Returns the totals of the selected rows; see Ledger.sum."""
        return await self._ledger.sum(selection, dimensions)

    def _now_ns(self) -> int:
        return int(self._clock.now() * NANO)

    def _wake_readers(self) -> None:
        self._committed.set()
        self._committed = asyncio.Event()

    async def _either(self, event: asyncio.Event, seconds: float) -> None:
        waits = {asyncio.ensure_future(event.wait()), asyncio.ensure_future(self._clock.sleep(seconds))}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
