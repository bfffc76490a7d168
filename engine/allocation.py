"""How this process asks the system for memory."""

import ctypes
import sys
from functools import cache

# Of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_PIECE_BYTES = 32 << 20
_KEPT_BYTES = 128 << 20


@cache
def keep_freed() -> None:
    """Let glibc keep what is freed for the next piece; elsewhere do nothing.

    It gives every freed buffer of some hundred KiB back, and the kernel clears each page anew: for a restore of big
    files that is a third of the work.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none
        mallopt(_MMAP_THRESHOLD, _PIECE_BYTES)
        mallopt(_TRIM_THRESHOLD, _KEPT_BYTES)
