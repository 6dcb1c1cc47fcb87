"""Settings of processes of which each imports torch and transformers for a test."""

from __future__ import annotations

import gc
import sys

__all__ = ["prepare"]


def prepare() -> None:
    """Leave out what only costs time: a second for hqq, which transformers imports wherever it is installed, with
    torch's inductor, and which quantises no cache here; another for the garbage collector while all that is imported.
    """
    sys.modules["hqq"] = None  # type: ignore[assignment]
    gc.disable()
