"""The salt that keeps tenants apart in the engine's prefix cache (law 7)."""

import hashlib
import hmac


def cache_salt(isolation_key: bytes) -> str:
    """Returns a tenant's salt: 64 hex digits that only its isolation key yields.

    Blocks are shared only between requests with the same salt, so no tenant can hit, or find out by timing, what another has
    cached. Derived, so that the key itself enters no engine.
    """
    return hmac.new(isolation_key, b"prefix-cache", hashlib.sha256).hexdigest()
