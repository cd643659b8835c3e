"""Bringing tokens to clients: a handful of flushers that cycle over the streams that have something to send.

A task per stream would be woken for every token and would write it alone; so would a task per write. Here a stream with something
to send stands in one queue, once. A flusher takes the first stream, takes *all* that has gathered for it, and awaits the write;
meanwhile whatever else comes gathers in the other streams. With few streams every token leaves at once, with many more tokens
leave in each message: no timer decides, the load does.

Each stream has one writer at a time, because it is either in the queue, or in one flusher's hands, or in neither.

A client that does not read would hold a flusher for as long as its connection lasts. So a watchdog looks every 100 ms, and
where a flusher has been in one write for longer it starts another in its place; the stuck one leaves when its write ends. Tasks
are made for slow clients only, one each at most.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from forebay.clock import Clock
from forebay.errors import MeshError
from forebay.router.client import Client
from forebay.router.domain.stream import TokenStream
from forebay.telemetry.logs import get_logger

FLUSHERS = 4
STUCK_AFTER_S = 0.1

log = get_logger("delivery")


class Outflow:
    """One stream and its client.

    Attributes:
        tokens: what is to be sent.
        client: where to.
        queued: whether it is in the delivery's queue or in a flusher's hands, or never to be there again because it is `gone`.
        gone: whether a write failed; nothing more is sent.
        sent: called after each write, where a worker may want to know; must not raise.
    """

    __slots__ = ("_drained", "client", "gone", "queued", "sent", "tokens")

    def __init__(self, tokens: TokenStream, client: Client) -> None:
        self.tokens = tokens
        self.client = client
        self.queued = False
        self.gone = False
        self.sent: Callable[[], None] | None = None
        self._drained: asyncio.Event | None = None

    async def drained(self) -> None:
        """Returns once all that has come so far is sent, or cannot be."""
        if self.queued and not self.gone:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def let_go(self) -> None:
        """Takes note that a flusher is done with it for now."""
        self.queued = self.gone
        if self._drained is not None:
            self._drained.set()


class _Flusher:
    """What is known of one flushing task; `writing_since` is None while it is in no write."""

    __slots__ = ("retired", "writing_since")

    def __init__(self) -> None:
        self.retired = False
        self.writing_since: float | None = None


class Delivery:
    """The flushers of one router; run `run` beside everything else."""

    def __init__(self, clock: Clock, flushers: int = FLUSHERS) -> None:
        self._clock = clock
        self._count = flushers
        self._ready: deque[Outflow] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._flushers: list[_Flusher] = []

    def ready(self, outflow: Outflow) -> None:
        """Puts a stream with something to send into the queue; call it only for one that is not `queued`."""
        outflow.queued = True
        self._ready.append(outflow)
        if self._idle:
            self._wake()

    async def run(self) -> None:
        """Flushes and watches the flushers, until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._flushers = [self._hire(group) for _ in range(self._count)]
            while True:
                await self._clock.sleep(STUCK_AFTER_S)
                self._replace_stuck(group)

    def _hire(self, group: asyncio.TaskGroup) -> _Flusher:
        flusher = _Flusher()
        group.create_task(self._flush(flusher))
        return flusher

    def _replace_stuck(self, group: asyncio.TaskGroup) -> None:
        now = self._clock.monotonic()
        for place, flusher in enumerate(self._flushers):
            if flusher.writing_since is not None and now - flusher.writing_since >= STUCK_AFTER_S:
                flusher.retired = True
                self._flushers[place] = self._hire(group)

    async def _flush(self, me: _Flusher) -> None:
        ready = self._ready
        while not me.retired:
            if not ready:
                await self._wait()
                continue
            outflow = ready.popleft()
            me.writing_since = self._clock.monotonic()
            try:
                await outflow.client.deliver(outflow.tokens.take())
            except Exception as error:
                # A client that went away, whose call tells its request so. Whatever else it is must not end the flusher.
                if not isinstance(error, MeshError):
                    log.error("delivery failed", exc_info=error)
                outflow.gone = True
            me.writing_since = None
            if outflow.sent is not None:
                outflow.sent()
            if outflow.tokens.pending and not outflow.gone:
                ready.append(outflow)
            else:
                outflow.let_go()
        if ready:
            self._wake()

    def _wake(self) -> None:
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def _wait(self) -> None:
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(waiting)
        await waiting
