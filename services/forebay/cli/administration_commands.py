"""The commands of administrators; each only reads its arguments."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli.data_dir import DEFAULT_DATA, DataDir
from forebay.cli.failures import WrongUsage
from forebay.cli.parameters import Data, Json, named, quiet_grpc, run

if TYPE_CHECKING:
    from forebay.cli.operator import Operator

tenants = typer.Typer(help="Who may use the mesh.", no_args_is_help=True)
plans = typer.Typer(help="What tenants are offered.", no_args_is_help=True)
keys = typer.Typer(help="What tenants call with.", no_args_is_help=True)
audit = typer.Typer(help="What administrators did, and were refused.", no_args_is_help=True)

TenantId = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's id.")]


def _key_id(text: str) -> str:
    """Returns the id in a whole key, whose secret goes no further; else the text as it is.

    Raises:
        BadParameter: it begins like a whole key and is none; what may be a secret is not repeated.
    """
    from forebay.policy.keys import parse_key_id

    key_id = parse_key_id(text.strip())
    if key_id is None and text.strip().startswith("fb_"):
        raise typer.BadParameter("this looks like a key and is not a whole one; give its id, between the underscores")
    return key_id or text


KeyId = Annotated[
    str,
    typer.Argument(
        metavar="KEY_ID",
        help="The public part of the key, between its underscores.",
        callback=_key_id,
    ),
]
Reason = Annotated[str, typer.Option(help="For the audit log.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="FIELD=VALUE",
        help=r"Such as limits.tokens_per_minute=5000 or models=\[a,b], in the words of the tenants file; repeatable.",
    ),
]


@tenants.command("list")
def tenants_list(as_json: Json = False, data: Data = DEFAULT_DATA) -> None:
    """Lists tenants with their plans and limits."""
    from forebay.cli import directory

    _run(directory.list_tenants(_operator(data), as_json))


@tenants.command("show")
def tenants_show(tenant: TenantId, as_json: Json = False, data: Data = DEFAULT_DATA) -> None:
    """Shows one tenant, and which of its values are its own."""
    from forebay.cli import administration

    _run(administration.show_tenant(_operator(data), tenant, as_json))


@tenants.command("limits")
def tenants_limits(
    tenant: TenantId,
    key: Annotated[
        str | None, typer.Option(metavar="KEY_ID", callback=named, help="The limits of this key of the tenant, too.")
    ] = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Shows what of a tenant's limits is used, those on single models too, and whether its budgets agree with the ledger."""
    from forebay.cli import administration

    _run(administration.show_limits(_operator(data), tenant, _key_id(key or ""), as_json))


