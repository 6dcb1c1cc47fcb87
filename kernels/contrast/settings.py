"""Settings of a contrast: one number for the call, or a tensor with one for each row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

__all__ = ["Setting", "column", "log_of", "packed", "require_one_a_row"]

Setting = float | Tensor


def require_one_a_row(logits: Tensor, **settings: Setting | None) -> None:
    """Raise ValueError unless every setting that is a tensor has one number for each row of (..., vocab) logits."""
    rows = logits.shape[:-1]
    for name, setting in settings.items():
        if isinstance(setting, Tensor) and (setting.shape != rows or setting.device != logits.device):
            raise ValueError(
                f"{name} must be a number, or one for each row, {tuple(rows)} on {logits.device}, got "
                f"{tuple(setting.shape)} on {setting.device}"
            )


def column(setting: Tensor) -> Tensor:
    """Return settings (...) as (..., 1) float32, which a row's tokens share."""
    return setting.float()[..., None]


@overload
def log_of(alpha: Tensor) -> Tensor: ...
@overload
def log_of(alpha: float) -> float: ...
def log_of(alpha: Setting) -> Setting:
    """Compute log α, -inf for 0.

    Of a tensor it is computed in float64: the float32 logarithm may be rounded otherwise than that of the same number.
    """
    if isinstance(alpha, Tensor):
        return alpha.double().log().float()
    return math.log(alpha) if alpha > 0 else -math.inf


def packed(settings: Sequence[Setting]) -> Tensor | None:
    """Put the settings of each row side by side, (rows, settings) float32; None where all of them are numbers.

    Numbers are filled in on the tensors' device, and not copied to it.
    """
    like = next((setting for setting in settings if isinstance(setting, Tensor)), None)
    if like is None:
        return None
    tensors = [
        setting if isinstance(setting, Tensor) else torch.full_like(like, setting, dtype=torch.float32)
        for setting in settings
    ]
    return torch.stack([tensor.float().flatten() for tensor in tensors], 1)
