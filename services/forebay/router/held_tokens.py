"""The tokens of prompts that are in memory, bounded for one tenant and for all.

A prompt is kept until its request ends, because another worker may have to go on with it. With a context of 131,072 tokens a
tenant's thousand requests would be half a gigabyte.
"""

from __future__ import annotations

from collections import Counter

from forebay.errors import Code, MeshError, QuotaViolation

# Four bytes each. What waits here for a worker has been admitted by quota, so few tenants come near.
MAX_TOKENS = 64 << 20
MAX_TENANT_TOKENS = 16 << 20


class HeldTokens:
    """Counts the tokens of the prompts that are held."""

    def __init__(self, most: int = MAX_TOKENS, most_of_tenant: int = MAX_TENANT_TOKENS) -> None:
        """Prepares for at most `most` tokens, `most_of_tenant` of one tenant."""
        self._most = most
        self._most_of_tenant = most_of_tenant
        self._of_tenant: Counter[str] = Counter()
        self._by_request: dict[str, tuple[str, int]] = {}

    def hold(self, request_id: str, tenant_id: str, count: int) -> None:
        """Counts a request's prompt, once.

        Raises:
            MeshError: RESOURCE_EXHAUSTED TENANT_FULL or UNAVAILABLE ROUTER_FULL; it does not fit beside those that are held.
        """
        used = self._of_tenant[tenant_id]
        if used + count > self._most_of_tenant:
            message = (
                f"the prompts of the tenant on this router have {used:,} tokens; this one does not fit beside them"
            )
            violation = QuotaViolation(
                f"tenant:{tenant_id}", "prompt_tokens_per_router", self._most_of_tenant, used, count
            )
            raise MeshError(
                Code.RESOURCE_EXHAUSTED, "TENANT_FULL", message, retry_after=1, quota_violations=[violation]
            )
        if self._of_tenant.total() + count > self._most:
            message = "this router holds as many prompts as it takes; try again"
            raise MeshError(Code.UNAVAILABLE, "ROUTER_FULL", message, retry_after=1)
        self._of_tenant[tenant_id] += count
        self._by_request[request_id] = tenant_id, count

    def release(self, request_id: str) -> None:
        """No longer counts a request's prompt, if it has been counted."""
        tenant_id, count = self._by_request.pop(request_id, ("", 0))
        self._of_tenant[tenant_id] -= count
        if not self._of_tenant[tenant_id]:
            del self._of_tenant[tenant_id]
