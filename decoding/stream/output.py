"""What a forward pass gave, and how readings are cut and joined."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ForwardOutput", "branched", "joined", "picked", "recorded", "reordered"]


@dataclass
class ForwardOutput:
    """What a forward pass over n tokens gave.

    Attributes:
        hidden: (batch, n, dim) hidden states after the final norm, or (batch, branches, n, dim) of a branch.
        logits: where the pass computed them, (batch, n, vocab) or (batch, branches, n, vocab) as ``hidden``, or
            those of the last token alone (n = 1); None where the head was left out.
        exits: the states that the lower layers asked for were given, one (batch, n, dim) a layer, before any final
            norm; of a prompt, those of its last token (n = 1).
        hidden_states: per layer, as transformers returns them, where asked for; None otherwise.
        attentions: likewise.
        cross_attentions: likewise, encoder-decoder models only.
    """

    hidden: Tensor
    logits: Tensor | None = None
    exits: tuple[Tensor, ...] = ()
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


def joined(readings: list[ForwardOutput]) -> ForwardOutput:
    """One reading of tokens that were read one after the other."""
    if len(readings) == 1:
        return readings[0]
    last = copy.copy(readings[-1])  # layers' states and attentions, where asked for, are those of the last token
    last.hidden = torch.cat([each.hidden for each in readings], dim=1)
    last.exits = tuple(torch.cat(layer, dim=1) for layer in zip(*(each.exits for each in readings), strict=True))
    if last.logits is not None:
        last.logits = torch.cat([each.logits for each in readings if each.logits is not None], dim=1)
    return last


def branched(reading: ForwardOutput, dim: int, sizes: tuple[int, int]) -> ForwardOutput:
    """The reading of a pass over branches laid out along one dimension, with that dimension cut into two."""
    chosen = copy.copy(reading)
    chosen.hidden = reading.hidden.unflatten(dim, sizes)
    chosen.exits = tuple(each.unflatten(dim, sizes) for each in reading.exits)
    chosen.logits = None if reading.logits is None else reading.logits.unflatten(dim, sizes)
    return chosen


def picked(reading: ForwardOutput, rows: Tensor) -> ForwardOutput:
    """The reading of some rows."""
    chosen = copy.copy(reading)
    for name, value in vars(reading).items():
        if value is not None:
            setattr(
                chosen,
                name,
                _of(value, rows) if isinstance(value, Tensor) else tuple(_of(each, rows) for each in value),
            )
    return chosen


def _of(states: Tensor, rows: Tensor) -> Tensor:
    return states[rows.to(states.device)]  # a model's layers may be on several devices


def recorded(output: Any) -> tuple[Any, Any, Any]:
    """Hidden states, attentions and cross-attentions of a model output; None for each that was not asked for."""
    hidden_states = output.get("decoder_hidden_states", output.get("hidden_states"))
    attentions = output.get("decoder_attentions", output.get("attentions"))
    return hidden_states, attentions, output.get("cross_attentions")


def reordered(kwargs: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A model's keyword arguments with row i taken from row ``rows[i]``; caches have their own ``reorder_cache``."""
    changed = dict(kwargs)
    for name, value in kwargs.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            changed[name] = value.index_select(
                1 if name == "position_ids" and value.dim() == 3 else 0, rows.to(value.device)
            )
        elif name == "encoder_outputs" and value is not None:
            changed[name] = type(value)(**reordered(dict(value), rows))
    return changed
