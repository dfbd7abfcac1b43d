"""What the process does with memory that it has let go of."""

import ctypes

# of mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Keep large blocks for the next tensor, on glibc: given back, they come again as pages that must be zeroed first.

    On a CPU that is a seventh of the time that drawing a batch takes. The command line does it, a library must not.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
    mallopt(M_TOP_PAD, 64 << 20)
