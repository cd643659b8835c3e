"""Wires the quota service together."""

from __future__ import annotations

from contextlib import AsyncExitStack

from forebay.api.quota.v1 import quota_pb2_grpc
from forebay.clock import Clock, SteadyClock, SystemClock
from forebay.journal import Journal
from forebay.lifecycle import background, run_service
from forebay.policy.model import LossPolicy
from forebay.quota import edge_servicer
from forebay.quota.budget_check import BudgetCheck
from forebay.quota.config import QuotaConfig
from forebay.quota.counters import CounterStore
from forebay.quota.edge import Edge
from forebay.quota.local_shares import LocalShares
from forebay.quota.metering_link import MeteringLink
from forebay.quota.metering_sums import MeteringSums
from forebay.quota.policies import PolicyFeed
from forebay.quota.policy_files import PolicyFiles
from forebay.quota.policy_servicer import PolicyServicer
from forebay.quota.price_link import PriceLink
from forebay.quota.prices import Prices
from forebay.quota.rebuilding_counters import RebuildingCounters
from forebay.quota.redis_counters import RedisCounters
from forebay.quota.redis_safety import RedisSafety
from forebay.quota.refused_calls import RefusedCalls
from forebay.quota.safety_gate import SafetyGate
from forebay.quota.served import Served
from forebay.quota.service import Quota
from forebay.quota.servicer import QuotaServicer
from forebay.quota.sql_policy_store import SqlPolicyStore
from forebay.quota.stored_policies import StoredPolicies
from forebay.quota.surviving_counters import SurvivingCounters
from forebay.quota.sweeper import Sweeper
from forebay.quota.tenant_servicer import TenantServicer
from forebay.rpc.client import connect
from forebay.rpc.server import RpcServer

QUOTA = "forebay.api.quota.v1.QuotaService"
POLICY = "forebay.api.quota.v1.PolicyService"
TENANT = "forebay.api.quota.v1.TenantService"


async def policies(
    config: QuotaConfig, clock: Clock, stack: AsyncExitStack, served: Served
) -> tuple[PolicyFeed, TenantServicer, RefusedCalls | None]:
    """Returns the policies in force, who administers them, and where there is a store, which has a log, who keeps it."""
    if config.policy_url is None:
        assert config.tenants_file  # the configuration sees to it
        assert config.keys_file
        files = PolicyFiles(config.tenants_file, config.keys_file, config.pepper_bytes(), config.plans_file)
        feed = PolicyFeed(files.load(), clock)
        await stack.enter_async_context(background(files.follow(feed, clock), "policy files"))
        return feed, TenantServicer(feed, clock), None
    store = SqlPolicyStore(config.policy_url)
    stack.callback(store.close)
    await store.migrate()
    stored = StoredPolicies(store, config.pepper_bytes(), clock)
    sources = (config.plans_file, config.tenants_file, config.keys_file)
    feed = await stored.start(*sources)
    await stack.enter_async_context(background(stored.follow(*sources), "stored policies"))
    refused = RefusedCalls(store, clock)
    await stack.enter_async_context(background(refused.run(), "refused calls"))
    return feed, TenantServicer(feed, clock, stored, served), refused


async def build(config: QuotaConfig, stack: AsyncExitStack) -> RpcServer:
    """Returns the server, ready to start; what runs beside it ends with `stack`."""
    clock = SteadyClock(SystemClock())
    served = Served()
    feed, administration, refused = await policies(config, clock, stack, served)
    redis = RedisCounters(config.redis_url, config.terms())
    await stack.enter_async_context(background(redis.run(), "counters"))
    metering = sums = None
    if config.metering_address is not None:
        metering = connect(config.metering_address, caller=config.id, service="metering", tls=config.tls)
        stack.push_async_callback(metering.close)
        sums = MeteringSums(metering)
    shared = RebuildingCounters(redis, feed, sums, clock.now)
    counters: CounterStore = shared
    prices = Prices()
    shares: LocalShares | None = None
    if config.journal_file is not None:
        journal = Journal(config.journal_file)

        def fails_open(tenant_id: str) -> bool:
            tenant = feed.policies.tenants.get(tenant_id)
            return tenant is not None and tenant.loss_policy is LossPolicy.FAIL_OPEN

        counters = surviving = SurvivingCounters(
            shared,
            clock,
            config.terms(),
            fails_open,
            config.replicas,
            config.fail_open_seconds,
            journal,
            claim=lambda: local_shares.claim(),
            left=lambda row: local_shares.left(row),
        )
        shares = local_shares = LocalShares(
            feed,
            surviving,
            prices,
            clock,
            replicas=config.replicas,
            lease_s=config.fail_open_seconds,
            global_limit=config.global_requests_per_second,
            file=config.journal_file.with_name(f"{config.journal_file.name}.shares"),
        )
        await stack.enter_async_context(background(surviving.run(), "journal"))
        await stack.enter_async_context(background(local_shares.run(), "local shares"))
    gate = None
    if config.global_requests_per_second:
        safety = RedisSafety(config.redis_url)
        stack.push_async_callback(safety.close)
        gate = SafetyGate(safety, clock, config.global_requests_per_second)

    link = check = None
    if metering is not None and sums is not None:
        link = MeteringLink(metering, counters, clock)
        check = BudgetCheck(feed, counters, sums, clock)
        await stack.enter_async_context(background(PriceLink(metering, prices).run(), "prices"))
        await stack.enter_async_context(background(link.run(), "usage"))
        await stack.enter_async_context(background(check.run(), "budget check"))

    server = RpcServer(
        config.listen,
        tls=config.tls,
        max_connections=config.max_connections,
        channelz=config.channelz,
        refused=refused.note if refused else None,
    )
    use_cases = Quota(feed, counters, prices, clock.now, gate, link.look_up if link is not None else None)
    quota = QuotaServicer(use_cases, clock, config.lease_seconds, check, shares)
    server.add(quota_pb2_grpc.add_QuotaServiceServicer_to_server, quota, QUOTA)
    server.add(quota_pb2_grpc.add_PolicyServiceServicer_to_server, PolicyServicer(feed, served), POLICY)
    server.add(quota_pb2_grpc.add_TenantServiceServicer_to_server, administration, TENANT)
    edge = edge_servicer.EdgeServicer(Edge(feed, counters, config.pepper_bytes(), clock))
    server.add(edge_servicer.add_edge_servicer_to_server, edge, edge_servicer.FULL_NAME)
    server.set_serving(POLICY, True)
    server.set_serving(TENANT, True)

    def counters_reachable(reachable: bool) -> None:
        server.set_serving(QUOTA, reachable)
        server.set_serving(edge_servicer.FULL_NAME, reachable)

    sweeper = Sweeper(counters, clock, config.lease_seconds, counters_reachable)
    await stack.enter_async_context(background(sweeper.run(), "sweeper"))
    return server


def main() -> None:
    """Runs the service as a process."""
    run_service(QuotaConfig, build)
