"""Rows of a batch by the kind of their requests: what they read, and the settings of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from decoding.serving.vllm.groups import Entry
from decoding.serving.vllm.requests import ContrastiveSearchRequest, Request

__all__ = ["RowReaders", "Rows", "grouped"]


class RowReaders:
    """What rows of a batch show of the model and its amateur; heads are applied when their logits are asked for.

    Args:
        model: a :class:`decoding.serving.vllm.model.ReadersMixin`.
        hidden: (rows, width) wide rows.
        expert: (rows, vocab) the model's logits.
        second: the same of the followers, whose prompts or adapters are others; None where there are none.
    """

    def __init__(self, model: Any, hidden: Tensor, expert: Tensor, second: tuple[Tensor, Tensor] | None = None) -> None:
        self._model, self._hidden = model, hidden
        self.expert = expert
        self._second_hidden: Tensor | None = None if second is None else second[0]
        self.second: Tensor | None = None if second is None else second[1]

    @cached_property
    def amateur(self) -> Tensor:
        """(rows, shared tokens) the amateur's logits."""
        if self._model.readers.adapter:
            assert self.second is not None  # the follower's, which has the adapter
            return self.second
        return self._fitted(self._model.amateur_logits(self._hidden))

    def exits(self, layers: Sequence[int], norm: bool) -> Tensor:
        """(layers, rows, vocab) logits at lower layers."""
        return self._model.exit_logits(self._hidden, layers, norm)

    def amateur_exits(self, layers: Sequence[int], norm: bool) -> Tensor:
        """(layers, rows, shared tokens) the amateur's logits at the shares of its depth that belong to these layers."""
        if self._model.readers.adapter:
            assert self._second_hidden is not None
            return self._model.exit_logits(self._second_hidden, layers, norm)
        return self._fitted(self._model.amateur_exit_logits(self._hidden, layers, norm))

    @property
    def shared(self) -> int:
        """The number of tokens that both vocabularies have."""
        return min(self.expert.shape[-1], self._model.amateur_vocab)

    def _fitted(self, logits: Tensor) -> Tensor:
        return logits[..., : self.shared]


class Rows:
    """Rows of a batch whose requests have one kind, and their settings on the device.

    Args:
        requests: one a row, or one alone that every row has.
        device: of the logits.
        at: the rows' places in the batch; None for all rows in their order.
        second_at: the places of their second readings; None where the kind has none.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        device: torch.device,
        at: Sequence[int] | None = None,
        second_at: Sequence[int] | None = None,
    ) -> None:
        self.requests, self._device = list(requests), device
        self.at, self.second_at = (
            None if places is None else torch.tensor(places, device=device) for places in (at, second_at)
        )
        self._layers_read: tuple[tuple[int, ...], Tensor | None] | None = None
        self._numbers: dict[str, float | Tensor] = {}

    def number(self, name: str) -> float | Tensor:
        """A parameter of the rows: a number where all have the same, else (rows,) float32."""
        if name not in self._numbers:
            values = [float(getattr(request, name)) for request in self.requests]
            same = len(set(values)) == 1
            self._numbers[name] = values[0] if same else torch.tensor(values, device=self._device)
        return self._numbers[name]

    def layers(self, name: str) -> tuple[tuple[int, ...], Tensor | None]:
        """The lower layers that any row reads, ascending, and (layers, rows) bool which of them each row reads.

        The latter is None where all rows read the same.
        """
        if self._layers_read is None:
            of_rows = [set(getattr(request, name)) for request in self.requests]
            every = tuple(sorted(set().union(*of_rows)))
            reads = None
            if any(len(layers) < len(every) for layers in of_rows):
                reads = torch.tensor([[layer in own for own in of_rows] for layer in every], device=self._device)
            self._layers_read = every, reads
        return self._layers_read


def grouped(entries: Iterable[tuple[int, Entry]], device: torch.device) -> list[Rows]:
    """Rows by kind, of places in a batch and what stands there.

    Searches are left out, and second prompts whose leader or follower is not in the batch.
    """
    kinds: dict[Any, list[tuple[int, Request, int | None]]] = {}
    entries = list(entries)
    seconds = {entry.member.group: at for at, entry in entries if entry.member is not None and entry.member.number == 1}
    for at, entry in entries:
        if isinstance(entry.request, ContrastiveSearchRequest):
            continue
        second_at = None
        if entry.member is not None:
            second_at = seconds.get(entry.member.group)
            if entry.member.number or second_at is None:
                continue
        kinds.setdefault(entry.request.kind, []).append((at, entry.request, second_at))
    groups = []
    for rows in kinds.values():
        places, requests, second_places = zip(*rows, strict=True)
        paired = None if second_places[0] is None else second_places
        groups.append(Rows(requests, device, places, paired))
    return groups
