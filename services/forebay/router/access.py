"""Who is calling: the tenant follows from the verified key alone, and never from a header."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.policy.keys import hash_key, parse_key_id, presented_key
from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.policy.watcher import PolicyWatcher

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller, as the policies stood at that moment."""

    tenant: TenantPolicy
    key: KeyPolicy

    def may_use(self, model: str) -> bool:
        """Whether both tenant and key allow a model."""
        return self.tenant.may_use(model) and self.key.may_use(model)

    def adapter(self, name: str) -> str:
        """Returns the adapter that is meant by a name: the tenant's default for none, and empty for the bare model."""
        return name or self.tenant.default_adapter


class Access:
    """Verifies keys against the policies that quota pushes."""

    def __init__(
        self, policies: PolicyWatcher, pepper: bytes, clock: Clock, *, first_policies_s: float, honour_cut_off_s: float
    ) -> None:
        """Prepares to verify.

        Args:
            policies: the policies as last heard.
            pepper: what keys are hashed with.
            clock: for expiry.
            first_policies_s: how long a call waits for the first policies after a start.
            honour_cut_off_s: how long policies count after the connection to quota broke.
        """
        self._policies = policies
        self._pepper = pepper
        self._clock = clock
        self._first_policies_s = first_policies_s
        self._honour_cut_off_s = honour_cut_off_s

    async def verify(self, authorization: str) -> Caller:
        """Returns who presents `Bearer fb_...`.

        Raises:
            MeshError: UNAUTHENTICATED for a key that is malformed, unknown, wrong, expired or revoked, with one and the same
                message; PERMISSION_DENIED for a suspended tenant; UNAVAILABLE when the policies are unknown or too old.
        """
        await self._await_policies()
        presented = presented_key(authorization)
        key_id = parse_key_id(presented)
        key = self._policies.cache.keys.get(key_id) if key_id else None
        # The comparison is made in any case, so that time does not tell whether a key id exists.
        genuine = hmac.compare_digest(hash_key(self._pepper, presented), key.hash if key else _NO_HASH)
        tenant = self._policies.cache.tenants.get(key.tenant_id) if key else None
        if key is None or tenant is None or not genuine or key.revoked or self._expired(key):
            raise MeshError(
                Code.UNAUTHENTICATED,
                "UNKNOWN_KEY",
                "the key is not valid; send `authorization: Bearer fb_...` in the metadata",
            )
        if tenant.suspended:
            raise _suspended()
        return Caller(tenant, key)

    def objection(self, caller: Caller) -> MeshError | None:
        """Returns why a caller who was let in may not go on, as the policies stand now; None when nothing speaks against it.

        A key that expires while a request runs is no reason: it was valid when the request was made.
        """
        cache = self._policies.cache
        tenant, key = cache.tenants.get(caller.tenant.tenant_id), cache.keys.get(caller.key.key_id)
        if tenant is not None and tenant.suspended:
            return _suspended()
        if tenant is None or key is None or key.revoked or key.hash != caller.key.hash:
            return MeshError(
                Code.PERMISSION_DENIED, "KEY_REVOKED", "the key was revoked while the request ran; use another"
            )
        return None

    def _expired(self, key: KeyPolicy) -> bool:
        return key.expires_at is not None and key.expires_at <= self._clock.now()

    async def _await_policies(self) -> None:
        policies = self._policies
        if not policies.ready:
            try:
                async with asyncio.timeout(self._first_policies_s):
                    await policies.wait_ready()
            except TimeoutError:
                raise _unavailable("no policies have come from quota yet; try again") from None
        elif policies.cut_off_for() > self._honour_cut_off_s:
            raise _unavailable("the policies are too old to admit anyone; try again")


def _suspended() -> MeshError:
    return MeshError(Code.PERMISSION_DENIED, "TENANT_SUSPENDED", "the tenant is suspended; ask the operator")


def _unavailable(message: str) -> MeshError:
    return MeshError(Code.UNAVAILABLE, "POLICIES_STALE", message, retry_after=1)