@tenants.command("create")
def tenants_create(
    tenant: TenantId,
    plan: Annotated[str, typer.Option(help="The plan it is made from.")],
    settings: Settings = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Makes a tenant from a plan."""
    from forebay.cli import administration

    _run(administration.create_tenant(_operator(data), tenant, plan, settings or [], as_json))


@tenants.command("update")
def tenants_update(
    tenant: TenantId,
    plan: Annotated[str | None, typer.Option(help="Its new plan.")] = None,
    settings: Settings = None,
    unset: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Follows the plan again; repeatable.")
    ] = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Changes a tenant."""
    from forebay.cli import administration

    _run(administration.update_tenant(_operator(data), tenant, plan, settings or [], unset or [], as_json))


@tenants.command("suspend")
def tenants_suspend(tenant: TenantId, reason: Reason = "", data: Data = DEFAULT_DATA) -> None:
    """Refuses what a tenant asks for, and aborts what runs."""
    from forebay.api.quota.v1 import quota_pb2

    _run(_call(data, "SuspendTenant", quota_pb2.SuspendTenantRequest(tenant_id=tenant, reason=reason)))
    typer.echo(f"{tenant} is suspended")


@tenants.command("resume")
def tenants_resume(tenant: TenantId, data: Data = DEFAULT_DATA) -> None:
    """Ends a suspension."""
    from forebay.api.quota.v1 import quota_pb2

    _run(_call(data, "ResumeTenant", quota_pb2.ResumeTenantRequest(tenant_id=tenant)))
    typer.echo(f"{tenant} is served again")


@tenants.command("delete")
def tenants_delete(
    tenant: TenantId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Removes a tenant and its keys; its id is not given again."""
    from forebay.api.quota.v1 import quota_pb2

    if not yes:
        typer.confirm(f"Remove {tenant} and its keys for ever?", abort=True)
    _run(_call(data, "DeleteTenant", quota_pb2.DeleteTenantRequest(tenant_id=tenant)))
    typer.echo(f"{tenant} is removed")


@tenants.command("import")
def tenants_import(
    file: Annotated[
        typer.FileBinaryRead, typer.Argument(metavar="FILE", help="A tenants file; - reads standard input.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Takes a tenants file: whole, or not at all with every problem named by line."""
    from forebay.cli import administration

    given = getattr(file, "name", None)
    name = given if isinstance(given, str) and given != "<stdin>" else "standard input"
    try:
        text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{name} is not UTF-8: byte {error.start} is not; save it as UTF-8") from None
    except IsADirectoryError:
        raise WrongUsage(f"{name} is a directory; name the file in it") from None
    _run(administration.import_tenants(_operator(data), name, text, dry_run, as_json))


@plans.command("list")
def plans_list(as_json: Json = False, data: Data = DEFAULT_DATA) -> None:
    """Lists plans with their limits and prices."""
    from forebay.cli import directory

    _run(directory.list_plans(_operator(data), as_json))


@plans.command("update")
def plans_update(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="The plan's name.")],
    settings: Settings = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Makes a plan, or changes it for all who follow it."""
    from forebay.cli import administration

    _run(administration.update_plan(_operator(data), plan, settings or [], as_json))


@keys.command("list")
def keys_list(tenant: TenantId, as_json: Json = False, data: Data = DEFAULT_DATA) -> None:
    """Lists a tenant's keys, without secrets."""
    from forebay.cli import administration

    _run(administration.list_keys(_operator(data), tenant, as_json))


@keys.command("issue")
def keys_issue(
    tenant: TenantId,
    name: Annotated[str, typer.Option(help="For people.")] = "",
    model: Annotated[
        list[str] | None, typer.Option(metavar="MODEL", help="The only models it may use; repeatable.")
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, max=36_500, help="Expires after so many days.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Makes a key and shows it this once."""
    from forebay.api.quota.v1 import quota_pb2
    from forebay.cli import administration

    key = quota_pb2.KeyPolicy(tenant_id=tenant, display_name=name)
    given = list(settings or [])
    if model:
        given.append(f"models={json.dumps(model)}")
    if days:
        key.expires_at.FromDatetime(datetime.now(UTC) + timedelta(days=days))
    _run(administration.issue_key(_operator(data), key, given, as_json))


@keys.command("rotate")
def keys_rotate(
    key_id: KeyId,
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="How long both hold.")] = 24,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Makes a key in place of another and shows it this once."""
    from forebay.api.quota.v1 import quota_pb2
    from forebay.cli import administration

    request = quota_pb2.RotateKeyRequest(key_id=key_id)
    request.overlap.FromTimedelta(timedelta(hours=overlap_hours))
    administration.print_issued(_run(_call(data, "RotateKey", request)), as_json)


@keys.command("revoke")
def keys_revoke(key_id: KeyId, reason: Reason = "", data: Data = DEFAULT_DATA) -> None:
    """Ends a key at once."""
    from forebay.api.quota.v1 import quota_pb2

    _run(_call(data, "RevokeKey", quota_pb2.RevokeKeyRequest(key_id=key_id, reason=reason)))
    typer.echo(f"{key_id} is revoked")


@audit.command("list")
def audit_list(
    tenant: Annotated[
        str | None, typer.Option(metavar="TENANT", callback=named, help="Only about this tenant.")
    ] = None,
    refused: Annotated[bool, typer.Option("--refused", help="Only what was refused.")] = False,
    most: Annotated[int, typer.Option("--limit", min=1, max=1_000, help="How many, newest first.")] = 50,
    as_json: Json = False,
    data: Data = DEFAULT_DATA,
) -> None:
    """Lists what was done and refused, newest first."""
    from forebay.cli import administration

    _run(administration.list_audit(_operator(data), tenant or "", refused, most, as_json))


def _operator(data: Path) -> Operator:
    quiet_grpc()
    from forebay.cli.operator import Operator

    return Operator.load(DataDir(data))


async def _call(data: Path, rpc: str, request: Any) -> Any:
    from forebay.cli import administration

    return await administration.call(_operator(data), rpc, request)


def _run(work: Any) -> Any:
    try:
        return run(work)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
