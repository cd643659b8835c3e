"""Memory that was used once and is given back to the system.

The C library keeps what is freed, for the next time: after a burst of large messages a process would have their sum for ever.
Pieces above a bound are taken from the system one by one and go back when they are freed. Left alone, the bound grows with the
largest piece that was freed, so it is fixed here. Few arenas keep what threads leave behind together, where it can be given back.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_LARGE_BYTES = 128 << 10
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def _libc(name: str) -> Callable[..., int] | None:
    """Returns a function of the C library; None where the library has none of that name."""
    try:
        function: Callable[..., int] = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
    return function


def give_back_early() -> None:
    """Has the C library give back what is freed; for the beginning of a process, before it has threads."""
    mallopt = _libc("mallopt")
    if mallopt is not None:
        for option, value in ((_M_ARENA_MAX, 2), (_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _LARGE_BYTES)):
            mallopt(option, value)


def trim() -> None:
    """Gives back what is free now; takes some milliseconds."""
    malloc_trim = _libc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)
