"""What the encoders of tiny models read: sounds, and sources of a translation, two rows each."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["two_sounds", "two_sources"]


def two_sounds(model: Any) -> dict[str, Any]:
    """Features of one segment for a Whisper."""
    shape = (2, model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return {"input_features": torch.randn(shape, generator=torch.Generator().manual_seed(5))}


def two_sources() -> dict[str, Any]:
    """Sources of different lengths, padded on the right, and the beginnings of their translations."""
    return {
        "input_ids": torch.tensor([[21, 22, 23, 24], [31, 32, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
        "decoder_input_ids": torch.tensor([[1, 61], [1, 61]]),
    }
