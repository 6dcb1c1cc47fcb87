"""Images and videos that ``generate`` has encoded, joined for readers that share a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["joined_encodings"]

UNREAD = {"last_hidden_state", "hidden_states", "attentions"}  # of what is encoded; no text model reads them
READ = {"pooler_output", "deepstack_features"}  # by images or tokens first, and by layers


def joined_encodings(readers: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What readers' images and videos were encoded to, as if these had been encoded together.

    Args:
        readers: of each reader its ``mm_encoder_outputs``, the model's output by modality.

    Returns:
        The same of all of them; None where it is not known how to join them: other parts of an encoder's output are
        read as well, or sizes differ that a tensor needs to be equal.
    """
    joined: dict[str, Any] = {}
    for kind in dict.fromkeys(kind for reader in readers for kind in reader):
        outputs = [reader[kind] for reader in readers if isinstance(reader.get(kind), Mapping)]
        if len(outputs) < len(readers):
            return None
        given = {name for output in outputs for name, value in output.items() if value is not None} - UNREAD
        if not given <= READ or "pooler_output" not in given:
            return None
        pooled = _joined([output["pooler_output"] for output in outputs])
        if pooled is None:
            return None
        parts = {"pooler_output": pooled}
        if "deepstack_features" in given:
            by_layer = [output.get("deepstack_features") for output in outputs]
            if any(layers is None or len(layers) != len(by_layer[0]) for layers in by_layer):
                return None
            layers = [_joined(of_layer) for of_layer in zip(*by_layer, strict=True)]
            if any(layer is None for layer in layers):
                return None
            parts["deepstack_features"] = layers
        joined[kind] = type(outputs[0])(**parts)
    return joined


def _joined(parts: Sequence[Any]) -> Any:
    """Tensors one after another, or the lists of them; None where they do not fit."""
    if all(isinstance(part, Tensor) for part in parts):
        fit = len({(part.shape[1:], part.dtype, part.device) for part in parts}) == 1
        return torch.cat(list(parts)) if fit else None
    if all(isinstance(part, (list, tuple)) and all(isinstance(item, Tensor) for item in part) for part in parts):
        return [item for part in parts for item in part]
    return None
