"""Virtual API keys: `fb_<key id>_<secret>`, the id public and the secret 256 random bits.

Only SHA-256(pepper ‖ key) is stored. A fast hash is right here, where it would be wrong for a password: 256 random bits cannot be
guessed at any speed, and the router hashes once per request.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets

_KEY = re.compile(r"fb_([a-z2-7]{12})_[A-Za-z0-9_-]{43}")


def new_key() -> tuple[str, str]:
    """Returns a fresh key id and the key that contains it."""
    key_id = base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]
    return key_id, f"fb_{key_id}_{base64.urlsafe_b64encode(secrets.token_bytes(32)).decode().rstrip('=')}"


def hash_key(pepper: bytes, key: str) -> bytes:
    """Returns the 32 bytes that are stored in place of a key."""
    return hashlib.sha256(pepper + key.encode()).digest()


def presented_key(authorization: str) -> str:
    """Returns the key in an `authorization` header: of the scheme Bearer, or without a scheme.

    A scheme's name is case-insensitive, and one space or more follow it (RFC 9110). A header of another scheme is returned as it
    is, which is no key.
    """
    words = authorization.split(maxsplit=1)
    if len(words) == 2 and words[0].lower() == "bearer":
        return words[1].strip()
    return authorization.strip()


def parse_key_id(key: str) -> str | None:
    """Returns the id in a key, or None when the text is no key at all."""
    match = _KEY.fullmatch(key)
    return match.group(1) if match else None
