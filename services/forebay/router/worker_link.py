"""The workers port over one Execute session for each worker in use.

A session is opened with the first grant for a worker's life and kept. When it breaks, all of its attempts are over: each
request's life decides how to go on, and nothing resumes a session (rule P1). Payloads wait for the worker's welcome, so that a
session that never came about is known to have carried none, and another life of the worker is shown no prompt.

`_Link.received` is the busiest function of the router: it runs for every step of every engine, and its loop for every token of
every stream. It makes no object, awaits nothing and logs nothing on the way.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack

from forebay.api.common.v1 import common_pb2
from forebay.api.worker.v1 import worker_pb2, worker_pb2_grpc
from forebay.clock import Clock
from forebay.config import TlsConfig
from forebay.errors import Code, MeshError
from forebay.router.delivery import Delivery
from forebay.router.domain.ask import Sampling
from forebay.router.domain.events import Broken, Finished, FinishReason, Grant, HandedOver, Refused, Usage
from forebay.router.request import Request, out_of_order
from forebay.rpc.client import connect
from forebay.rpc.session import Outbox, SessionClient
from forebay.rpc.status import from_pb_duration, from_pb_error, to_pb_duration
from forebay.telemetry.tracing import to_pb_trace

WorkerOutbox = Outbox[worker_pb2.ExecuteRequest]
WorkerSession = SessionClient[worker_pb2.ExecuteRequest, worker_pb2.ExecuteResponse]

_REASONS: dict[int, FinishReason] = {reason.value: reason for reason in FinishReason}


class WorkerLinks:
    """All workers that this router has sent requests to; run `run` beside everything else."""

    def __init__(self, router: common_pb2.Peer, delivery: Delivery, clock: Clock, tls: TlsConfig | None = None) -> None:
        """Prepares; nothing is sent before `run`.

        Args:
            router: this router.
            delivery: told of streams with something to send.
            clock: for times to first token and remaining times.
            tls: the router's certificate; None for plaintext.
        """
        self._tls = tls
        self.router = router
        self.delivery = delivery
        self.clock = clock
        self._links: dict[tuple[str, int], _Link] = {}
        self._lanes: dict[str, _Lane] = {}
        self._new: asyncio.Queue[_Link] = asyncio.Queue()

    def start(self, request: Request, grant: Grant) -> None:
        """Brings the payload to the granted worker; as the port says."""
        key = (grant.worker_address, grant.worker_incarnation)
        link = self._links.get(key)
        if link is None:
            link = self._links[key] = _Link(self, *key)
            self._new.put_nowait(link)
        self._lanes[request.id] = link.start(request, grant)

    def cancel(self, request: Request, reason: FinishReason) -> None:
        """Tells the worker to stop; as the port says."""
        lane = self._lanes.get(request.id)
        if lane is not None:
            lane.link.cancel(lane, reason)

    def forget(self, request: Request) -> None:
        """Drops what is known of a request that has ended."""
        lane = self._lanes.pop(request.id, None)
        if lane is not None:
            lane.link.forget(lane)

    async def run(self) -> None:
        """Keeps the sessions, until cancelled."""
        async with asyncio.TaskGroup() as group:
            while True:
                link = await self._new.get()
                link.task = group.create_task(self._keep(link))

    async def _keep(self, link: _Link) -> None:
        async with AsyncExitStack() as stack:

            def connected() -> worker_pb2_grpc.WorkerServiceAsyncStub:
                channel = connect(link.address, caller=self.router.id, service="worker", tls=self._tls)
                stack.push_async_callback(channel.close)
                return worker_pb2_grpc.WorkerServiceStub(channel)

            link.session = SessionClient(
                f"worker {link.address}", lambda: connected().Execute(), worker_pb2.ExecuteRequest, link
            )
            await link.session.run()

    def over(self, link: _Link) -> None:
        """Takes a link whose session broke out of use; the next grant opens another."""
        self._links = {key: other for key, other in self._links.items() if other is not link}


class _Lane:
    """One attempt on one session.

    Attributes:
        ref: its number within the session.
        silent: whether it has yielded no token yet.
    """

    __slots__ = ("attempt", "base", "grant", "link", "outflow", "ref", "request", "silent", "tokens")

    def __init__(self, link: _Link, ref: int, request: Request, grant: Grant) -> None:
        self.link = link
        self.ref = ref
        self.request = request
        self.grant = grant
        self.attempt = request.life.attempt
        self.base = request.life.base
        self.tokens = request.tokens
        self.outflow = request.outflow
        self.silent = True

    def delivered(self) -> int:
        """Returns how many tokens of this attempt have gone to the client."""
        return max(0, self.tokens.sent - self.base)

    def report(self) -> None:
        """Tells the worker what has gone to the client."""
        self.link.report(self)


class _Link:
    """One Execute session, for one life of one worker.

    Attributes:
        session, task: set once it is run.
    """

    def __init__(self, links: WorkerLinks, address: str, incarnation: int) -> None:
        self.address = address
        self.session: WorkerSession | None = None
        self.task: asyncio.Task[None] | None = None
        self._links = links
        self._incarnation = incarnation
        self._refs = itertools.count(1)
        self._lanes: dict[int, _Lane] = {}
        self._unsent: dict[int, _Lane] = {}
        self._welcomed = False
        self._window_tokens = 0

    def start(self, request: Request, grant: Grant) -> _Lane:
        """Sends a payload, now or when the worker has welcomed the session."""
        lane = _Lane(self, next(self._refs), request, grant)
        self._lanes[lane.ref] = self._unsent[lane.ref] = lane
        self._send_starts()
        return lane

    def cancel(self, lane: _Lane, reason: FinishReason) -> None:
        """Has an attempt aborted; one that has not left yet is over at once."""
        if self._unsent.pop(lane.ref, None) is not None:
            self.forget(lane)
            lane.request.tell(Broken(lane.attempt, sent=False))
            return
        outbox = self._outbox()
        if outbox is not None:
            outbox.message.cancels.add(
                ref=lane.ref,
                reason=common_pb2.FinishReason.ValueType(reason.value),
                delivered_tokens=lane.delivered(),
            )
            _flush(outbox)

    def forget(self, lane: _Lane) -> None:
        """Drops an attempt; what may still come for it is not looked at."""
        self._lanes.pop(lane.ref, None)
        self._unsent.pop(lane.ref, None)
        if lane.outflow.sent == lane.report:
            lane.outflow.sent = None

    def report(self, lane: _Lane) -> None:
        """Sends what was delivered."""
        outbox = self._outbox()
        if outbox is not None:
            outbox.message.delivered_refs.append(lane.ref)
            outbox.message.delivered_tokens.append(lane.delivered())
            _flush(outbox)

    def opened(self, outbox: WorkerOutbox) -> None:
        """Says who calls."""
        outbox.message.hello.router.CopyFrom(self._links.router)
        _flush(outbox)

    def received(self, response: worker_pb2.ExecuteResponse) -> None:
        """Takes what the engine yielded."""
        if response.HasField("welcome"):
            self._welcome(response.welcome)
        lanes, ready = self._lanes, self._links.delivery.ready
        for delta in response.step.deltas:
            lane = lanes.get(delta.ref)
            if lane is None:
                continue  # it has ended here, and the worker did not know yet
            tokens, outflow = lane.tokens, lane.outflow
            if tokens.append(delta.token_ids[:], delta.text, delta.held_text, delta.completion_tokens):
                if lane.silent and tokens.received > lane.base:
                    lane.silent = False
                    lane.request.first_output(lane.attempt, self._links.clock.monotonic())
                if not outflow.queued and tokens.pending:
                    ready(outflow)
            else:
                lane.request.tell(out_of_order())
            if delta.HasField("finish"):
                self._finish(lane, delta.finish)
        for refusal in response.refusals:
            if (refused := lanes.get(refusal.ref)) is not None:
                self.forget(refused)
                refused.request.tell(Refused(refused.attempt, from_pb_error(refusal.error)))
        for handover in response.handovers:
            if (given := lanes.get(handover.ref)) is not None:
                self.forget(given)
                given.request.tell(HandedOver(given.attempt, handover.reason))

    def closed(self, error: MeshError) -> None:
        """Ends all attempts of the session, and the session for good: the next grant opens another."""
        lanes, unsent = list(self._lanes.values()), set(self._unsent)
        self._close()
        for lane in lanes:
            self.forget(lane)
            lane.request.tell(Broken(lane.attempt, sent=lane.ref not in unsent))

    def _welcome(self, welcome: worker_pb2.ExecuteResponse.Welcome) -> None:
        if welcome.worker.incarnation != self._incarnation:
            # The worker that the grants are for is no more.
            self._close()
            for lane in list(self._lanes.values()):
                self.forget(lane)
                lane.request.tell(Refused(lane.attempt, _wrong_incarnation()))
            return
        self._window_tokens = welcome.window_tokens
        self._welcomed = True
        self._send_starts()

    def _send_starts(self) -> None:
        outbox = self._outbox()
        if not self._welcomed or outbox is None or not self._unsent:
            return
        if self._window_tokens:  # the worker's engine waits for what was delivered, and is to be told after each write
            for lane in self._unsent.values():
                lane.outflow.sent = lane.report
        now = self._links.clock.monotonic()
        outbox.message.starts.extend(_to_pb_start(lane, now) for lane in self._unsent.values())
        self._unsent.clear()
        _flush(outbox)

    def _finish(self, lane: _Lane, finish: worker_pb2.Finish) -> None:
        self.forget(lane)
        usage = finish.usage
        lane.request.tell(
            Finished(
                lane.attempt,
                _REASONS.get(finish.reason, FinishReason.ERROR),
                Usage(usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens),
                from_pb_duration(finish.gpu_time),
                from_pb_error(finish.error) if finish.HasField("error") else None,
            )
        )

    def _close(self) -> None:
        self._links.over(self)
        assert self.task is not None
        self.task.cancel()

    def _outbox(self) -> WorkerOutbox | None:
        return None if self.session is None else self.session.outbox


def _to_pb_start(lane: _Lane, now: float) -> worker_pb2.Start:
    request = lane.request
    payload, tenant = request.payload, request.caller.tenant
    start = worker_pb2.Start(
        ref=lane.ref,
        prompt_token_ids=payload.prompt_token_ids,
        sampling=_to_pb_sampling(payload.sampling, lane.tokens.limit),
        attribution=worker_pb2.Attribution(
            tenant_id=tenant.tenant_id,
            key_id=request.caller.key.key_id,
            plan=tenant.plan,
            priced_by_plan=tenant.priced_by_plan,
            service_class=tenant.service_class.name.lower(),
            model=payload.model,
            queue_time=to_pb_duration(request.granted_at - request.admitted_at),
            client_request_id=request.ask.client_request_id,
            labels=request.ask.labels,
        ),
        remaining=to_pb_duration(max(0.0, request.deadline_at - now)),
        trace=to_pb_trace(request.phase),
    )
    start.grant.ParseFromString(lane.grant.body)
    if request.life.continued:
        start.continuation.token_ids.extend(lane.tokens.token_ids)
        start.continuation.held_text = lane.tokens.held_text
        start.continuation.completion_from = lane.base
    return start


def _to_pb_sampling(sampling: Sampling, max_tokens: int) -> common_pb2.Sampling:
    return common_pb2.Sampling(
        max_tokens=max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        seed=sampling.seed,
        stop=sampling.stop,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
    )


def _flush(outbox: WorkerOutbox) -> None:
    try:
        outbox.flush()
    except MeshError:
        # The session overflowed and is being ended; its attempts go on elsewhere.
        pass


def _wrong_incarnation() -> MeshError:
    return MeshError(Code.ABORTED, "WRONG_INCARNATION", "the worker has restarted since the grant")
