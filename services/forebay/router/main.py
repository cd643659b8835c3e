"""Wires the router."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2
from forebay.api.router.v1 import router_pb2_grpc
from forebay.clock import SteadyClock, SystemClock
from forebay.journal import Journal
from forebay.lifecycle import background, run_service
from forebay.memory import give_back_early
from forebay.policy.watcher import PolicyWatcher
from forebay.router import servicer, usage_servicer
from forebay.router.access import Access
from forebay.router.config import ModelConfig, RouterConfig
from forebay.router.delivery import Delivery
from forebay.router.domain.ask import ModelCard
from forebay.router.hf_tokenizer import HfTokenizer
from forebay.router.intake import Intake
from forebay.router.lifetime import RouterServer
from forebay.router.local_admission import LocalAdmission
from forebay.router.metering_link import MeteringLink
from forebay.router.models import Model, Models
from forebay.router.quota_link import QuotaLink
from forebay.router.request import LiveRequests
from forebay.router.scheduler_link import SchedulerLink
from forebay.router.service import LAST_USAGE_S, LAST_WRITES_S, Bounds, Router
from forebay.router.servicer import RouterServicer
from forebay.router.tokenizer_frames import ModelFiles
from forebay.router.tokenizer_processes import TokenizerProcesses
from forebay.router.usage_cursor import UsageCursors
from forebay.router.usage_servicer import UsageServicer
from forebay.router.worker_link import WorkerLinks
from forebay.rpc.client import connect
from forebay.rpc.leader import HUNG_AFTER_S, LeaderChannel
from forebay.rpc.server import RpcServer
from forebay.telemetry.logs import get_logger
from forebay.telemetry.notify import notify

# After the last call has ended its settlement still has to reach quota, and its report metering; if they are away, nobody waits.
_LAST_SETTLEMENTS_S = 2.0

log = get_logger("router")


async def build(config: RouterConfig, stack: AsyncExitStack) -> RpcServer:
    """Returns the router's server, not yet started; what runs beside it ends with `stack`."""
    server = RouterServer(
        config.listen,
        lambda grace_s: drain(grace_s),
        LAST_USAGE_S + LAST_WRITES_S,
        tls=config.public_tls,
        max_connections=config.max_connections,
        max_message_bytes=config.max_message_bytes,
        channelz=config.channelz,
        public=True,
    )
    clock = SteadyClock(SystemClock())
    me = common_pb2.Peer(id=config.id, incarnation=int(clock.now() * 1e6))
    live: LiveRequests = {}

    # What a request needs, in the order in which it needs it.
    quota_channel = connect(config.quota_address, caller=config.id, service="quota", tls=config.tls)
    stack.push_async_callback(quota_channel.close)
    policies = PolicyWatcher(
        quota_channel,
        me,
        quota_pb2.WATCHER_KIND_ROUTER,
        clock,
        changed=lambda: router.policies_changed(),
        serves=[(model.name, "") for model in config.models],
    )
    access = Access(
        policies,
        config.pepper_bytes(),
        clock,
        first_policies_s=config.dependency_wait_s,
        honour_cut_off_s=config.policy_honour_s,
    )

    intake = Intake(access, config.max_tenant_requests)

    tokenizers = await stack.enter_async_context(
        TokenizerProcesses(
            [ModelFiles(model.name, str(model.directory), model.context_tokens) for model in config.models],
            processes=config.tokenizer_processes,
            max_waiting=config.max_tenant_requests,
            max_prompt_bytes=config.max_prompt_bytes,
        )
    )
    models = Models([_model(model) for model in config.models], tokenizers)

    local: LocalAdmission | None = None
    if config.journal_file is not None:
        journal = Journal(config.journal_file)
        stack.push_async_callback(journal.close)
        local = LocalAdmission(journal, me, clock)
    quota = QuotaLink(quota_channel, me, live, clock, config.dependency_wait_s, local=local)

    schedulers = LeaderChannel(
        config.scheduler_address,
        lambda address: connect(
            address, caller=config.id, service="scheduler", tls=config.tls, hung_after_s=HUNG_AFTER_S
        ),
    )
    stack.push_async_callback(schedulers.close)
    scheduler = SchedulerLink(schedulers, me, live, clock, config.scheduler_wait_s)

    delivery = Delivery(clock, config.flushers, config.slow_client_s)
    workers = WorkerLinks(me, delivery, clock, config.tls)

    metering_channel = connect(config.metering_address, caller=config.id, service="metering", tls=config.tls)
    stack.push_async_callback(metering_channel.close)
    metering = MeteringLink(metering_channel, me, clock)

    bounds = Bounds(
        max_requests=config.max_requests,
        max_tenant_requests=config.max_tenant_requests,
        max_prompt_bytes=config.max_prompt_bytes,
        max_attempts=config.max_attempts,
        default_deadline_s=config.default_deadline_s,
        usage_wait_s=config.usage_wait_s,
        slow_client_s=config.slow_client_s,
        prefix_block_tokens=config.prefix_block_tokens,
    )
    router = Router(models, quota, scheduler, workers, metering, access.objection, live, clock, bounds)

    # What the public reaches.
    server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, RouterServicer(router, intake), servicer.FULL_NAME)
    usage = UsageServicer(access, intake, metering_channel, UsageCursors(config.pepper_bytes()))
    server.add(router_pb2_grpc.add_UsageServiceServicer_to_server, usage, usage_servicer.FULL_NAME)

    async def drain(grace_s: float) -> None:
        usage.drain()
        await router.drain(grace_s, _tell_who_waits)

    # What runs beside it; at the end, in reverse order, requests are settled while the links still stand.
    for work, name in (
        (policies.run(), "policies"),
        (quota.session.run(), "quota session"),
        (quota.keep_alive(), "quota leases"),
        (scheduler.session.run(), "scheduler session"),
        (scheduler.watch(), "scheduler watch"),
        (metering.session.run(), "metering session"),
        (metering.gather(), "reports"),
        (delivery.run(), "delivery"),
        (workers.run(), "worker sessions"),
        (router.watch(), "request watch"),
    ):
        await stack.enter_async_context(background(work, name))
    ready = _serve_when_ready(server, policies, quota, scheduler)
    await stack.enter_async_context(background(ready, "readiness", ends=True))
    await stack.enter_async_context(background(_warm(tokenizers, config), "tokenizer processes", ends=True))
    stack.push_async_callback(_settle_all, router, quota, metering)
    return server


