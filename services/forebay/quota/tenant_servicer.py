"""TenantService on the wire: the policies in force to read, and the administration of those in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from forebay.api.common.v1 import common_pb2
from forebay.api.quota.v1 import quota_pb2, quota_pb2_grpc
from forebay.clock import Clock
from forebay.errors import Code, FieldViolation, MeshError
from forebay.policy.keys import hash_key, new_key
from forebay.quota.administration import Administration, Call
from forebay.quota.domain import edits
from forebay.quota.domain.directory import Directory, Edit
from forebay.quota.messages import from_pb_page_size, from_pb_tenant_id, require, to_pb_plan
from forebay.quota.policies import PolicyFeed
from forebay.quota.served import MAX_WARNINGS, Served
from forebay.quota.service import tenant_not_found
from forebay.quota.stored_policies import StoredPolicies
from forebay.quota.tenant_messages import (
    MAX_FILE_BYTES,
    changing_plan,
    check_change,
    from_pb_key_id,
    from_pb_new_key,
    from_pb_new_tenant,
    from_pb_overlap,
    from_pb_plan,
    masked,
    overridden,
    overriding,
    to_call,
    to_pb_audit_event,
    to_pb_key_details,
    to_pb_plan_details,
    to_pb_tenant_details,
)
from forebay.quota.tenants_import import Import, plan_import
from forebay.rpc.allowlist import ADMIN
from forebay.rpc.interceptors import caller, caller_name
from forebay.yaml_files.document import Document

# How much of a wrong file's problems an error may hold: what a client takes as an error is bounded.
MAX_PROBLEM_BYTES = 4_000
# A page ends here whatever was asked for: a thousand tenants may be more than a message can be.
MAX_PAGE_BYTES = 8 << 20

M = TypeVar("M", bound=Message)


class TenantServicer(quota_pb2_grpc.TenantServiceServicer):
    """Shows the policies in force and, where they come from a store, administers them."""

    def __init__(
        self, feed: PolicyFeed, clock: Clock, stored: StoredPolicies | None = None, served: Served | None = None
    ) -> None:
        self._feed = feed
        self._served = served or Served()
        self._clock = clock
        self._stored_policies = stored
        self._administration = Administration(stored, clock) if stored else None

    async def ListTenants(self, request: quota_pb2.ListTenantsRequest, context: Any) -> quota_pb2.ListTenantsResponse:
        """Lists tenants in order of their id."""
        tenants = self._feed.policies.tenants
        page, token = _page(tenants, request, lambda tenant_id: masked(tenants[tenant_id]))
        return quota_pb2.ListTenantsResponse(tenants=page, next_page_token=token)

    async def GetTenant(self, request: quota_pb2.GetTenantRequest, context: Any) -> quota_pb2.GetTenantResponse:
        """Returns one tenant."""
        tenant_id = from_pb_tenant_id(request.tenant_id)
        tenant = self._feed.policies.tenants.get(tenant_id)
        if tenant is None:
            raise tenant_not_found(tenant_id)
        details = self._tenant(self._stored_policies.directory, tenant_id) if self._stored_policies else None
        return quota_pb2.GetTenantResponse(tenant=masked(tenant), details=details)

    async def CreateTenant(
        self, request: quota_pb2.CreateTenantRequest, context: Any
    ) -> quota_pb2.CreateTenantResponse:
        """Makes a tenant."""
        tenant_id = request.tenant.tenant_id

        def decide(directory: Directory) -> Edit:
            return edits.create_tenant(directory, from_pb_new_tenant(request, self._clock.now()))

        def respond(after: Directory) -> quota_pb2.CreateTenantResponse:
            warnings = self._warnings(after, tenant_id, request.overrides.paths)
            return quota_pb2.CreateTenantResponse(tenant=self._tenant(after, tenant_id), warnings=warnings)

        return (await self._perform(_tenant_call(request, context, tenant_id), request, decide, respond))[0]

    async def UpdateTenant(
        self, request: quota_pb2.UpdateTenantRequest, context: Any
    ) -> quota_pb2.UpdateTenantResponse:
        """Changes fields of a tenant."""
        tenant_id, paths = request.tenant.tenant_id, request.update_mask.paths

        def decide(directory: Directory) -> Edit:
            require((paths, "update_mask", "must name the fields that are to change"))
            plan = from_pb_plan(request.tenant.plan) if "plan" in paths else None
            override = overriding(request.tenant, paths, "update_mask", self._clock.now())
            return edits.update_tenant(directory, from_pb_tenant_id(tenant_id), request.etag, plan, override)

        def respond(after: Directory) -> quota_pb2.UpdateTenantResponse:
            warnings = self._warnings(after, tenant_id, paths)
            return quota_pb2.UpdateTenantResponse(tenant=self._tenant(after, tenant_id), warnings=warnings)

        return (await self._perform(_tenant_call(request, context, tenant_id), request, decide, respond))[0]

    async def DeleteTenant(
        self, request: quota_pb2.DeleteTenantRequest, context: Any
    ) -> quota_pb2.DeleteTenantResponse:
        """Removes a tenant with its keys."""

        def decide(directory: Directory) -> Edit:
            return edits.remove_tenant(directory, from_pb_tenant_id(request.tenant_id), request.etag)

        def respond(_: Directory) -> quota_pb2.DeleteTenantResponse:
            return quota_pb2.DeleteTenantResponse()

        return (await self._perform(_tenant_call(request, context, request.tenant_id), request, decide, respond))[0]

    async def SuspendTenant(
        self, request: quota_pb2.SuspendTenantRequest, context: Any
    ) -> quota_pb2.SuspendTenantResponse:
        """Suspends a tenant."""

        def decide(directory: Directory) -> Edit:
            return edits.suspend_tenant(directory, from_pb_tenant_id(request.tenant_id), True)

        def respond(after: Directory) -> quota_pb2.SuspendTenantResponse:
            return quota_pb2.SuspendTenantResponse(tenant=self._tenant(after, request.tenant_id))

        return (await self._perform(_tenant_call(request, context, request.tenant_id), request, decide, respond))[0]

    async def ResumeTenant(
        self, request: quota_pb2.ResumeTenantRequest, context: Any
    ) -> quota_pb2.ResumeTenantResponse:
        """Ends a suspension."""

        def decide(directory: Directory) -> Edit:
            return edits.suspend_tenant(directory, from_pb_tenant_id(request.tenant_id), False)

        def respond(after: Directory) -> quota_pb2.ResumeTenantResponse:
            return quota_pb2.ResumeTenantResponse(tenant=self._tenant(after, request.tenant_id))

        return (await self._perform(_tenant_call(request, context, request.tenant_id), request, decide, respond))[0]

    async def ImportTenants(
        self, request: quota_pb2.ImportTenantsRequest, context: Any
    ) -> quota_pb2.ImportTenantsResponse:
        """Takes a tenants file, whole or not at all."""
        call = _call(request, context, "", "tenants")
        found: list[Import] = []

        def read(directory: Directory) -> Import:
            check_change(request)
            require((len(request.file.encode()) <= MAX_FILE_BYTES, "file", "must be at most 8 MiB long"))
            document = Document.parse(Path("file"), request.file)
            planned = plan_import(document, directory)
            if document.problems:
                raise _wrong_file(document.problems)
            return planned

        def decide(directory: Directory) -> Edit:
            found[:] = [read(directory)]
            return found[0].edit

        def respond(_: Directory) -> quota_pb2.ImportTenantsResponse:
            return self._to_pb_import(found[0])

        if request.dry_run:
            return self._to_pb_import(await self._needed().preview(call, read))
        return (await self._perform(call, request, decide, respond))[0]

    async def ListPlans(self, request: quota_pb2.ListPlansRequest, context: Any) -> quota_pb2.ListPlansResponse:
        """Lists the plans in order of their name."""
        plans, stored = self._feed.policies.plans, self._stored_policies

        def to_pb(name: str) -> quota_pb2.Plan:
            return to_pb_plan_details(stored.directory, name) if stored else to_pb_plan(plans[name])

        page, token = _page(plans, request, to_pb)
        return quota_pb2.ListPlansResponse(plans=page, next_page_token=token)

    async def UpdatePlan(self, request: quota_pb2.UpdatePlanRequest, context: Any) -> quota_pb2.UpdatePlanResponse:
        """Makes or changes a plan."""
        name = request.plan.name

        def decide(directory: Directory) -> Edit:
            return edits.put_plan(directory, name, request.etag, changing_plan(request))

        def respond(after: Directory) -> quota_pb2.UpdatePlanResponse:
            tenants = len(edits.followers(after, name))
            return quota_pb2.UpdatePlanResponse(plan=to_pb_plan_details(after, name), tenants=tenants)

        return (await self._perform(_call(request, context, "", f"plan:{name}"), request, decide, respond))[0]

    async def ListKeys(self, request: quota_pb2.ListKeysRequest, context: Any) -> quota_pb2.ListKeysResponse:
        """Lists a tenant's keys in order of their id."""
        directory = self._needed().stored.directory
        tenant_id = from_pb_tenant_id(request.tenant_id)
        if tenant_id not in directory.tenants:
            raise tenant_not_found(tenant_id)
        of_tenant = [key_id for key_id, entry in directory.keys.items() if entry.value.policy.tenant_id == tenant_id]
        page, token = _page(of_tenant, request, lambda key_id: to_pb_key_details(directory, key_id))
        return quota_pb2.ListKeysResponse(keys=page, next_page_token=token)

    async def IssueKey(self, request: quota_pb2.IssueKeyRequest, context: Any) -> quota_pb2.IssueKeyResponse:
        """Makes a key."""
        (key_id, secret), tenant_id = new_key(), request.key.tenant_id

        def decide(directory: Directory) -> Edit:
            digest, now = hash_key(self._needed().stored.pepper, secret), self._clock.now()
            key = from_pb_new_key(request.key, key_id, digest, now)
            edits.check_scope(directory, key)
            return edits.issue_key(directory, key, now)

        def respond(after: Directory) -> quota_pb2.IssueKeyResponse:
            warnings = self._served.of_key(after.keys[key_id].value.policy.models)
            return quota_pb2.IssueKeyResponse(key=to_pb_key_details(after, key_id), warnings=_to_pb(warnings))

        call = _call(request, context, tenant_id, f"tenant:{tenant_id}")
        response, first = await self._perform(call, request, decide, respond)
        response.secret = secret if first else ""
        return response

    async def RotateKey(self, request: quota_pb2.RotateKeyRequest, context: Any) -> quota_pb2.RotateKeyResponse:
        """Makes a key in place of another."""
        (new_id, secret), key_id = new_key(), request.key_id

        def decide(directory: Directory) -> Edit:
            digest, overlap = hash_key(self._needed().stored.pepper, secret), from_pb_overlap(request)
            return edits.rotate_key(directory, from_pb_key_id(key_id), new_id, digest, self._clock.now(), overlap)

        def respond(after: Directory) -> quota_pb2.RotateKeyResponse:
            return quota_pb2.RotateKeyResponse(
                key=to_pb_key_details(after, new_id), replaced=to_pb_key_details(after, key_id)
            )

        response, first = await self._perform(self._key_call(request, context), request, decide, respond)
        response.secret = secret if first else ""
        return response

    async def RevokeKey(self, request: quota_pb2.RevokeKeyRequest, context: Any) -> quota_pb2.RevokeKeyResponse:
        """Ends a key."""

        def decide(directory: Directory) -> Edit:
            return edits.revoke_key(directory, from_pb_key_id(request.key_id))

        def respond(after: Directory) -> quota_pb2.RevokeKeyResponse:
            return quota_pb2.RevokeKeyResponse(key=to_pb_key_details(after, request.key_id))

        return (await self._perform(self._key_call(request, context), request, decide, respond))[0]

    async def ListAuditEvents(
        self, request: quota_pb2.ListAuditEventsRequest, context: Any
    ) -> quota_pb2.ListAuditEventsResponse:
        """Lists what was done and refused, newest first."""
        token, most = request.page_token, from_pb_page_size(request.page_size)
        require((not token or (token.isascii() and token.isdigit() and len(token) < 19), "page_token", "is not one"))
        tenant_id = from_pb_tenant_id(request.tenant_id) if request.tenant_id else ""
        store = self._needed().stored.store
        events = await store.events(int(token or 0), most + 1, tenant_id, request.refused_only)
        page = _fitting(map(to_pb_audit_event, events[:most]))
        return quota_pb2.ListAuditEventsResponse(
            events=page, next_page_token=str(page[-1].number) if len(events) > len(page) else ""
        )

    async def _perform(
        self, call: Call, request: Any, decide: Callable[[Directory], Edit], respond: Callable[[Directory], M]
    ) -> tuple[M, bool]:
        """Carries out a change; returns the response, and whether it is the first and not a repeat's."""

        def checked(directory: Directory) -> Edit:
            check_change(request)
            return decide(directory)

        def serialised(after: Directory) -> bytes:
            return respond(after).SerializeToString()

        data, first = await self._needed().perform(call, checked, serialised)
        response: M = getattr(quota_pb2, f"{call.action}Response").FromString(data)
        return response, first

    def _needed(self) -> Administration:
        if self._administration is None:
            message = (
                "this mesh takes its policies from files; edit them, or give quota a policy_url to administer them here"
            )
            raise MeshError(Code.FAILED_PRECONDITION, "POLICIES_IN_FILES", message)
        return self._administration

    def _tenant(self, directory: Directory, tenant_id: str) -> quota_pb2.Tenant:
        return to_pb_tenant_details(directory, tenant_id, self._needed().stored.pepper)

    def _warnings(self, directory: Directory, tenant_id: str, paths: Iterable[str]) -> list[common_pb2.FieldViolation]:
        """Returns what an administrator is to know of the fields that a mask names."""
        own = directory.tenants[tenant_id].value.overrides
        return _to_pb(self._served.warnings("tenant", own, overridden(list(paths))))

    def _to_pb_import(self, planned: Import) -> quota_pb2.ImportTenantsResponse:
        found: list[FieldViolation] = []
        for tenant in planned.edit.tenants:
            found += self._served.warnings(f"tenants.{tenant.tenant_id}", tenant.overrides)
            if len(found) > MAX_WARNINGS:
                found[MAX_WARNINGS:] = [FieldViolation("tenants", "there are more warnings, which are not named here")]
                break
        return quota_pb2.ImportTenantsResponse(
            created=planned.created, updated=planned.updated, unchanged=planned.unchanged, warnings=_to_pb(found)
        )

    def _key_call(self, request: quota_pb2.RotateKeyRequest | quota_pb2.RevokeKeyRequest, context: Any) -> Call:
        entry = self._needed().stored.directory.keys.get(request.key_id)
        return _call(request, context, entry.value.policy.tenant_id if entry else "", f"key:{request.key_id}")


