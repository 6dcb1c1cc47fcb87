"""The choice of an operation's backend: its Triton kernels or its torch form."""

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

ENVIRONMENT_VARIABLE = "DECODING_KERNELS"


class BackendError(ValueError):
    """A backend was requested by name that does not exist or cannot run here."""


def choose(backend: str, device: torch.device | str) -> Literal["triton", "torch"]:
    """Choose the backend that runs for tensors on ``device``.

    Args:
        backend: "triton", "torch" or "auto". "auto" is the value of the environment variable ``DECODING_KERNELS``;
            without it, triton for CUDA tensors where triton can run, and torch everywhere else.
        device: device of the tensors.

    Returns:
        "triton" or "torch".

    Raises:
        BackendError: the name is unknown, or triton was requested (here or by the variable) and cannot run; the
            message says why.
    """
    setting, name = "backend", backend
    if backend == "auto":
        setting, name = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if name not in BACKENDS:
        raise BackendError(f"{setting} must be one of {', '.join(BACKENDS)}, got {name!r}")
    if name == "torch":
        return "torch"
    device_type = torch.device(device).type
    if name == "auto":
        return "triton" if device_type == "cuda" and _obstacle() is None else "torch"
    obstacle = _obstacle()
    if obstacle is None and device_type != "cuda" and not interpreted():
        obstacle = (
            f"the tensors are on {device_type}, where kernels run only in Triton's interpreter (TRITON_INTERPRET=1)"
        )
    if obstacle is not None:
        raise BackendError(f"{setting}='triton' cannot run here: {obstacle}; use 'auto' or 'torch'")
    return "triton"


def interpreted() -> bool:
    """Tell whether Triton runs kernels in its interpreter, which works on any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "y", "yes")


def _obstacle() -> str | None:
    """Say why no kernel can run on this machine, without importing triton; None if kernels can run."""
    if not _has_triton():
        return "triton is not installed (pip install 'contrastive-decoding[triton]')"
    if not interpreted() and not _can_build_c():
        return "triton builds its launchers in C, and a compiler or Python.h is absent (gcc and python3-dev bring them)"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _can_build_c() -> bool:
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cl")
    return compiler is not None and Path(sysconfig.get_path("include"), "Python.h").exists()
