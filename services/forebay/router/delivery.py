"""Bringing tokens to clients: a handful of flushers that cycle over the streams that have something to send.

A task per stream would be woken for every token and would write it alone; so would a task per write. Here a stream with something
to send stands in one queue, once. A flusher takes the first stream, takes *all* that has gathered for it, and awaits the write;
meanwhile whatever else comes gathers in the other streams. With few streams every token leaves at once, with many more tokens
leave in each message: no timer decides, the load does.

Each stream has one writer at a time, because it is either in the queue, or in one flusher's hands, or in neither.

A client that does not read would hold a flusher for as long as its connection lasts. So a watchdog looks every 100 ms, and
where a flusher is stuck in a write it starts another in its place; the stuck one leaves when its write ends. Where all are stuck
it starts two for each, so that a thousand streams on a connection that nobody reads hold up the others for a second and not
for half a minute; whoever then finds nothing to do leaves. Tasks are made for slow clients only, two each at most.

And it would hold its request, with its room in an engine. So a client that has taken nothing for too long is cut off: its request
is told, and its write is left to end with the call.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.router.client import Client
from forebay.router.domain.stream import TokenStream
from forebay.telemetry.logs import get_logger

FLUSHERS = 4
LOOK_EVERY_S = 0.1
# Shorter than that, so that who is stuck from one look on is known to be at the next.
STUCK_AFTER_S = 0.05
SLOW_CLIENT_S = 60.0

log = get_logger("delivery")


class Outflow:
    """One stream and its client.

    Attributes:
        tokens: what is to be sent.
        client: where to.
        queued: whether it is in the delivery's queue or in a flusher's hands, or never to be there again because it has `failed`.
        failed: why nothing more is sent: a write failed, or did not end for too long.
        sent: called after each write, where a worker may want to know; must not raise.
        cut_off: called when a client is given up that does not read; must not raise.
    """

    __slots__ = ("_drained", "client", "cut_off", "failed", "queued", "sent", "tokens")

    def __init__(self, tokens: TokenStream, client: Client, cut_off: Callable[[], None] = lambda: None) -> None:
        self.tokens = tokens
        self.client = client
        self.queued = False
        self.failed: MeshError | None = None
        self.sent: Callable[[], None] | None = None
        self.cut_off = cut_off
        self._drained: asyncio.Event | None = None

    async def drained(self) -> None:
        """Returns once all that has come so far is sent.

        Raises:
            MeshError: it cannot be; CANCELLED for a client that is gone, RESOURCE_EXHAUSTED for one that does not read.
        """
        if self.queued and not self.failed:
            self._drained = asyncio.Event()
            await self._drained.wait()
        if self.failed:
            raise self.failed

    def let_go(self) -> None:
        """Takes note that a flusher is done with it for now."""
        self.queued = self.failed is not None
        if self._drained is not None:
            self._drained.set()

    def give_up(self) -> None:
        """Sends nothing more to a client that does not read."""
        self.failed = too_slow()
        self.let_go()
        self.cut_off()


def too_slow() -> MeshError:
    """Returns the error of a client that does not read."""
    message = "the answer was not read for too long and was cut off; read it as it comes, or ask for all of it at once"
    return MeshError(Code.RESOURCE_EXHAUSTED, "CLIENT_TOO_SLOW", message)


class _Flusher:
    """What is known of one flushing task.

    Attributes:
        retired: whether another stands in its place, so that it leaves when its write ends.
        writing: the stream whose write it is in, and `since` when; None while it is in none.
    """

    __slots__ = ("retired", "since", "writing")

    def __init__(self) -> None:
        self.retired = False
        self.writing: Outflow | None = None
        self.since = 0.0


class Delivery:
    """The flushers of one router; run `run` beside everything else."""

    def __init__(self, clock: Clock, flushers: int = FLUSHERS, slow_client_s: float = SLOW_CLIENT_S) -> None:
        """Prepares to deliver.

        Args:
            clock: for what takes too long.
            flushers: tasks that write.
            slow_client_s: how long one write may take before its client is given up.
        """
        self._clock = clock
        self._count = flushers
        self._slow_client_s = slow_client_s
        self._ready: deque[Outflow] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._flushers: list[_Flusher] = []
        self._stuck: list[_Flusher] = []

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
                await self._clock.sleep(LOOK_EVERY_S)
                self._replace_stuck(group)
                self._give_up_slow()

    def _hire(self, group: asyncio.TaskGroup) -> _Flusher:
        flusher = _Flusher()
        group.create_task(self._flush(flusher))
        return flusher

    def _replace_stuck(self, group: asyncio.TaskGroup) -> None:
        now = self._clock.monotonic()
        stuck = [each for each in self._flushers if each.writing is not None and now - each.since >= STUCK_AFTER_S]
        for flusher in stuck:
            flusher.retired = True
        self._stuck += stuck
        self._flushers = [flusher for flusher in self._flushers if not flusher.retired]
        wanted = self._count if self._flushers else 2 * len(stuck)
        while len(self._flushers) < wanted:
            self._flushers.append(self._hire(group))

    def _give_up_slow(self) -> None:
        now = self._clock.monotonic()
        for flusher in self._stuck:
            if flusher.writing is not None and now - flusher.since >= self._slow_client_s:
                flusher.writing.give_up()
                flusher.writing = None
        self._stuck = [flusher for flusher in self._stuck if flusher.writing is not None]

    async def _flush(self, me: _Flusher) -> None:
        ready = self._ready
        while not me.retired:
            if not ready:
                if len(self._flushers) > self._count:
                    self._flushers.remove(me)
                    return
                await self._wait()
                continue
            outflow = ready.popleft()
            me.writing, me.since = outflow, self._clock.monotonic()
            try:
                await outflow.client.deliver(outflow.tokens.take())
            except MeshError as error:
                # A client that went away; its call tells its request so.
                outflow.failed = outflow.failed or error
            except Exception as error:
                # Whatever it is, it must not end the flusher.
                log.error("delivery failed", exc_info=error)
                outflow.failed = outflow.failed or _undeliverable()
            me.writing = None
            if outflow.sent is not None:
                outflow.sent()
            if outflow.tokens.pending and not outflow.failed:
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


def _undeliverable() -> MeshError:
    return MeshError(Code.INTERNAL, "DELIVERY_FAILED", "the answer could not be sent; the router's log has the details")
