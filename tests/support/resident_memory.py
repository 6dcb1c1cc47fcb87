"""Resident memory of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

__all__ = ["resident"]


def resident() -> int:
    """Bytes of this process in memory, once what is free has gone back to the system."""
    gc.collect()
    with contextlib.suppress(OSError):  # of another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what glibc keeps for later counts as used
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status says nothing of VmRSS")
