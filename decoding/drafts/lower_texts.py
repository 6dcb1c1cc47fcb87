"""The texts of a batch as the first layers of the generating model read ahead of the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.capabilities.lower_layers import may_read_ahead
from decoding.stream.lower_layers import LowerLayers
from decoding.stream.separate_rows import SeparateRows
from decoding.stream.stream import Stream

__all__ = ["LowerTexts", "lower_texts"]


class LowerTexts:
    """An exit that drafts with the stream of the whole model, whose other layers go on from what it has computed.

    It stands in the place of :class:`decoding.drafts.texts_read.TextsRead`, and has no cache of its own.

    Args:
        stream: of the whole model. It has read all of each text but the last token whenever drafts are wanted.
        rows: of the stream, with lower layers.
    """

    def __init__(self, stream: Stream, rows: SeparateRows) -> None:
        self.stream = stream
        self._rows = rows

    def catch_up(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Tensor:
        """Read the last token of those texts of which drafts are wanted; (batch, vocab) logits after it."""
        self._rows.begin_ahead()
        return self.read([[text[-1]] if n else [] for text, n in zip(texts, most, strict=True)])

    @torch.no_grad()
    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read at most a token of each row; (batch, vocab) logits after it."""
        output = self._rows.read_ahead(tokens)
        if output.logits is not None:
            return output.logits[:, 0]
        assert self._rows.lower is not None
        return self._rows.lower.logits(output.hidden[:, 0])

    def release(self) -> None:
        """Nothing: the stream is the session's."""


def lower_texts(stream: Stream, layers: int) -> LowerTexts | None:
    """An exit of a stream's model that drafts with the stream; None where the layers above cannot go on from it.

    Args:
        stream: the rows of one reader, which are separated.
        layers: that the exit is after.
    """
    plain = stream.graph_steps is None and stream.passes.variants is None and stream.prompt.hidden_states is None
    if not plain or any(exit_ < layers for exit_ in stream.passes.exits) or not may_read_ahead(stream.model, layers):
        return None
    rows = stream.separate_rows()
    if not isinstance(rows, SeparateRows):
        return None
    rows.lower = LowerLayers(stream.model, stream.passes, layers)
    return LowerTexts(stream, rows)
