"""The scheduler port over one session: submissions, cancellations and declines of all requests share its messages.

The router's view is the truth about its requests (rule P1), so the link keeps none of its own: on each new session it reads from
the live requests what is held and what is queued, and says it once the scheduler has said that it leads. A request that is queued
while no scheduler leads waits for one, within a bound.
"""

from __future__ import annotations

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.router.domain.events import Grant, Granted, Rejected
from forebay.router.domain.life import State
from forebay.router.request import LiveRequests, Request
from forebay.rpc.leader import MAX_BACKOFF_S, LeaderChannel
from forebay.rpc.session import Outbox, SessionClient
from forebay.rpc.status import from_pb_duration, from_pb_error, to_pb_duration
from forebay.telemetry.tracing import to_pb_trace

CHECK_EVERY_S = 1.0

SchedulerOutbox = Outbox[scheduler_pb2.ScheduleRequest]

_HELD = {
    State.GRANTED: scheduler_pb2.HeldAttempt.STATE_GRANTED,
    State.RUNNING: scheduler_pb2.HeldAttempt.STATE_RUNNING,
    State.STOPPING: scheduler_pb2.HeldAttempt.STATE_RUNNING,
}


class SchedulerLink:
    """The scheduler over its session; run `session.run` and `watch` beside everything else.

    Attributes:
        session: the session, for the health check.
    """

    def __init__(
        self, schedulers: LeaderChannel, router: common_pb2.Peer, live: LiveRequests, clock: Clock, wait_s: float
    ) -> None:
        """Prepares the link; nothing is sent before `session.run`.

        Args:
            schedulers: the way to the one that leads.
            router: this router.
            live: its requests.
            clock: for waits.
            wait_s: how long a queued request waits while no scheduler leads.
        """
        self._schedulers = schedulers
        self._router = router
        self._live = live
        self._clock = clock
        self._wait_s = wait_s
        self._seen_at = clock.monotonic()
        # From the welcome on.
        self._outbox: SchedulerOutbox | None = None
        self.session: SessionClient[scheduler_pb2.ScheduleRequest, scheduler_pb2.ScheduleResponse] = SessionClient(
            "scheduler",
            lambda: scheduler_pb2_grpc.SchedulerServiceStub(schedulers.channel).Schedule(),
            scheduler_pb2.ScheduleRequest,
            self,
            max_backoff_s=MAX_BACKOFF_S,
        )

    def submit(self, request: Request) -> None:
        """Queues the present attempt; as the port says."""
        if self._outbox is not None:
            self._outbox.message.submissions.append(self._to_pb_submission(request))
            _flush(self._outbox)

    def withdraw(self, request_id: str, attempt: int) -> None:
        """Says that an attempt is over or no longer wanted. A scheduler that is away forgets it by itself."""
        if self._outbox is not None:
            self._outbox.message.cancellations.add(request_id=request_id, attempt=attempt)
            _flush(self._outbox)

    def decline(self, request_id: str, attempt: int) -> None:
        """Says that a grant is not used. A scheduler that is away forgets it by itself."""
        if self._outbox is not None:
            self._outbox.message.declines.add(request_id=request_id, attempt=attempt)
            _flush(self._outbox)

    async def watch(self) -> None:
        """Ends queued requests that have waited too long for a scheduler that is away, until cancelled."""
        while True:
            await self._clock.sleep(CHECK_EVERY_S)
            now = self._clock.monotonic()
            if self.session.connected:
                self._seen_at = now
                continue
            for request in list(self._live.values()):
                if request.life.state is State.QUEUED and now - max(self._seen_at, request.queued_at) >= self._wait_s:
                    request.tell(Rejected(request.life.attempt, _unavailable()))

    def opened(self, outbox: SchedulerOutbox) -> None:
        """Says who calls."""
        outbox.message.hello.router.CopyFrom(self._router)
        outbox.message.hello.highest_epoch = self._schedulers.epoch
        _flush(outbox)

    def _welcomed(self, welcome: scheduler_pb2.Welcome) -> None:
        """Says what is held and what is queued, to a scheduler that leads."""
        self._schedulers.welcomed(welcome.epoch, welcome.leader_address)
        outbox = self._outbox = self.session.outbox
        assert outbox is not None
        message = outbox.message
        for request in self._live.values():
            life = request.life
            if life.state is State.QUEUED:
                message.submissions.append(self._to_pb_submission(request, again=True))
            elif life.state in _HELD and life.grant is not None:
                message.held.add(
                    ref=_ref(request),
                    state=_HELD[life.state],
                    worker_id=life.grant.worker_id,
                    worker_incarnation=life.grant.worker_incarnation,
                    submission=self._to_pb_submission(request, again=True),
                )
        message.held_complete = True
        _flush(outbox)

    def received(self, response: scheduler_pb2.ScheduleResponse) -> None:
        """Takes grants and rejections."""
        if response.HasField("welcome"):
            self._welcomed(response.welcome)
        for granted in response.grants:
            request = self._live.get(granted.ref.request_id)
            if request is None:
                self.decline(granted.ref.request_id, granted.ref.attempt)
            else:
                request.tell(Granted(_from_pb_grant(granted)))
        for rejection in response.rejections:
            request = self._live.get(rejection.ref.request_id)
            if request is not None:
                request.tell(Rejected(rejection.ref.attempt, from_pb_error(rejection.error)))

    def closed(self, error: MeshError) -> None:
        """Looks elsewhere; what runs goes on, and what is queued is said again on the next session."""
        self._outbox = None
        self._schedulers.lost(error)

    def _to_pb_submission(self, request: Request, *, again: bool = False) -> scheduler_pb2.Submission:
        tenant, payload, life = request.caller.tenant, request.payload, request.life
        now = self._clock.monotonic()
        remaining_s = max(0.0, request.deadline_at - now)
        submission = scheduler_pb2.Submission(
            ref=_ref(request),
            tenant_id=tenant.tenant_id,
            key_id=request.caller.key.key_id,
            service_class=quota_pb2.ServiceClass.ValueType(tenant.service_class.value),
            weight_milli=tenant.weight_milli,
            model=payload.model,
            pool=tenant.pool,
            adapter=payload.adapter,
            prompt_tokens=len(payload.prompt_token_ids) + life.base,
            max_tokens=request.tokens.limit - life.base,
            least_max_tokens=max(0, request.ask.least_max_tokens - life.base),
            pinned=payload.sampling.penalised,
            delivered_tokens=life.base,
            prefix_hashes=payload.prefix_hashes,
            prefix_block_tokens=payload.prefix_block_tokens,
            remaining=to_pb_duration(remaining_s),
            trace=to_pb_trace(request.phase),
        )
        if request.ask.queue_timeout_s is not None:
            # A client may say any time, and more than a message can.
            left_s = min(request.ask.queue_timeout_s - (now - request.queued_at), remaining_s)
            submission.queue_timeout.CopyFrom(to_pb_duration(max(0.0, left_s)))
        if again or life.attempt > 1:
            submission.waited.CopyFrom(to_pb_duration(now - request.enqueued_at))
        if life.excluded is not None and not again:
            # The scheduler takes this for the life that it knows; by the time it is said again, that may be another one.
            submission.excluded_workers.append(life.excluded)
        if request.start_at > now:
            submission.start_after.CopyFrom(to_pb_duration(request.start_at - now))
        return submission


def _ref(request: Request) -> scheduler_pb2.AttemptRef:
    return scheduler_pb2.AttemptRef(request_id=request.id, attempt=request.life.attempt)


def _from_pb_grant(message: scheduler_pb2.Grant) -> Grant:
    return Grant(
        attempt=message.ref.attempt,
        worker_id=message.worker_id,
        worker_incarnation=message.worker_incarnation,
        worker_address=message.worker_address,
        waited_s=from_pb_duration(message.waited),
        max_tokens=message.max_tokens,
        body=message.SerializeToString(),
    )


def _unavailable() -> MeshError:
    message = "the scheduler does not answer; try again"
    return MeshError(Code.UNAVAILABLE, "SCHEDULER_UNAVAILABLE", message, retry_after=1)


def _flush(outbox: SchedulerOutbox) -> None:
    try:
        outbox.flush()
    except MeshError:
        # The session overflowed and is being ended; the next one is told all that is held and queued.
        pass
