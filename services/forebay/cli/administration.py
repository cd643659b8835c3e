"""`forebay tenants|keys|plans|audit`: what administrators change, asked of quota with the admin's certificate."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from rich.text import Text

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.cli import figures
from forebay.cli.directory import CALL_WITHIN_S, pages
from forebay.cli.operator import Operator
from forebay.cli.rows import Rows
from forebay.cli.settings import assign, change_in_words, described, paths_of
from forebay.cli.terminal import print_json, terminal
from forebay.errors import FieldViolation, MeshError
from forebay.policy.messages import from_pb_key, from_pb_limits

# A file of some megabytes takes quota a while.
IMPORT_WITHIN_S = 120.0


async def call(operator: Operator, rpc: str, request: Any, within_s: float = CALL_WITHIN_S) -> Any:
    """Calls quota's TenantService; changes get a request id. What quota warns of is printed to standard error.

    Raises:
        MeshError: quota cannot be reached, or refuses.
    """
    if hasattr(request, "request_id"):
        request.request_id = secrets.token_hex(16)
    async with operator.channel("quota") as channel:
        with operator.errors("quota"):
            response = await getattr(quota_pb2_grpc.TenantServiceStub(channel), rpc)(request, timeout=within_s)
    for warning in getattr(response, "warnings", ()):
        terminal(stderr=True).print(f"warning: {warning.field} {warning.description}", style="yellow", markup=False)
    return response


async def show_tenant(operator: Operator, tenant_id: str, as_json: bool) -> None:
    """Prints all that is known of a tenant; what is its own and not the plan's is marked."""
    response = await call(operator, "GetTenant", quota_pb2.GetTenantRequest(tenant_id=tenant_id))
    print_tenant(
        response.details if response.HasField("details") else quota_pb2.Tenant(policy=response.tenant), as_json
    )


async def show_limits(operator: Operator, tenant_id: str, key_id: str, as_json: bool) -> None:
    """Prints what of each limit is used: the tenant's, those on single models, and a key's where one is named.

    Raises:
        MeshError: quota or its counters cannot be reached, or quota refuses.
    """
    tenant = (await call(operator, "GetTenant", quota_pb2.GetTenantRequest(tenant_id=tenant_id))).tenant
    limits: dict[tuple[str, str], quota_pb2.LimitState] = {}
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        for model in ("", *sorted(tenant.model_limits)):
            request = quota_pb2.PeekRequest(tenant_id=tenant_id, key_id=key_id, model=model)
            with operator.errors("quota"):
                response = await stub.Peek(request, timeout=CALL_WITHIN_S)
            for state in response.limits:
                limits.setdefault((state.subject, state.limit), state)
    print_limits(quota_pb2.PeekResponse(limits=limits.values()), as_json)


def print_limits(response: quota_pb2.PeekResponse, as_json: bool) -> None:
    """Prints the state of limits, a line for each, in the words and units of the tenants file."""
    if as_json:
        for state in response.limits:
            print_json(state)
        return
    rows = Rows("on", "limit", figures=("value", "used"), more=("free again in", "ledger"), texts=("ledger",))
    for state in response.limits:
        write = figures.usd if state.limit.endswith("_nano_usd") else "{:,}".format
        resets_in = figures.wait(state.resets_in.ToMilliseconds() / 1000) if state.HasField("resets_in") else ""
        ledger = Text("")
        if state.HasField("comparison"):
            difference = state.comparison.difference
            ledger = (
                Text(f"{'+' if difference > 0 else ''}{write(difference)}", style="red")
                if difference
                else Text("equal")
            )
            ledger.append(f" at {_moment(state.comparison.as_of)}", style="default")
        rows.add(
            _subject(state.subject), state.limit.replace("_nano_usd", "_usd"), write(state.value), write(state.used),
            resets_in, ledger,
        )  # fmt: skip
    rows.print("no limit holds")