def _model(config: ModelConfig) -> Model:
    card = ModelCard(config.name, config.context_tokens, config.default_max_tokens)
    return Model(card, HfTokenizer(config.directory))


async def _serve_when_ready(
    server: RpcServer, policies: PolicyWatcher, quota: QuotaLink, scheduler: SchedulerLink
) -> None:
    """Says that the router can do its job once it knows the tenants and has met quota and scheduler once."""
    await policies.wait_ready()
    server.set_serving(usage_servicer.FULL_NAME, True)
    await quota.session.wait_connected()
    await scheduler.session.wait_connected()
    server.set_serving(servicer.FULL_NAME, True)


def _tell_who_waits(requests: int, seconds: float) -> None:
    notify(
        X_REQUESTS=requests,
        STATUS=f"waiting for {requests} {'request' if requests == 1 else 'requests'}, at most {seconds:.0f} s",
    )


async def _warm(tokenizers: TokenizerProcesses, config: RouterConfig) -> None:
    """Starts the tokenizer processes before the first long prompt comes, unless they are to wait for it."""
    if config.warm_tokenizers:
        await tokenizers.warm()


async def _settle_all(router: Router, quota: QuotaLink, metering: MeteringLink) -> None:
    """Settles what is left, within a bound; what quota does not hear of it charges by what was observed."""
    try:
        async with asyncio.timeout(_LAST_SETTLEMENTS_S):
            await router.settle_all()
            await asyncio.gather(quota.all_settled(), metering.all_recorded())
    except TimeoutError:
        log.warning("quota or metering does not answer; what they were not told is charged by what was observed")


def main() -> None:
    """Runs the router until SIGTERM."""
    give_back_early()
    run_service(RouterConfig, build)


if __name__ == "__main__":
    main()
