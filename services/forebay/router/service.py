"""The use cases: one request from admission to settlement, and what else the public API offers.

`Router._see_through` tells a request's ten steps (ARCHITECTURE.md has them with their files) from top to bottom. What happens on
the way reaches it through `Request.tell`; what to do about it is decided by `domain.life`; here it is carried out.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from opentelemetry import trace

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.killpoints import reached
from forebay.router.access import Caller
from forebay.router.client import Client, Finished, Started
from forebay.router.delivery import SLOW_CLIENT_S, too_slow
from forebay.router.domain.ask import Ask, Chat, LongPrompt, ModelCard, Prompt
from forebay.router.domain.decisions import Cancel, Decline, End, Report, Start, Submit, Withdraw
from forebay.router.domain.events import Reserved, UsageOverdue
from forebay.router.domain.life import deadline_exceeded
from forebay.router.domain.prefix import prefix_hashes
from forebay.router.domain.validation import check_ask, check_prompt, completion_bound
from forebay.router.held_tokens import HeldTokens
from forebay.router.metering import Metering
from forebay.router.models import Model, Models
from forebay.router.quota import Quota
from forebay.router.request import (
    LiveRequests,
    Payload,
    Request,
    client_gone,
    cut_off,
    deadline_passed,
    draining,
    no_longer_allowed,
    router_stops,
)
from forebay.router.scheduler import Scheduler
from forebay.router.tokenizer_frames import Tokens
from forebay.router.turns import tenant_full
from forebay.router.workers import Workers
from forebay.telemetry.logs import get_logger
from forebay.telemetry.tracing import in_span, trace_id, tracer
from forebay.words import instead_of

_WATCH_INTERVAL_S = 0.1
# When the router ends before its requests: for their workers' last words, and then for the last writes to clients.
LAST_USAGE_S = 1.5
LAST_WRITES_S = 1.0

log = get_logger("router")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The router's own bounds; spans in seconds.

    Attributes:
        max_requests: requests in the router at a time.
        max_tenant_requests: those of one tenant.
        max_prompt_bytes: text that is tokenised for one request.
        max_attempts: executions of one request before it is given up.
        default_deadline_s: for clients that set none.
        least_useful_s: a request with less time left is refused.
        usage_wait_s: how long a cancelled request waits for its worker's last word.
        slow_client_s: how long a client may take for the first word of its answer, and for the last.
        prefix_block_tokens: tokens per prefix hash.
    """

    max_requests: int = 4096
    max_tenant_requests: int = 1024
    max_prompt_bytes: int = 1 << 20
    max_attempts: int = 8
    default_deadline_s: float = 600.0
    least_useful_s: float = 0.1
    usage_wait_s: float = 5.0
    slow_client_s: float = SLOW_CLIENT_S
    prefix_block_tokens: int = 32


