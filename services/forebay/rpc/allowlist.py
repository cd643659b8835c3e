"""Which service may call which rpc. What is not listed is refused, and a new rpc is so closed until somebody opens it here."""

from __future__ import annotations

from collections.abc import Mapping

SERVICES = ("router", "quota", "scheduler", "worker", "metering")
# An operator's certificate, for the command line; and a scraper's or a probe's, which may look and nothing else.
ADMIN = "admin"
PROBE = "probe"
# A proxy in front of the routers, such as Envoy, that asks whether it may let a request through.
EDGE = "edge"

# Roles of people, by the name in their certificates; what each may do, quota says.
ROLES = (ADMIN, "operator", "viewer")
TENANT_RPCS = (
    "ListTenants", "GetTenant", "CreateTenant", "UpdateTenant", "DeleteTenant", "SuspendTenant", "ResumeTenant",
    "ImportTenants", "ListPlans", "UpdatePlan", "ListKeys", "IssueKey", "RotateKey", "RevokeKey", "ListAuditEvents",
)  # fmt: skip

_EVERYONE = frozenset({*SERVICES, ADMIN, PROBE})
_API = "/forebay.api"

# The public API: the tenant's key decides, in the handler. Only a router serves it.
PUBLIC: frozenset[str] = frozenset(
    {
        *(
            f"{_API}.router.v1.RouterService/{rpc}"
            for rpc in ("Generate", "StreamGenerate", "CountTokens", "ListModels", "Embed")
        ),
        *(f"{_API}.router.v1.UsageService/{rpc}" for rpc in ("StreamUsage", "SumUsage")),
    }
)

INTERNAL: Mapping[str, frozenset[str]] = {
    f"{_API}.{rpc}": frozenset(callers)
    for rpc, callers in {
        "quota.v1.QuotaService/Reserve": ("router",),
        "quota.v1.QuotaService/Renew": ("router",),
        "quota.v1.QuotaService/Settle": ("router",),
        "quota.v1.QuotaService/Session": ("router",),
        "quota.v1.QuotaService/Peek": ("router", ADMIN),
        "quota.v1.QuotaService/ListReservations": (ADMIN,),
        "quota.v1.PolicyService/WatchPolicies": ("router", "scheduler", "worker", "metering"),
        # Whether a role may do what it asks for is decided by the service, which keeps an audit log of it.
        **{f"quota.v1.TenantService/{rpc}": ROLES for rpc in TENANT_RPCS},
        "quota.v1.RateLimitService/ShouldRateLimit": (EDGE, ADMIN),
        "scheduler.v1.SchedulerService/Schedule": ("router",),
        "scheduler.v1.SchedulerService/Attach": ("worker",),
        "scheduler.v1.SchedulerService/DescribePools": (ADMIN,),
        "worker.v1.WorkerService/Execute": ("router",),
        "worker.v1.WorkerService/DescribeWorker": (ADMIN,),
        "worker.v1.WorkerService/Drain": (ADMIN,),
        "metering.v1.MeteringService/Record": ("router", "worker"),
        "metering.v1.MeteringService/StreamUsage": ("router", "quota", ADMIN),
        "metering.v1.MeteringService/SumUsage": ("router", "quota", ADMIN),
        "metering.v1.MeteringService/WatchPrices": ("router", "quota", ADMIN),
    }.items()
} | {
    # The same rpc under the name that Envoy calls.
    "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit": frozenset({EDGE, ADMIN}),
}

_GRPC: Mapping[str, frozenset[str]] = {
    "/grpc.health.v1.Health/Check": _EVERYONE | {EDGE},
    "/grpc.health.v1.Health/Watch": _EVERYONE,
    "/grpc.health.v1.Health/List": _EVERYONE,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": frozenset({ADMIN}),
}


def allowed(method: str) -> frozenset[str]:
    """Returns the services that may call an internal rpc; nobody for one that is not known."""
    return (
        INTERNAL.get(method)
        or _GRPC.get(method)
        or (frozenset({ADMIN}) if method.startswith("/grpc.channelz.") else frozenset())
    )
