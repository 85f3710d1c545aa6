"""How the C library's allocator treats freed memory: kept for the next array of like size.

By default glibc gives every array of some hundred kilobytes back to the kernel when it is freed and
gets fresh pages, filled with zeros one fault at a time, for the next one. Numpy and torch make and
free such arrays in every operation: on a virtual machine, where a fault is dear, that can cost
several times the operation itself (docs/LOG.md has figures).
"""

from __future__ import annotations

import ctypes

# From <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Larger arrays are mapped as before. The most that glibc documents.
MAPPED_BYTES = 32 << 20
# So much may lie free at the end of the heap before it goes back to the kernel.
KEPT_BYTES = 512 << 20


def keep_freed_memory() -> bool:
    """Reuse memory of freed arrays in this process; changes speed only.

    For commands, which compute much and end; a service, whose requests make small arrays and which
    stays, gains nothing.

    Returns:
        whether the C library knows how; False where it is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
