"""`forebay tenants|keys|plans|audit`: what administrators change, asked of quota with the admin's certificate."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from rich.markup import escape

from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.cli import figures
from forebay.cli.directory import CALL_WITHIN_S, pages, table
from forebay.cli.operator import Operator
from forebay.cli.settings import PREFIXES, assign
from forebay.cli.terminal import print_json, terminal
from forebay.client.client import mesh_errors
from forebay.errors import FieldViolation, MeshError
from forebay.policy.messages import from_pb_limits

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
        with mesh_errors():
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


async def show_limits(operator: Operator, tenant_id: str, as_json: bool) -> None:
    """Prints what of each limit is used, and by how much days and months differ from the ledger.

    Raises:
        MeshError: quota or its counters cannot be reached, or quota refuses.
    """
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.QuotaServiceStub(channel)
        with mesh_errors():
            response = await stub.Peek(quota_pb2.PeekRequest(tenant_id=tenant_id), timeout=CALL_WITHIN_S)
    print_limits(response, as_json)


def print_limits(response: quota_pb2.PeekResponse, as_json: bool) -> None:
    """Prints the state of limits, a line for each."""
    if as_json:
        for state in response.limits:
            print_json(state)
        return
    rows = table("limit", "value", "used", "free again in", "against the ledger")
    for state in response.limits:
        write = figures.usd if state.limit.endswith("_nano_usd") else "{:,}".format
        resets_in = figures.duration(state.resets_in.ToMilliseconds() / 1000) if state.HasField("resets_in") else ""
        ledger = ""
        if state.HasField("comparison"):
            difference = state.comparison.difference
            ledger = f"[red]{'+' if difference > 0 else ''}{write(difference)}[/]" if difference else "equal"
            ledger += f" at {_moment(state.comparison.as_of)}"
        rows.add_row(state.limit, write(state.value), write(state.used), resets_in, ledger)
    terminal().print(rows)


def print_tenant(tenant: quota_pb2.Tenant, as_json: bool) -> None:
    """Prints a tenant, a line for each field that is set."""
    if as_json:
        return print_json(tenant)
    own = {"models" if path == "model_scope" else path for path in tenant.overrides.paths}
    rows = table("field", "value", "")
    for path, value in _fields(tenant.policy):
        rows.add_row(path, escape(value), "own" if path in own or path.partition(".")[0] in own else "")
    if tenant.etag:
        rows.add_row("etag", tenant.etag, "")
        rows.add_row("updated", _moment(tenant.updated_at), "")
    terminal().print(rows)
    return None


async def update_tenant(
    operator: Operator, tenant_id: str, plan: str | None, settings: Sequence[str], unset: Sequence[str], as_json: bool
) -> None:
    """Changes fields of a tenant, and prints it."""
    request = quota_pb2.UpdateTenantRequest(tenant=quota_pb2.TenantPolicy(tenant_id=tenant_id))
    paths = [*assign(request.tenant, settings), *unset]
    if plan:
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
    rows = table("would be" if dry_run else "now", "tenants")
    for name, ids in (("new", response.created), ("changed", response.updated), ("as before", response.unchanged)):
        rows.add_row(name, ", ".join(ids) or "–")
    terminal().print(rows)
    return None


async def update_plan(operator: Operator, name: str, settings: Sequence[str], as_json: bool) -> None:
    """Makes or changes a plan, and prints it."""
    request = quota_pb2.UpdatePlanRequest(plan=quota_pb2.Plan(name=name))
    if not settings:
        raise ValueError("say what is to change")
    request.update_mask.CopyFrom(FieldMask(paths=assign(request.plan, settings)))
    response = await call(operator, "UpdatePlan", request)
    if as_json:
        return print_json(response)
    limits = figures.limits(from_pb_limits(response.plan.limits))
    terminal().print(f"{name}: {limits}; {response.tenants} tenant(s) follow it")
    return None


async def list_keys(operator: Operator, tenant_id: str, as_json: bool) -> None:
    """Prints a tenant's keys."""
    rows = table("key", "name", "models", "limits", "expires", "state")
    async with operator.channel("quota") as channel:
        stub = quota_pb2_grpc.TenantServiceStub(channel)
        async for page in pages(_of_tenant(quota_pb2.ListKeysRequest, tenant_id), stub.ListKeys):
            for key in page.keys:
                if as_json:
                    print_json(key)
                    continue
                policy = key.policy
                rows.add_row(
                    policy.key_id,
                    escape(policy.display_name),
                    escape(", ".join(policy.models)) or ("none" if policy.HasField("model_scope") else "all"),
                    figures.limits(from_pb_limits(policy.limits)),
                    _moment(policy.expires_at) if policy.HasField("expires_at") else "never",
                    _state(key),
                )
    if not as_json:
        terminal().print(rows)


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
    rows = table("no.", "when", "who", "what", "about", "changes")
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
        refusal = f"[red]refused:[/] {escape(event.refusal.message)}" if event.HasField("refusal") else ""
        rows.add_row(
            str(event.number),
            _moment(event.at),
            escape(event.actor),
            event.action,
            escape(event.subject),
            refusal or escape("\n".join(event.changes)),
        )
    if not as_json:
        terminal().print(rows)


def _state(key: quota_pb2.Key) -> str:
    """Returns whether a key is over, and what took its place."""
    expired = key.policy.HasField("expires_at") and key.policy.expires_at.ToDatetime(UTC) <= datetime.now(UTC)
    over = "revoked" if key.policy.revoked else "expired" if expired else ""
    replaced = f"replaced by {key.replaced_by}" if key.replaced_by else ""
    return ", ".join(part for part in (f"[red]{over}[/]" if over else "", replaced) if part)


def _of_tenant(kind: type[Any], tenant_id: str) -> Callable[..., Any]:
    return lambda page_token: kind(tenant_id=tenant_id, page_token=page_token)


def _fields(message: Message) -> Iterator[tuple[str, str]]:
    """Yields the paths and values of a message's fields that are set."""
    for name, value in json_format.MessageToDict(message, preserving_proto_field_name=True).items():
        if name in PREFIXES:
            yield name, value.removeprefix(PREFIXES[name]).lower()
        else:
            yield from _flat(name, value)


def _flat(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and not any(isinstance(part, dict) for part in value):
        yield path, ", ".join(value)
    elif isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value, 1):
            yield from _flat(f"{path}.{name}", part)
    else:
        yield path, str(value).lower() if isinstance(value, bool) else str(value)


def _moment(timestamp: Any) -> str:
    return datetime.fromtimestamp(timestamp.ToSeconds(), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
