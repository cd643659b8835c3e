"""Policies from three YAML files: plans, tenants and keys. They are read as a whole or not at all.

The files are looked at four times a second; a change takes effect without a restart, and one that is wrong changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path

from forebay.clock import Clock
from forebay.config import ConfigError
from forebay.policy.model import KeyPolicy, TenantPolicy
from forebay.quota.domain.plans import Plan
from forebay.quota.domain.policies import Policies
from forebay.quota.file_schema import KeysFile, PlansFile, TenantsFile, models_of
from forebay.quota.policies import PolicyFeed
from forebay.telemetry.logs import get_logger
from forebay.words import instead_of
from forebay.yaml_files.document import Document
from forebay.yaml_files.shape import check

# A revoked key is to be refused everywhere within a second.
POLL_S = 0.25
SHIPPED_PLANS = Path(__file__).parent / "plans.yaml"

log = get_logger("policy_files")


class PolicyFiles:
    """Where policies are read from."""

    def __init__(self, tenants: Path, keys: Path, pepper: bytes, plans: Path = SHIPPED_PLANS) -> None:
        self._files = (plans, tenants, keys)
        self._pepper = pepper
        self._seen: object = None

    def load(self) -> Policies:
        """Reads all files.

        Raises:
            ConfigError: something in them is wrong; the message names every problem with file, line and field.
        """
        self._seen = self._stamp()
        documents = tuple(Document.read(file) for file in self._files)
        plans_document, tenants_document, keys_document = documents
        plans_file = check(plans_document, PlansFile)
        tenants_file = check(tenants_document, TenantsFile)
        keys_file = check(keys_document, KeysFile)
        plans, tenants, keys = {}, {}, {}
        if plans_file:
            plans = plans_of(plans_file)
        if plans_file and tenants_file:
            tenants = _tenants(tenants_file, tenants_document, plans, self._pepper)
        if tenants_file and keys_file:
            keys = keys_of(keys_file, keys_document, tenants_file.tenants)
        problems = [problem for document in documents for problem in document.problems]
        if problems:
            raise wrong_policies(problems)
        return Policies(tenants, keys, plans)

    async def follow(self, feed: PolicyFeed, clock: Clock) -> None:
        """Publishes each change of the files, until cancelled."""
        while True:
            await clock.sleep(POLL_S)
            if self._stamp() == self._seen:
                continue
            try:
                feed.publish(await asyncio.to_thread(self.load))
            except ConfigError as error:
                log.error("changed policies are wrong, the old ones stay", problems=str(error).splitlines()[1:])
            else:
                log.info("policies changed", version=feed.edition.version, tenants=len(feed.policies.tenants))

    def _stamp(self) -> object:
        return [stamp(file) for file in self._files]


def wrong_policies(problems: Sequence[str]) -> ConfigError:
    """Returns the error that names every problem."""
    return ConfigError("\n".join([f"{len(problems)} problem(s) in the policies:", *problems]))


def stamp(file: Path) -> object:
    """Returns what differs once a file has changed; None where it cannot be read."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def plans_of(file: PlansFile) -> dict[str, Plan]:
    """Returns the plans of a file."""
    return {
        name: Plan(
            name,
            entry.service_class,
            entry.weight,
            entry.limits.limits(),
            entry.usd_per_1000_tokens,
            entry.alert_percent,
        )
        for name, entry in sorted(file.plans.items())
    }


def _tenants(file: TenantsFile, document: Document, plans: dict[str, Plan], pepper: bytes) -> dict[str, TenantPolicy]:
    tenants: dict[str, TenantPolicy] = {}
    for tenant_id, entry in sorted(file.tenants.items()):
        plan = plans.get(entry.plan)
        if plan is None:
            document.report(
                ("tenants", tenant_id, "plan"), f"there is no plan {entry.plan!r}; {instead_of(entry.plan, plans)}"
            )
            continue
        if entry.priced_by_plan and plan.nano_usd_per_million_tokens is None:
            document.report(("tenants", tenant_id, "priced_by_plan"), f"plan {plan.name} has no usd_per_1000_tokens")
        adapters = entry.adapters or []
        if entry.default_adapter and entry.default_adapter not in adapters:
            place = ("tenants", tenant_id, "default_adapter")
            document.report(place, f"{entry.default_adapter!r} is none of the tenant's adapters")
        tenants[tenant_id] = plan.tenant(tenant_id, entry.limits.values(), entry.fields(), pepper)
    return tenants


def keys_of(file: KeysFile, document: Document, tenants: Collection[str]) -> dict[str, KeyPolicy]:
    """Returns the keys of a file; what does not fit to the tenants is reported to the document."""
    keys: dict[str, KeyPolicy] = {}
    for number, entry in enumerate(file.keys):
        if entry.key_id in keys:
            document.report(("keys", number, "key_id"), f"{entry.key_id} is given to a second key")
        if entry.tenant not in tenants:
            document.report(
                ("keys", number, "tenant"), f"there is no tenant {entry.tenant!r}; {instead_of(entry.tenant, tenants)}"
            )
        expires_at = entry.expires_at.timestamp() if entry.expires_at else None
        keys[entry.key_id] = KeyPolicy(
            entry.key_id,
            entry.tenant,
            entry.hash,
            expires_at,
            models=models_of(entry.models),
            display_name=entry.display_name,
        )
    return keys
