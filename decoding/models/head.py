"""Changes that models make to hidden states before their head and to logits after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from decoding.models.text_config import text_config

__all__ = ["HEAD_TRANSFORMS", "NOT_ELEMENTWISE", "HeadTransform", "unpadded"]

# The change of hidden states before the head and that of logits after it, each a function of model and tensor.
HeadTransform = tuple[Callable[[Any, Tensor], Tensor], Callable[[Any, Tensor], Tensor]]


def _identity(model: Any, tensor: Tensor) -> Tensor:
    return tensor


def _softcapped(model: Any, logits: Tensor) -> Tensor:
    config = text_config(model)
    names = ("logits_soft_cap", "output_logit_soft_cap", "final_logit_softcapping")
    cap = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    if cap is None:
        raise AttributeError("no soft-cap of logits")
    return unpadded(model, torch.tanh(logits / cap) * cap)


def _multiplied_and_softcapped(model: Any, logits: Tensor) -> Tensor:
    return _softcapped(model, logits * text_config(model).output_multiplier)


def unpadded(model: Any, logits: Tensor) -> Tensor:
    """Logits without those of the head's padding rows."""
    return logits[..., : getattr(text_config(model), "unpadded_vocab_size", None)]


# The transform that comes closest to the model's own logits is used; of equals the first.
HEAD_TRANSFORMS: dict[str, HeadTransform] = {
    "head": (_identity, _identity),
    "head, soft-capped": (_identity, _softcapped),  # Gemma 2, RecurrentGemma, Inkling 2, xLSTM
    "head, times output_multiplier, soft-capped": (_identity, _multiplied_and_softcapped),  # Muse
    "head, times logit_scale": (_identity, lambda model, logits: logits * text_config(model).logit_scale),  # Cohere
    "head, over logits_scaling": (
        _identity,
        lambda model, logits: logits / text_config(model).logits_scaling,
    ),  # Granite
    "head of hidden / logits_scaling": (  # MiniCPM 3
        lambda model, hidden: hidden / text_config(model).logits_scaling,
        _identity,
    ),
    "head, times lm_head_multiplier": (  # Falcon-H1
        _identity,
        lambda model, logits: logits * text_config(model).lm_head_multiplier,
    ),
    "head, plus final_logits_bias": (
        _identity,
        lambda model, logits: logits + model.final_logits_bias.to(logits.device),
    ),  # BART, Marian
    "head of hidden / sqrt(d_model)": (  # T5 with tied embeddings
        lambda model, hidden: hidden * text_config(model).d_model ** -0.5,
        _identity,
    ),
    "head of hidden / logits_mup_width_multiplier": (  # Inkling
        lambda model, hidden: hidden / text_config(model).logits_mup_width_multiplier,
        unpadded,
    ),
}

# Those that change a logit by which token it is of: they need the logits of all tokens.
NOT_ELEMENTWISE = frozenset({"head, plus final_logits_bias"})
