"""Who is calling: the tenant follows from the verified key alone."""

from __future__ import annotations

import asyncio
import hmac
from dataclasses import dataclass
from typing import Protocol

from forebay.clock import Clock
from forebay.errors import Code, MeshError
from forebay.policy.keys import hash_key, parse_key_id
from forebay.policy.model import KeyPolicy, TenantPolicy

HONOURED_WHILE_CUT_OFF_S = 30.0

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Caller:
    """A verified caller, as the policies stood at that moment."""

    tenant: TenantPolicy
    key: KeyPolicy

    def may_use(self, model: str) -> bool:
        """Whether both tenant and key allow a model."""
        return self.tenant.may_use(model) and self.key.may_use(model)


class Cache(Protocol):
    """Policies as last heard."""

    @property
    def tenants(self) -> dict[str, TenantPolicy]: ...  # noqa: D102

    @property
    def keys(self) -> dict[str, KeyPolicy]: ...  # noqa: D102


class Policies(Protocol):
    """What access asks of `forebay.policy.watcher.PolicyWatcher`."""

    @property
    def cache(self) -> Cache:
        """The policies as last heard."""
        ...

    async def wait_ready(self) -> None:
        """Returns once a first snapshot has come."""
        ...

    def cut_off_for(self) -> float:
        """Returns for how many seconds no change could have been heard of."""
        ...
