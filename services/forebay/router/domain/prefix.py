"""Hashes of a prompt's leading blocks, by which the scheduler finds a worker that may have them cached.

The scheduler is to see that two prompts of one tenant begin alike, and nothing else: not the tokens, and not that two tenants
have a prompt in common. So the hash is keyed (BLAKE2b's own key parameter, RFC 7693) with the tenant's isolation key, which the
scheduler does not have. Blocks are chained: equal hashes at one position mean equal prompts up to there.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

MAX_HASHES = 256


def prefix_hashes(token_ids: Sequence[int], block_tokens: int, isolation_key: bytes, scope: str) -> list[int]:
    """Returns 64-bit hashes of the whole leading blocks of a prompt, outermost first, at most 256.

    Args:
        token_ids: the prompt.
        block_tokens: tokens per block; what is left over at the end has no hash.
        isolation_key: the tenant's secret, 1 to 64 bytes; without one there are no hashes, for unkeyed ones could be guessed.
        scope: what else must be equal for cached blocks to be of use: model and adapter.
    """
    if not isolation_key:
        return []
    packed = array("I", token_ids).tobytes()
    block_bytes = block_tokens * array("I").itemsize
    chain = scope.encode()
    hashes = []
    for end in range(block_bytes, min(len(packed), MAX_HASHES * block_bytes) + 1, block_bytes):
        chain = blake2b(chain + packed[end - block_bytes : end], digest_size=8, key=isolation_key).digest()
        hashes.append(int.from_bytes(chain, "little"))
    return hashes
