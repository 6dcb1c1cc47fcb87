"""Memory of this process: what is resident, and which tensors are alive."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

__all__ = ["live_tensors", "resident", "stays_flat"]

WINDOWS = 3


def resident() -> int:
    """Bytes of this process in memory, once what is free has gone back to the system."""
    gc.collect()
    return _in_memory()


def _in_memory() -> int:
    with contextlib.suppress(OSError):  # of another libc
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # else what glibc keeps for later counts as used
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status says nothing of VmRSS")


def live_tensors() -> int:
    """Count the tensors that somebody holds."""
    gc.collect()
    return _tracked_tensors()


def _tracked_tensors() -> int:
    return sum(issubclass(type(tracked), Tensor) for tracked in gc.get_objects())


def stays_flat(calls: Callable[[], object], memory: int) -> bool:
    """Run the same calls several times: True where one time leaves no tensor, and fewer bytes than ``memory``.

    What every call leaves behind grows each time. What libc keeps in a process of 2 GB grows once in a while, and a
    cache that fills once.
    """
    gc.collect()
    gc.freeze()  # what is there already is neither passed over nor counted again: 50 ms each time
    for _ in range(WINDOWS):
        before = _in_memory()
        tensors = _tracked_tensors()
        calls()
        gc.collect()
        if _tracked_tensors() == tensors and _in_memory() - before < memory:
            return True
    return False
