"""The loss of answers: the head is applied where an answer's token is learnt, and nowhere else.

A head of a large vocabulary is most of a small model's work, and its logits most of the memory of training: of an
example of 60 tokens whose answer has 10, this takes a sixth of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from decoding.models.structure import ModelStructure

__all__ = ["NOT_LEARNT", "AnswerLoss"]

NOT_LEARNT = -100  # the label of a token that is not learnt


class AnswerLoss:
    """The cross-entropy of the tokens that are learnt.

    Args:
        structure: the model's parts. Where its head cannot be told apart from the rest of its ``forward``, logits of
            all places are computed; so are they where the passes of one batch are on several devices.
    """

    def __init__(self, structure: ModelStructure) -> None:
        self._head = structure.head if structure.separable else None

    @contextmanager
    def counted(self, labels: Tensor) -> Iterator[None]:
        """A context for a forward pass whose head is given the states of the places that count: (1, places, dim).

        Args:
            labels: (batch, n) the tokens themselves; NOT_LEARNT where a token is not learnt.
        """
        places = _places(labels)

        def select(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            if not inputs or inputs[0].shape[:2] != labels.shape:
                return inputs
            states = inputs[0][:, :-1]
            return (states[places.to(states.device)][None], *inputs[1:])

        hook = None if self._head is None else self._head.register_forward_pre_hook(select)
        try:
            yield
        finally:
            if hook is not None:
                hook.remove()

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss, in nats a token.

        Args:
            outputs: of the model, in the context of :meth:`counted`.
            labels: as there.
            num_items_in_batch: the number of learnt tokens of a step of several passes; None for those of this one.
        """
        logits = outputs.logits
        places = _places(labels).to(logits.device)
        if logits.shape[:2] == labels.shape:
            logits = logits[:, :-1][places][None]
        targets = labels[:, 1:].to(logits.device)[places]
        total = nn.functional.cross_entropy(logits[0].float(), targets, reduction="sum")
        count = targets.numel() if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).to(total.device)
        return total / count


def _places(labels: Tensor) -> Tensor:
    """(batch, n - 1): True where the next token is learnt."""
    return labels[:, 1:] != NOT_LEARNT
