"""The output of a forward pass, and how outputs are cut, joined and reordered."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "ForwardOutput",
    "at_places",
    "at_token",
    "at_tokens",
    "joined",
    "joined_tokens",
    "mapped",
    "picked",
    "recorded",
    "reordered",
    "split_branches",
]


@dataclass
class ForwardOutput:
    """Output of a forward pass over n tokens.

    Attributes:
        hidden: (batch, n, dim) hidden states after the final norm, or (batch, branches, n, dim) of a branch.
        logits: where the pass computed them, (batch, n, vocab) or (batch, branches, n, vocab) as ``hidden``, or
            those of the last token alone (n = 1); None where the head was left out.
        exits: inputs of the lower layers that were asked for, one (batch, n, dim) a layer, before any final norm; of a
            prompt, those of its last token (n = 1).
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


def joined(outputs: list[ForwardOutput]) -> ForwardOutput:
    """One output for tokens that were read in several passes, one after the other."""
    if len(outputs) == 1:
        return outputs[0]
    last = copy.copy(outputs[-1])  # layers' states and attentions, where asked for, are those of the last token
    last.hidden = torch.cat([output.hidden for output in outputs], dim=1)
    last.exits = tuple(torch.cat(layer, dim=1) for layer in zip(*(output.exits for output in outputs), strict=True))
    if last.logits is not None:
        last.logits = torch.cat([output.logits for output in outputs if output.logits is not None], dim=1)
    return last


def joined_tokens(outputs: list[ForwardOutput]) -> ForwardOutput:
    """One output for tokens that were read in several passes, layers' states included; attentions are left out."""
    first, *others = outputs

    def whole(states: Tensor, *more: Tensor) -> Tensor:
        return torch.cat([states, *more], dim=1)

    return ForwardOutput(
        whole(first.hidden, *(output.hidden for output in others)),
        None if first.logits is None else whole(*(output.logits for output in outputs if output.logits is not None)),
        tuple(map(whole, *(output.exits for output in outputs))),
        None
        if first.hidden_states is None
        else tuple(map(whole, *(output.hidden_states for output in outputs if output.hidden_states is not None))),
    )


def at_token(output: ForwardOutput, index: int) -> ForwardOutput:
    """The output of one token of a pass over n; attentions are left out."""
    return mapped(output, lambda states: states[:, index : index + 1])


def at_tokens(output: ForwardOutput, *parts: slice) -> ForwardOutput:
    """The output of some tokens of a pass, in the order of the parts; attentions are left out."""
    return mapped(output, lambda states: torch.cat([states[:, part] for part in parts], dim=1))


def at_places(output: ForwardOutput, places: Tensor) -> ForwardOutput:
    """The output of some tokens of each row, (rows, n) their places; attentions are left out."""
    rows = torch.arange(len(places), device=places.device)[:, None]
    return mapped(output, lambda states: states[rows.to(states.device), places.to(states.device)])


def mapped(output: ForwardOutput, change: Callable[[Tensor], Tensor]) -> ForwardOutput:
    """The output with a change of the states (batch, n, ...) of every kind that it has; attentions are left out."""
    return ForwardOutput(
        change(output.hidden),
        None if output.logits is None else change(output.logits),
        tuple(map(change, output.exits)),
        None if output.hidden_states is None else tuple(map(change, output.hidden_states)),
    )


def split_branches(output: ForwardOutput, dim: int, sizes: tuple[int, int]) -> ForwardOutput:
    """The output of a pass over branches that lie along one dimension, with that dimension split into two."""
    result = copy.copy(output)
    result.hidden = output.hidden.unflatten(dim, sizes)
    result.exits = tuple(states.unflatten(dim, sizes) for states in output.exits)
    result.logits = None if output.logits is None else output.logits.unflatten(dim, sizes)
    return result


def picked(output: ForwardOutput, rows: Tensor) -> ForwardOutput:
    """The output of some rows."""
    result = copy.copy(output)
    for name, value in vars(output).items():
        if isinstance(value, Tensor):
            setattr(result, name, _rows_of(value, rows))
        elif value is not None:
            setattr(result, name, tuple(_rows_of(states, rows) for states in value))
    return result


def _rows_of(states: Tensor, rows: Tensor) -> Tensor:
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
