"""Which implementation of an operation runs."""

from __future__ import annotations

from typing import Literal

__all__ = ["Backend", "BackendError", "choose"]

Backend = Literal["auto", "torch"]


class BackendError(ValueError):
    """A backend was asked for by name that does not exist or cannot run here."""


def choose(backend: str, available: tuple[str, ...] = ("torch",)) -> str:
    """The backend to run: ``auto`` takes the first of ``available``; one asked for by name must be among them.

    Raises:
        BackendError: ``backend`` is none of them.
    """
    if backend == "auto":
        return available[0]
    if backend not in available:
        raise BackendError(f"backend={backend!r} is not available here; accepted: auto, {', '.join(available)}")
    return backend
