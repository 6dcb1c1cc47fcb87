"""A process without hqq, which transformers imports wherever it is installed, with torch's inductor: a second."""

from __future__ import annotations

import sys

__all__ = ["leave_out"]


def leave_out() -> None:
    """Let hqq be absent from this process, which quantises no cache."""
    sys.modules["hqq"] = None  # type: ignore[assignment]