def print_tenant(tenant: quota_pb2.Tenant, as_json: bool) -> None:
    """Prints a tenant, a line for each field that is set."""
    if as_json:
        return print_json(tenant)
    own = set(tenant.overrides.paths)
    rows = Rows("field", "value", "set", texts=("value",))
    for path, name, value in described(tenant.policy):
        rows.add(name, value, "own" if path in own or path.partition(".")[0] in own else "")
    if tenant.etag:
        rows.add("etag", tenant.etag)
        rows.add("updated", _moment(tenant.updated_at))
    rows.print("nothing is known of it")
    return None


async def update_tenant(
    operator: Operator, tenant_id: str, plan: str | None, settings: Sequence[str], unset: Sequence[str], as_json: bool
) -> None:
    """Changes fields of a tenant, and prints it."""
    request = quota_pb2.UpdateTenantRequest(tenant=quota_pb2.TenantPolicy(tenant_id=tenant_id))
    paths = assign(request.tenant, settings)
    unset_paths = [path for name in unset for path in _unset(request.tenant, name)]
    if twice := [path for path in unset_paths if path in paths]:
        raise ValueError(f"{twice[0]} is both set and unset; say one of them")
    paths += unset_paths
    if plan is not None:
        if "plan" in paths:
            raise ValueError("plan is given twice: by --plan, and by --set or --unset")
        request.tenant.plan = plan
        paths.append("plan")
    if not paths:
        raise ValueError("say what is to change: --plan, --set or --unset")
    request.update_mask.CopyFrom(FieldMask(paths=paths))
    print_tenant((await call(operator, "UpdateTenant", request)).tenant, as_json)


async def create_tenant(operator: Operator, tenant_id: str, plan: str, settings: Sequence[str], as_json: bool) -> None:
    """Makes a tenant, and prints it."""
    request = quota_pb2.CreateTenantRequest(tenant=quota_pb2.TenantPolicy(tenant_id=tenant_id, plan=plan))
    request.overrides.CopyFrom(FieldMask(paths=assign(request.tenant, settings)))
    print_tenant((await call(operator, "CreateTenant", request)).tenant, as_json)


async def import_tenants(operator: Operator, name: str, text: str, dry_run: bool, as_json: bool) -> None:
    """Brings a tenants file, and prints what it changed or would change; problems are named by the file's own name."""
    request = quota_pb2.ImportTenantsRequest(file=text, dry_run=dry_run)
    try:
        response = await call(operator, "ImportTenants", request, IMPORT_WITHIN_S)
    except MeshError as error:
        if error.reason != "WRONG_TENANTS_FILE":
            raise
        places = [violation.description.partition(": ") for violation in error.field_violations]
        named = [FieldViolation(place.replace("file", name, 1), problem) for place, _, problem in places]
        raise MeshError(error.code, error.reason, error.message, field_violations=named) from None
    if as_json:
        return print_json(response)
    rows = Rows("would be" if dry_run else "now", "tenants", texts=("tenants",))
    for name, ids in (("new", response.created), ("changed", response.updated), ("as before", response.unchanged)):
        rows.add(name, ", ".join(ids) or "–")
    rows.print("")
    return None


async def update_plan(operator: Operator, name: str, settings: Sequence[str], as_json: bool) -> None:
    """Makes or changes a plan, and prints it."""
    request = quota_pb2.UpdatePlanRequest(plan=quota_pb2.Plan(name=name))
    if not settings:
        raise ValueError("say what is to change, such as --set limits.tokens_per_minute=5000")
    request.update_mask.CopyFrom(FieldMask(paths=assign(request.plan, settings)))
    response = await call(operator, "UpdatePlan", request)
    if as_json:
        return print_json(response)
    limits = figures.limits(from_pb_limits(response.plan.limits))
    terminal().print(f"{name}: {limits}; tenants that follow it: {response.tenants:,}", markup=False)
    return None


