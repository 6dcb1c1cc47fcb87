"""Which implementation of an operation runs: its Triton kernel or its torch form."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Literal

import torch

__all__ = ["BACKENDS", "Backend", "BackendError", "choose", "interpreted"]

Backend = Literal["auto", "triton", "torch"]
BACKENDS: tuple[Backend, ...] = ("auto", "triton", "torch")

VARIABLE = "DECODING_KERNELS"


class BackendError(ValueError):
    """A backend was asked for by name that does not exist or cannot run here."""


def choose(backend: str, device: torch.device | str) -> Literal["triton", "torch"]:
    """The backend that runs for tensors on ``device``.

    Args:
        backend: "triton" or "torch" by name, or "auto": what the environment variable ``DECODING_KERNELS`` names, or
            else triton for CUDA tensors where it can run, and torch.
        device: of the tensors.

    Raises:
        BackendError: an unknown name, or one asked for outright (here or by the variable) that cannot run; says why.
    """
    asked, name = "backend=", backend
    if backend == "auto":
        asked, name = f"{VARIABLE}=", os.environ.get(VARIABLE, "auto")
    if name not in BACKENDS:
        raise BackendError(f"{asked}{name!r}: accepted are {', '.join(BACKENDS)}")
    if name == "torch":
        return "torch"
    kind = torch.device(device).type
    if name == "auto":
        return "triton" if kind == "cuda" and _missing() is None else "torch"
    missing = _missing()
    if missing is None and kind != "cuda" and not interpreted():
        missing = f"the tensors are on {kind}, where kernels run only in Triton's interpreter (TRITON_INTERPRET=1)"
    if missing is not None:
        raise BackendError(f"{asked}'triton' cannot run here: {missing}; 'auto' and 'torch' can")
    return "triton"


def _missing() -> str | None:
    """What stands against any kernel on this machine, found out without importing triton; None where nothing does."""
    if not _installed():
        return "triton is not installed (pip install 'contrastive-decoding[triton]')"
    if not interpreted() and not _builds_c():
        return "triton builds its launchers in C, and a compiler or Python.h is absent (gcc and python3-dev bring them)"
    return None


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _builds_c() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cl")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on whatever device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")