def _call(request: Any, context: Any, tenant_id: str, subject: str) -> Call:
    """Returns a request as a call, of whom the certificate names; in plaintext nobody is known, which is for development."""
    name = caller_name(context) if caller.get() else ""
    return to_call(request, caller.get() or ADMIN, name or "unknown", tenant_id, subject)


def _tenant_call(request: Any, context: Any, tenant_id: str) -> Call:
    return _call(request, context, tenant_id, f"tenant:{tenant_id}")


def _page(items: Iterable[str], request: Any, to_pb: Callable[[str], M]) -> tuple[list[M], str]:
    """Returns the page of items that is asked for, in order of their names, and the token of the next, empty on the last."""
    most = from_pb_page_size(request.page_size)
    names = sorted(name for name in items if name > request.page_token)
    page = _fitting(map(to_pb, names[:most]))
    return page, names[len(page) - 1] if len(names) > len(page) else ""


def _fitting(messages: Iterable[M]) -> list[M]:
    """Returns the first messages that one response has room for, the very first in any case."""
    page: list[M] = []
    room = MAX_PAGE_BYTES
    for message in messages:
        room -= message.ByteSize()
        if room < 0 and page:
            break
        page.append(message)
    return page


def _to_pb(warnings: Iterable[FieldViolation]) -> list[common_pb2.FieldViolation]:
    return [common_pb2.FieldViolation(field=it.field, description=it.description) for it in warnings]


def _wrong_file(problems: list[str]) -> MeshError:
    """Returns the refusal of a file, with every problem that an error has room for."""
    room, named = MAX_PROBLEM_BYTES, []
    for problem in problems:
        room -= len(problem.encode())
        if room < 0:
            break
        named.append(FieldViolation("file", problem))
    rest = len(problems) - len(named)
    count = f"{len(problems):,} problems" if len(problems) > 1 else "1 problem"
    message = f"the file has {count}, and nothing was changed" + (f"; {rest:,} are not named here" if rest else "")
    return MeshError(Code.INVALID_ARGUMENT, "WRONG_TENANTS_FILE", message, field_violations=named)
