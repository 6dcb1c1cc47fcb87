"""Inputs for test passes of any text model, and the comparison of their outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from decoding.models.devices import input_device
from decoding.models.text_config import vocab_size

__all__ = ["NO_NUMBERS", "PROBED", "probe_inputs", "relative_error", "tolerance"]

NO_NUMBERS = "its logits are NaN: its weights or its dtype overflow"


PROBED = 6  # tokens


def probe_inputs(model: Any, batch: int = 1, length: int = PROBED) -> dict[str, Any]:
    """Random token ids (batch, length) for any text model, always the same.

    For an encoder-decoder those of its decoder, and those of its encoder or, where that takes no text, its output.
    """
    vocab = vocab_size(model)
    generator = torch.Generator().manual_seed(0)
    low = min(10, vocab - 1)  # the first ids are often pad, bos and the like

    def ids() -> Tensor:
        return torch.randint(low, min(vocab, 1000), (batch, length), generator=generator).to(input_device(model))

    if not model.config.is_encoder_decoder:
        return {"input_ids": ids()}
    if model.main_input_name == "input_ids":
        return {"input_ids": ids(), "decoder_input_ids": ids()}
    # An encoder of sound or images, which is not run: random states take the place of its output.
    width = model.get_encoder().config.hidden_size
    states = torch.randn(batch, length, width, generator=generator, dtype=torch.float32).to(
        input_device(model), model.dtype
    )
    encoded = BaseModelOutput(last_hidden_state=states)
    encoded.attention_mask = None  # Moonshine and others look for it here
    return {"encoder_outputs": encoded, "decoder_input_ids": ids()}


def tolerance(dtype: torch.dtype) -> float:
    """Relative RMS error below which two computations of the same hidden states count as equal."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 5e-2


def relative_error(value: Tensor, reference: Tensor) -> float:
    """RMS of the difference over RMS of the reference, in float64; infinity where either is not finite."""
    value, reference = value.double(), reference.double().to(value.device)
    if value.shape != reference.shape or not bool(torch.isfinite(value).all()):
        return float("inf")
    return float((value - reference).square().mean().sqrt() / reference.square().mean().sqrt().clamp_min(1e-30))
