"""How a stream goes on on another engine (rule P7)."""

import hashlib


def continuation_seed(seed: int, position: int) -> int:
    """Returns the sampling seed of a stream that continues at `position`; 63 bits, since vLLM keeps it in a signed word.

    At position 0 it is the seed itself, so an undisturbed run draws what vLLM called directly would draw. Later positions
    must not repeat the random numbers of the first.
    """
    if position:
        digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
        seed = int.from_bytes(digest, "little")
    return seed & (1 << 63) - 1