class Router:
    """The router's use cases over its ports."""

    def __init__(
        self,
        models: Models,
        quota: Quota,
        scheduler: Scheduler,
        workers: Workers,
        metering: Metering,
        objection: Callable[[Caller], MeshError | None],
        live: LiveRequests,
        clock: Clock,
        bounds: Bounds,
    ) -> None:
        """Wires the use cases.

        Args:
            models, quota, scheduler, workers, metering: the ports.
            objection: why a caller who was let in may not go on, as the policies stand now; None when nothing speaks against it.
            live: shared with the links, which only read it.
            clock: for deadlines and waits.
            bounds: its own.
        """
        self._models = models
        self._quota = quota
        self._scheduler = scheduler
        self._workers = workers
        self._metering = metering
        self._objection = objection
        self._live = live
        self._clock = clock
        self._bounds = bounds
        self._tasks: set[asyncio.Task[None]] = set()
        self._of_tenant: Counter[str] = Counter()
        # Those that hold nothing yet.
        self._admitting: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._idle = asyncio.Event()
        self._held = HeldTokens()

    async def answer(self, caller: Caller, ask: Ask, client: Client, time_left_s: float | None) -> None:
        """Answers one request; `client` has been given all of the answer when this returns.

        The request runs in a task of its own, because it outlives its client: what was used is settled whoever leaves.

        Args:
            caller: who pays.
            ask: what is asked for, not yet checked.
            client: where the answer goes.
            time_left_s: until the client stops waiting; None when it did not say.

        Raises:
            MeshError: the request was refused or failed; what the public contract says of each.
        """
        if self._draining:
            raise draining()
        if len(self._tasks) >= self._bounds.max_requests:
            message = f"this router has its {self._bounds.max_requests} requests; try again"
            raise MeshError(Code.UNAVAILABLE, "ROUTER_FULL", message, retry_after=1)
        if time_left_s is not None and time_left_s < self._bounds.least_useful_s:
            message = f"an answer takes longer than {self._bounds.least_useful_s} s; allow more"
            raise MeshError(Code.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT", message)
        tenant_id = caller.tenant.tenant_id
        if self._of_tenant[tenant_id] >= self._bounds.max_tenant_requests:
            most = self._bounds.max_tenant_requests
            message = (
                f"this router has {most} requests of the tenant, as many as it takes; try again when one has ended"
            )
            raise tenant_full(tenant_id, message, "requests_per_router", most, most, 1)
        request_id = secrets.token_hex(16)
        task = asyncio.create_task(self._see_through(request_id, caller, ask, client, time_left_s))
        self._tasks.add(task)
        self._admitting[request_id] = task
        self._of_tenant[tenant_id] += 1
        task.add_done_callback(lambda task: self._ended(task, request_id, tenant_id))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and self._draining:
                raise cut_off() from None
            request = self._live.get(request_id)
            if request is None:
                task.cancel()  # nothing is held: either not yet, or no more
            else:
                request.tell(client_gone())
            raise

    async def _see_through(
        self, request_id: str, caller: Caller, ask: Ask, client: Client, time_left_s: float | None
    ) -> None:
        """Tells the whole request. Before the reservation any error simply ends it; after it, `finally` is the only way out."""
        admitted_at = self._clock.monotonic()
        deadline_at = admitted_at + (self._bounds.default_deadline_s if time_left_s is None else time_left_s)

        # 1. The caller is verified; the model, the adapter and the system prompt follow from the policies.
        model = self._models.resolve(caller, ask.model)
        prompt = self._check(caller, ask, model)

        # 2. The prompt is rendered and tokenised, and exactly prompt + max_tokens are held under every limit at once.
        with in_span("router.tokenize"):
            tokens = await self._models.tokenise(model, prompt, caller.tenant, model.card.context_tokens)
            payload = self._payload(caller, ask, model, tokens)
            self._held.hold(request_id, caller.tenant.tenant_id, tokens.count)
        # The text is not needed any more, and may be large.
        is_chat = prompt.is_chat if isinstance(prompt, LongPrompt) else isinstance(prompt, Chat)
        ask = replace(ask, prompt=None)
        del prompt
        request = Request(
            request_id,
            caller,
            ask,
            payload,
            client,
            admitted_at=admitted_at,
            deadline_at=deadline_at,
            max_attempts=self._bounds.max_attempts,
        )
        self._describe(request, is_chat)
        with in_span("router.reserve"):
            reservation = await self._quota.reserve(request)
        reached("router.after_reserve")
        self._live[request_id] = request
        self._admitting.pop(request_id, None)
        try:
            if (objection := self._objection(caller)) is not None:
                raise objection  # it came between the key's check and the reservation
            await self._write(client.started(Started(request_id, payload.model, tokens.count, trace_id())))
            request.start_at = self._clock.monotonic() + reservation.start_after_s

            # 3. Its sizes are submitted. 4, 5. The scheduler grants it. 6. Payload and grant go to the worker.
            # 7. The engine runs it. 8. Its tokens go to the client as they come (`delivery`).
            # 9. The worker says how it ended and what was used; a lost worker means another attempt from 3 on.
            request.tell(Reserved())
            end = await self._carry_out(request)
            reached("router.before_settle")
        finally:
            # 10. The reservation is settled, once and whatever happened.
            del self._live[request_id]
            self._workers.forget(request)
            self._quota.settle(request, request.life.settlement())
        self._record(request, end)
        try:
            async with asyncio.timeout(max(0.0, deadline_at - self._clock.monotonic())):
                await request.outflow.drained()
                if end.error is None:
                    # An engine that ends by itself has held nothing back; one that was stopped has.
                    if request.tokens.release():
                        await self._write(client.deliver(request.tokens.take()))
                    await self._write(client.finished(self._finished(request, end)))
        except TimeoutError:
            raise deadline_exceeded() from None
        if end.error is not None:
            raise end.error

    async def _write(self, write: Awaitable[None]) -> None:
        """Gives the client its first or last word; only a connection that is clogged can hold that up."""
        try:
            async with asyncio.timeout(self._bounds.slow_client_s):
                await write
        except TimeoutError:
            raise too_slow() from None

    async def _carry_out(self, request: Request) -> End:
        """Does what the request's life decides, until it ends."""
        try:
            while True:
                match await request.decisions.get():
                    case Submit():
                        self._enter(request, "router.queue")
                        request.queued_at = self._clock.monotonic()
                        if request.life.attempt == 1:
                            request.enqueued_at = request.queued_at
                        self._scheduler.submit(request)
                    case Start(grant):
                        reached("router.after_grant")
                        request.granted_at = self._clock.monotonic()
                        request.queue_time_s += request.granted_at - request.queued_at
                        self._enter(request, "router.stream")
                        request.phase.set_attribute("forebay.worker", grant.worker_id)
                        request.phase.set_attribute("forebay.attempt", grant.attempt)
                        self._workers.start(request, grant)
                    case Decline(attempt):
                        self._scheduler.decline(request.id, attempt)
                    case Withdraw(attempt):
                        self._scheduler.withdraw(request.id, attempt)
                    case Cancel(reason):
                        request.stopping_at = self._clock.monotonic()
                        self._workers.cancel(request, reason)
                    case Report() as report:
                        self._metering.report(request, report)
                    case End() as end:
                        return end
        finally:
            request.phase.end()

    async def watch(self) -> None:
        """Ends what takes too long, until cancelled; a look at all requests each 100 ms needs no timer for each of them."""
        while True:
            await self._clock.sleep(_WATCH_INTERVAL_S)
            now = self._clock.monotonic()
            for request in list(self._live.values()):
                if now >= request.deadline_at:
                    request.tell(deadline_passed())
                if request.stopping_at is not None and now >= request.stopping_at + self._bounds.usage_wait_s:
                    request.tell(UsageOverdue())

    def policies_changed(self) -> None:
        """Stops the requests of tenants that are suspended and of keys that are revoked, as the policies now say."""
        for request in list(self._live.values()):
            if (objection := self._objection(request.caller)) is not None:
                request.tell(no_longer_allowed(objection))

    async def drain(self, grace_s: float, waiting: Callable[[int, float], None] = lambda left, seconds: None) -> None:
        """Refuses what comes, lets requests that run go on for `grace_s` seconds, and ends the rest: UNAVAILABLE, DRAINING.

        Returns once none is left. Workers' last words and the last writes have a bound of their own after the grace. `waiting` is
        told each second how many requests are left, and for how many seconds more they may go on.
        """
        self._draining = True
        end = self._clock.monotonic() + grace_s
        while self._tasks and (left_s := end - self._clock.monotonic()) > 0:
            waiting(len(self._tasks), left_s)
            await self._until_idle(min(1.0, left_s))
        if not self._tasks:
            return
        log.info("requests are cut off", requests=len(self._tasks))
        for request in list(self._live.values()):
            request.tell(router_stops())
        for task in self._admitting.values():
            task.cancel()
        await self._until_idle(LAST_USAGE_S)
        for request in list(self._live.values()):
            request.tell(UsageOverdue())
        await self._until_idle(LAST_WRITES_S)
        for task in list(self._tasks):
            task.cancel()

    async def _until_idle(self, seconds: float) -> None:
        """Returns once no request is left, or after so many seconds."""
        if not self._tasks:
            return
        self._idle.clear()
        waits = [asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(self._clock.sleep(seconds))]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def settle_all(self) -> None:
        """Ends every request that is left, for the router's own end, and returns once each is settled."""
        for request in list(self._live.values()):
            request.tell(client_gone())
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def count_tokens(
        self, caller: Caller, model_name: str, prompt: Prompt | LongPrompt | None
    ) -> tuple[int, int]:
        """Returns a prompt's tokens, template and system prompt included, and how many more the model's context has room for.

        Raises:
            MeshError: NOT_FOUND for the model, INVALID_ARGUMENT for the prompt, RESOURCE_EXHAUSTED when too many wait.
        """
        if self._draining:
            raise draining()
        model = self._models.resolve(caller, model_name)
        checked = check_prompt(
            prompt,
            model.card,
            model.tokenizer.vocabulary,
            bool(caller.tenant.system_prompt),
            self._bounds.max_prompt_bytes,
        )
        size = (await self._models.tokenise(model, checked, caller.tenant, most_ids=0)).count
        return size, max(0, model.card.context_tokens - size)

    def list_models(self, caller: Caller, after: str, count: int) -> tuple[list[ModelCard], bool]:
        """Returns up to `count` of the caller's models whose names follow on `after`, in order, and whether there are more."""
        cards = [model.card for model in self._models.of(caller) if model.card.name > after]
        return cards[:count], len(cards) > count

    def _check(self, caller: Caller, ask: Ask, model: Model) -> Prompt | LongPrompt:
        """Returns the prompt of a request that is well formed and can be served; raises as `validation` says."""
        prompt = check_ask(
            ask,
            model.card,
            model.tokenizer.vocabulary,
            bool(caller.tenant.system_prompt),
            self._bounds.max_prompt_bytes,
        )
        if (adapter := caller.adapter(ask.adapter)) and adapter not in caller.tenant.adapters:
            # The name is the client's, of any length, and an error has room for little.
            raise MeshError(
                Code.NOT_FOUND,
                "ADAPTER_NOT_FOUND",
                f"the tenant has no adapter {adapter[:100]!r}; {instead_of(adapter, caller.tenant.adapters)}",
            )
        return prompt

    def _payload(self, caller: Caller, ask: Ask, model: Model, tokens: Tokens) -> Payload:
        max_tokens = completion_bound(tokens.count, ask.sampling, model.card, ask.least_max_tokens)
        # The seed is chosen here, so that another worker can go on with the same one.
        seed = ask.sampling.seed if ask.sampling.seed is not None else secrets.randbits(63)
        block, adapter = self._bounds.prefix_block_tokens, caller.adapter(ask.adapter)
        return Payload(
            model.card.name,
            tokens.ids,
            replace(ask.sampling, max_tokens=max_tokens, seed=seed),
            max_tokens,
            prefix_hashes(tokens.ids, block, caller.tenant.isolation_key, scope=f"{model.card.name}/{adapter}"),
            block,
            adapter,
        )

    def _describe(self, request: Request, is_chat: bool) -> None:
        """Puts what the request is onto the call's span, in the terms of OpenTelemetry's conventions for generative AI."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attributes(
                {
                    "gen_ai.operation.name": "chat" if is_chat else "text_completion",
                    "gen_ai.provider.name": "forebay",
                    "gen_ai.request.model": request.payload.model,
                    "gen_ai.request.max_tokens": request.payload.max_tokens,
                    "gen_ai.usage.input_tokens": len(request.payload.prompt_token_ids),
                    "gen_ai.response.id": request.id,
                    "forebay.tenant": request.caller.tenant.tenant_id,
                    "forebay.key_id": request.caller.key.key_id,
                }
            )

    def _record(self, request: Request, end: End) -> None:
        """Puts how the request ended onto the call's span, while there is one, and into the log if something is broken."""
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("gen_ai.usage.output_tokens", request.life.usage.completion_tokens)
            span.set_attribute("gen_ai.response.finish_reasons", [end.reason.name.lower()])
        if end.error is not None and end.error.code is Code.INTERNAL:
            log.warning(
                "request failed",
                request_id=request.id,
                tenant=request.caller.tenant.tenant_id,
                attempt=request.life.attempt,
                reason=end.error.reason,
            )

    def _finished(self, request: Request, end: End) -> Finished:
        first = request.first_output_at
        return Finished(
            end.reason,
            request.life.usage,
            None if first is None else first - request.admitted_at,
            request.queue_time_s,
            request.shortened,
        )

    def _enter(self, request: Request, phase: str) -> None:
        request.phase.end()
        request.phase = tracer().start_span(phase)

    def _ended(self, task: asyncio.Task[None], request_id: str, tenant_id: str) -> None:
        self._tasks.discard(task)
        self._admitting.pop(request_id, None)
        if not self._tasks:
            self._idle.set()
        self._held.release(request_id)
        self._of_tenant[tenant_id] -= 1
        if not self._of_tenant[tenant_id]:
            del self._of_tenant[tenant_id]
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, MeshError):
            # A bug. A caller that still waits hears of it, but most likely nobody does.
            log.error("request broke", exc_info=error)
