"""Autocast inside a model's own ``forward``, as accelerate's mixed precision puts it there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from decoding.models.devices import input_device

__all__ = ["autocast_to", "recorded_autocast"]


def autocast_to(dtype: torch.dtype | None, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to a dtype on a device within the context; none for None."""
    if dtype is None:
        return nullcontext()
    # A weight is used once a pass: keeping its copy gains nothing, and would break captured steps.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


@contextmanager
def recorded_autocast(model: Any) -> Iterator[list[torch.dtype]]:
    """Collect the dtype of the autocast that the model's ``forward`` calls its head under, where it is not that around.

    A caller's own autocast is around the calls of the model's parts as well, and is not collected.
    """
    kind = input_device(model).type
    dtypes: list[torch.dtype] = []

    def state() -> torch.dtype | None:
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None

    around = state()

    def keep(*_: Any) -> None:
        inside = state()
        if inside is not None and inside != around:
            dtypes.append(inside)

    handle = model.get_output_embeddings().register_forward_pre_hook(keep)
    try:
        yield dtypes
    finally:
        handle.remove()