async def list_keys(operator: Operator, tenant_id: str, as_json: bool) -> None:
    """Prints a tenant's keys."""
    rows = Rows(
        "key", "name", "models", "limits", "expires", "state", texts=("name", "models", "limits", "expires", "state")
    )
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        async for page in pages(operator, "quota", quota_pb2.ListKeysRequest, stub.ListKeys, tenant_id=tenant_id):
            for key in page.keys:
                if as_json:
                    print_json(key)
                    continue
                policy = key.policy
                rows.add(
                    policy.key_id,
                    policy.display_name,
                    figures.models(from_pb_key(policy).models),
                    figures.limits(from_pb_limits(policy.limits)),
                    _moment(policy.expires_at) if policy.HasField("expires_at") else "never",
                    _state(key),
                )
    if not as_json:
        rows.print(f"{tenant_id} has no keys; `forebay keys issue {tenant_id}` makes one")


async def issue_key(operator: Operator, key: quota_pb2.KeyPolicy, settings: Sequence[str], as_json: bool) -> None:
    """Makes a key, and prints it this once."""
    assign(key, settings)
    print_issued(await call(operator, "IssueKey", quota_pb2.IssueKeyRequest(key=key)), as_json)


def print_issued(response: quota_pb2.IssueKeyResponse | quota_pb2.RotateKeyResponse, as_json: bool) -> None:
    """Prints a new key: the key itself alone on standard output, so that it can be piped; the rest beside it."""
    if as_json:
        return print_json(response)
    console = terminal(stderr=True)
    console.print(f"key {response.key.policy.key_id} of {response.key.policy.tenant_id}; it is shown this once:")
    print(response.secret)
    if isinstance(response, quota_pb2.RotateKeyResponse):
        old = response.replaced.policy
        console.print(f"{old.key_id} goes on until {_moment(old.expires_at)}")
    return None


async def list_audit(operator: Operator, tenant_id: str, refused: bool, most: int, as_json: bool) -> None:
    """Prints what was done and refused, newest first."""
    rows = Rows("no.", "when", "who", "what", "about", "changes", texts=("when", "changes"))
    request = quota_pb2.ListAuditEventsRequest(tenant_id=tenant_id, refused_only=refused, page_size=most)
    page = await call(operator, "ListAuditEvents", request)
    events = list(page.events)
    while page.next_page_token and len(events) < most:  # a page ends early where a message would
        request.page_token = page.next_page_token
        page = await call(operator, "ListAuditEvents", request)
        events += page.events
    for event in events[:most]:
        if as_json:
            print_json(event)
            continue
        refusal = Text("refused: ", style="red").append(event.refusal.message, style="default")
        rows.add(
            str(event.number),
            _moment(event.at),
            event.actor,
            event.action,
            event.subject,
            refusal if event.HasField("refusal") else "\n".join(map(change_in_words, event.changes)),
        )
    if not as_json:
        rows.print("nothing was refused" if refused else "nothing was done")


def _state(key: quota_pb2.Key) -> Text:
    """Returns whether a key is over, and what took its place."""
    expired = key.policy.HasField("expires_at") and key.policy.expires_at.ToNanoseconds() <= time.time_ns()
    over = "revoked" if key.policy.revoked else "expired" if expired else ""
    replaced = f"replaced by {key.replaced_by}" if key.replaced_by else ""
    return Text(", ").join(part for part in (Text(over, style="red"), Text(replaced)) if part.plain)


def _subject(subject: str) -> str:
    """Returns on what a limit of the tenant is: all models, a model, or what a key asks for."""
    kind, _, name = subject.partition(":")
    return f"key {name}" if kind == "key" else name.partition("/model:")[2] or "all models"


def _unset(tenant: quota_pb2.TenantPolicy, name: str) -> list[str]:
    return ["limits"] if name == "limits" else paths_of(tenant.DESCRIPTOR, [name])


def _moment(timestamp: Any) -> str:
    return f"{figures.moment(timestamp.seconds)} UTC"
