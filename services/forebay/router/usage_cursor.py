"""The cursors of usage streams as tenants see them: encrypted, each for one tenant, and valid on every router of the mesh.

A cursor of metering is a position in the ledger of all tenants. A tenant that reads two of them knows how much all others used
between them. So a router encrypts it (AES-SIV, RFC 5297). The key follows from the pepper, which all routers share and which
outlives them; the tenant's id is authenticated with it. A nonce makes two cursors of one position differ, and padding makes all
cursors equally long: nothing shows whether the ledger has grown.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from forebay.errors import Code, FieldViolation, MeshError

_PREFIX = "u1."
_NONCE_BYTES = 16
# Metering's cursors have at most 22 characters; the first byte says how many.
_PADDED_BYTES = 32
_FORM = re.compile(r"u1\.[A-Za-z0-9_-]{86}")
# What a client may send that is no cursor of an earlier message: the beginning, and the present end.
_WORDS = ("", "now")


class UsageCursors:
    """Turns metering's cursors into tenants' and back."""

    def __init__(self, pepper: bytes) -> None:
        """Derives the key from the pepper that routers share."""
        self._cipher = AESSIV(hmac.digest(pepper, b"forebay usage cursor v1", hashlib.sha512))

    def seal(self, tenant_id: str, cursor: str) -> str:
        """Returns a cursor of metering as the tenant is sent it; none stays none."""
        if not cursor:
            return ""
        plain = cursor.encode()
        padded = bytes([len(plain)]) + plain.ljust(_PADDED_BYTES - 1, b"\0")
        assert len(padded) == _PADDED_BYTES, "metering's cursors are short"
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(padded, [tenant_id.encode(), nonce])
        return _PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")

    def open(self, tenant_id: str, cursor: str) -> str:
        """Returns metering's cursor of one that a tenant sends.

        Raises:
            MeshError: INVALID_ARGUMENT BAD_CURSOR; no router of this mesh has sent it to this tenant.
        """
        if cursor in _WORDS:
            return cursor
        if not _FORM.fullmatch(cursor):
            raise _bad_cursor()
        sealed = base64.urlsafe_b64decode(cursor.removeprefix(_PREFIX) + "==")
        if base64.urlsafe_b64encode(sealed).decode().rstrip("=") != cursor.removeprefix(_PREFIX):
            raise _bad_cursor()  # the last character has bits that say nothing
        nonce = sealed[:_NONCE_BYTES]
        try:
            padded = self._cipher.decrypt(sealed[_NONCE_BYTES:], [tenant_id.encode(), nonce])
        except InvalidTag:
            raise _bad_cursor() from None
        return padded[1 : 1 + padded[0]].decode()


def _bad_cursor() -> MeshError:
    violation = FieldViolation("cursor", 'must be the cursor of an earlier response, "now", or empty for the beginning')
    return MeshError(
        Code.INVALID_ARGUMENT, "BAD_CURSOR", f"cursor {violation.description}", field_violations=[violation]
    )
