"""Versions of what decides the numbers, and the versions of transformers that this library was tested with."""

from __future__ import annotations

import importlib.util
import platform
import warnings
from importlib import metadata

from decoding.errors import DecodingWarning

__all__ = ["NEWEST_TRANSFORMERS", "OLDEST_TRANSFORMERS", "__version__", "check_transformers", "versions"]

__version__ = "0.1.0"

# The minor versions at both ends of the range in pyproject.toml, which `make compat` tests.
OLDEST_TRANSFORMERS = (5, 17)
NEWEST_TRANSFORMERS = (5, 24)


def check_transformers(installed: str) -> None:
    """Say so where the version of transformers is older or newer than those that are supported.

    Raises:
        ImportError: it is older, or of another major version.

    Warns:
        DecodingWarning: it is newer than the newest that was tested.
    """
    oldest, newest = (".".join(map(str, end)) for end in (OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS))
    wanted = f"transformers {oldest} to {newest}"
    major, minor = (int(part) for part in installed.split(".")[:2])
    if (major, minor) < OLDEST_TRANSFORMERS or major > NEWEST_TRANSFORMERS[0]:
        bounds = f"transformers>={oldest},<{NEWEST_TRANSFORMERS[0]}.{NEWEST_TRANSFORMERS[1] + 1}"
        raise ImportError(f"decoding needs {wanted}, this is {installed}: pip install '{bounds}'")
    if (major, minor) > NEWEST_TRANSFORMERS:
        warnings.warn(
            f"decoding was tested with {wanted}, this is {installed}: what differs may fail", DecodingWarning, 3
        )


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
