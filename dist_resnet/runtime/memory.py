"""The C library's allocator, told to keep the memory that a step frees for the next step."""

import ctypes
import platform

# mallopt(3)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
TOP_PAD = 2**28  # bytes that the heap grows by at least


def keep_freed_memory() -> bool:
    """For a worker on a CPU, before its first tensor. Returns whether the allocator took it.

    glibc maps every tensor above some size anew and gives it back when it is freed, so that a step
    spends a fifth of its time on page faults. What is kept is reused: a process takes no more than
    at its peak. Other C libraries, and other allocators (LD_PRELOAD), are left alone."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1, M_TOP_PAD: TOP_PAD}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
