"""The first layers of a stream's model, which read ahead of those above: an exit drafts with them, and the pass that
checks its drafts begins where it ended.

The keys and values of these layers go into the stream's own cache, in the very slots in which a pass of the whole model
would put them, and the states that they end with are kept until the layers above have read the same tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from decoding.models.early_exit import cut_to_layers, with_layers
from decoding.models.hooks import collect_outputs
from decoding.stream.forward import ForwardPasses
from decoding.stream.output import ForwardOutput

__all__ = ["LowerLayers"]


class LowerLayers:
    """The first layers of a model in the rows of one of its streams, and what they have read ahead.

    Args:
        model: of the stream.
        passes: of the stream.
        layers: how many there are.

    Attributes:
        count: how many there are.
        lengths: slots of each row that they hold; those of the stream's rows where nothing was read ahead.
        ahead: of each row, the tokens that were read ahead.
        drafts: of each row, how many of the tokens behind the first that :meth:`missing` is given next are drafts; None
            for all.
        usable: whether the layers above can go on from it; not from NaN, which the whole model reads again.
    """

    def __init__(self, model: Any, passes: ForwardPasses, layers: int) -> None:
        self.count = layers
        self.lengths: list[int] = []
        self.ahead: list[list[int]] = []
        self.drafts: Sequence[int] | None = None
        self.usable = False
        self.exit = cut_to_layers(model, layers)
        self._passes = ForwardPasses(self.exit)
        found = passes.structure.layers
        assert found is not None
        self._last = found[layers - 1]
        self._states: list[Tensor] = []  # of each row (n, dim), those of its tokens that were read ahead
        self._held: dict[str, Any] = {}
        above, backbone = with_layers(
            model,
            [*(_Passed(layer, self._held) for layer in found[:layers]), *found[layers:]],
            passes.structure.backbone,
        )
        self._above = copy.copy(passes)
        self._above.model, self._above.structure = above, replace(passes.structure, backbone=backbone)

    def begin(self, lengths: Sequence[int]) -> None:
        """Forget what was read ahead; the rows have so many slots."""
        self.lengths = list(lengths)
        self.ahead = [[] for _ in lengths]
        self._states = []
        self.usable = True

    def read(self, tokens: Sequence[Sequence[int]], inputs: dict[str, Any], rows: int, past: int) -> ForwardOutput:
        """Read tokens ahead.

        Args:
            tokens: of each row.
            inputs: of the model's forward, for (batch, n) tokens of which these are the first in each row.
            rows: see :meth:`decoding.stream.forward.ForwardPasses.run`.
            past: likewise.

        Returns:
            The output of the model as if it ended there.
        """
        with collect_outputs(self._last) as outputs:
            output, _ = self._passes.run(inputs, rows, past, every_logit=True)
        given = outputs[-1]
        states = given[0] if isinstance(given, tuple) else given
        self._held["tuple"] = len(given) if isinstance(given, tuple) else 0
        self._states = self._states or [states[row, :0] for row in range(rows)]
        for row, new in enumerate(tokens):
            self._states[row] = torch.cat([self._states[row], states[row, : len(new)]])
            self.ahead[row].extend(new)
            self.lengths[row] += len(new)
        self.usable = self.usable and not bool(states.isnan().any())
        return output

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of the exit for its hidden states (..., dim)."""
        return self._passes.structure.logits(self.exit, hidden)

    def missing(self, tokens: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """What is to be read of tokens behind each row, so that the layers above can go on; None where they begin
        otherwise than what was read ahead, or nothing was.
        """
        drafts, self.drafts = self.drafts, None
        if not self.usable or not any(self.ahead):
            return None
        counts = [len(row) - 1 for row in tokens] if drafts is None else drafts
        meant = [list(row[: 1 + count]) for row, count in zip(tokens, counts, strict=True)]
        if any(row[: len(read)] != read for row, read in zip(meant, self.ahead, strict=True)):
            return None
        return [row[len(read) :] for row, read in zip(meant, self.ahead, strict=True)]

    def read_above(self, inputs: dict[str, Any], rows: int, past: int) -> ForwardOutput:
        """Let the layers above read what was read ahead; arguments as in :meth:`read`. What a row has behind its drafts
        is of no meaning.
        """
        n = inputs["input_ids"].shape[1]
        states = self._states[0].new_zeros(rows, n, *self._states[0].shape[1:])
        for row, read in enumerate(self._states):
            states[row, : len(read)] = read[:n]
        self._held["states"] = states
        try:
            return self._above.run(inputs, rows, past, every_logit=True)[0]
        finally:
            del self._held["states"]
            self._states = []
            self.usable = False


class _Passed(nn.Module):
    """A layer that has been run: gives the states that are held, whatever it is given. Else it looks as the layer.

    Args:
        layer: in whose place it stands.
        held: the states, and of how many parts the layer's output is a tuple; 0 where it is none.
    """

    def __init__(self, layer: nn.Module, held: dict[str, Any]) -> None:
        super().__init__()
        self.__dict__["_looks"], self.__dict__["_held"] = layer, held  # the layer is no part of it

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_looks"], name)

    def forward(self, *_given: Any, **_named: Any) -> Any:
        states, parts = self._held["states"], self._held["tuple"]
        return (states, *[None] * (parts - 1)) if parts else states
