"""Versions of what decides the numbers."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata

__all__ = ["__version__", "versions"]

__version__ = "0.1.0"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers; triton is "absent" where it is not installed."""
    import torch
    import transformers

    triton = metadata.version("triton") if importlib.util.find_spec("triton") else "absent"
    return {
        "contrastive-decoding": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": triton,
    }
