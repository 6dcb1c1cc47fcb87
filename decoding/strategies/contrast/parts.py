"""What the scores of a contrast are made of, for explanations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoding.generation.score_parts import ScoreParts
from decoding.strategies.contrast.readers import Reader, ReaderLogits

__all__ = ["ContrastParts", "ReaderWeights", "exit_name", "is_exit_name", "named_parts"]


@dataclass(frozen=True)
class ReaderWeights:
    """The weights with which a reader's log-probabilities enter the scores.

    Attributes:
        final: of those after its last layer, a number or (...).
        exits: (exits, ...) of those after the lower layers; None where these do not enter.
    """

    final: float | Tensor
    exits: Tensor | None = None


@dataclass(frozen=True)
class ContrastParts:
    """A contrast's scores as a weighted sum, up to a number that all tokens of a position share.

    Attributes:
        weights: by role; empty where the scores are no such sum.
        terms: by name (..., vocab), what else enters, with its weight (a number or (...)).
        settings: by name (...), what the strategy has set for a position, such as a strength.
        chosen_exit: (...) int64, index of the expert's exit that was chosen; None where none is.
        chosen_by: the measure of the exits by which it was chosen, the largest: its name and (exits, ...); None where
            there was one to choose.
    """

    weights: Mapping[str, ReaderWeights] = field(default_factory=dict)
    terms: Mapping[str, tuple[Tensor, float | Tensor]] = field(default_factory=dict)
    settings: Mapping[str, Tensor] = field(default_factory=dict)
    chosen_exit: Tensor | None = None
    chosen_by: tuple[str, Tensor] | None = None


def exit_name(role: str, layer: int) -> str:
    """The name of a reader that exits after so many layers."""
    return f"{role}, layer {layer}"


def is_exit_name(name: str) -> bool:
    """True of the name of a reader that exits after a lower layer."""
    return re.search(r", layer \d+$", name) is not None


def named_parts(
    parts: ContrastParts, readers: list[Reader], logits: Mapping[str, ReaderLogits], scores: Tensor
) -> ScoreParts:
    """The parts of a step by the names of readers, their exits among them.

    Args:
        parts: of (batch,) positions.
        readers: of the call, the expert first.
        logits: by role.
        scores: (batch, vocab) float32.
    """
    named: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}

    def add(name: str, weight: float | Tensor) -> None:
        """Add a weight; an amateur with fewer layers may exit after one of them for several of the expert's."""
        by_row = torch.as_tensor(weight, dtype=torch.float32, device=scores.device).expand(len(scores))
        weights[name] = weights[name] + by_row if name in weights else by_row

    for reader in readers:
        own, own_weights = logits[reader.role], parts.weights.get(reader.role)
        named[reader.role] = own.final
        if own_weights is not None:
            add(reader.role, own_weights.final)
        for index, layer in enumerate(reader.exits):
            assert own.exits is not None
            name = exit_name(reader.role, layer)
            named[name] = own.exits[index]
            if own_weights is not None and own_weights.exits is not None:
                add(name, own_weights.exits[index])
    settings = {name: values.to(scores.device) for name, values in parts.settings.items()}
    if parts.chosen_exit is not None:
        chosen = parts.chosen_exit.to(scores.device)
        settings["layer"] = torch.tensor(readers[0].exits, device=scores.device)[chosen]
    if parts.chosen_by is not None:
        measure, of_exits = parts.chosen_by
        for layer, values in zip(readers[0].exits, of_exits.to(scores.device, torch.float32), strict=True):
            settings[f"{measure} of layer {layer}"] = values.clamp(max=torch.finfo(torch.float32).max)
    terms = {}
    for name, (values, weight) in parts.terms.items():
        terms[name] = values.to(scores.device, torch.float32)
        add(name, weight)
    return ScoreParts(scores, named, terms, weights, settings)
