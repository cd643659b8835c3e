"""What callers are told when Redis or Valkey cannot be reached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis.exceptions import ResponseError

from forebay.errors import Code, MeshError
from forebay.redis_client import FAILURES

RETRY_AFTER_S = 1.0


@contextmanager
def reaching_the_store() -> Iterator[None]:
    """Turns what a client raises into QUOTA_STORE_UNAVAILABLE."""
    try:
        yield
    except FAILURES as error:
        raise unavailable(error) from None


def unavailable(error: Exception) -> MeshError:
    """Returns what callers are told of a failure."""
    # A server that answers so is there and takes no writes: its disk is full, it is loading, or it is a replica.
    refuses = isinstance(error, ResponseError)
    what = "their server refuses to change them" if refuses else "their server cannot be reached"
    message = f"the counters of the limits are unavailable, because {what} ({type(error).__name__}); try again"
    return MeshError(Code.UNAVAILABLE, "QUOTA_STORE_UNAVAILABLE", message, retry_after=RETRY_AFTER_S)
