"""Settings of processes of which each imports torch and transformers for a test."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator

__all__ = ["prepare", "without"]


@contextlib.contextmanager
def without(package: str) -> Iterator[None]:
    """A context in which an installed package is not found."""
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


def prepare() -> None:
    """Leave out what only costs time: a second for hqq, which transformers imports wherever it is installed, with
    torch's inductor, and which quantises no cache here; 0.3 s for scipy, which it imports for losses of
    detected objects, and scikit-learn, which needs scipy and which older versions import for assistants; another second
    for the garbage collector while all that is imported.
    """
    for name in ("hqq", "scipy", "sklearn"):
        sys.modules[name] = None  # type: ignore[assignment]
    gc.disable()
