"""Rows that are read to lengths of their own, and can go back: the rows of a batch accept different numbers of drafts.

Slot i of a row holds its i-th token, in whatever passes it was read. A pass writes n tokens after the end of each row;
a 4-D mask keeps them from what is behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.cache.growing import layers_of
from decoding.cache.quantised import is_quantised
from decoding.cache.rowwise import RowwiseLayer, join_rows, separate_rows
from decoding.errors import ModelError
from decoding.stream.output import ForwardOutput
from decoding.stream.state import BatchState
from decoding.stream.tree_mask import masks_by_layer

__all__ = ["SeparateRows"]


class SeparateRows:
    """The rows of a stream, each with a length of its own.

    Args:
        state: of the stream, whose cache is changed.
        max_length: tokens that a row may have; None where that is not known. Positions stay below it, though a pass
            may read more: what follows the end of a text is forgotten.

    Attributes:
        lengths: slots of each row, padding included.

    Raises:
        ModelError: a quantised cache, which has packed what it should forget.
    """

    def __init__(self, state: BatchState, max_length: int | None) -> None:
        if is_quantised(state.cache):
            raise ModelError(
                "drafts: a quantised cache has packed the tokens that it should forget: leave out "
                "cache_implementation='quantized'"
            )
        self.state = state
        self.lengths = [state.length] * state.batch
        self._max_length = max_length
        self._first_position = state.kwargs["position_ids"][..., -1:] - (state.length - 1)  # (batch, 1) of slot 0
        separate_rows(state.cache)

    def read(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens, after the end of each row; ``hidden`` is (batch, n, dim)."""
        state = self.state
        n, width, device = tokens.shape[1], state.length + tokens.shape[1], tokens.device
        slots = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(n, device=device)
        for layer in layers_of(state.cache):
            if isinstance(layer, RowwiseLayer):
                layer.write_next_at(slots, width)
        kwargs = state.grown_kwargs(n)
        ids = torch.nn.functional.pad(state.input_ids, (0, n)).scatter_(1, slots + self._unread_before(), tokens)
        present = kwargs.get("attention_mask") if state.padded else None

        def mask_of(offset: int, window: int | None) -> Tensor:
            age = slots[:, :, None] - torch.arange(offset, width, device=device)
            visible = age >= 0
            if window is not None:
                visible &= age < window
            if present is not None:
                visible &= present[:, None, offset:width] != 0
            mask = torch.zeros(visible.shape, dtype=state.dtype, device=device)
            return mask.masked_fill_(~visible, torch.finfo(state.dtype).min)[:, None]

        inputs = state.inputs_beside_tokens(ids, n, kwargs)
        places = slots if self._max_length is None else slots.clamp(max=self._max_length - 1)
        inputs |= {
            "input_ids": tokens,
            "position_ids": self._first_position + places,
            "attention_mask": masks_by_layer(state, n, mask_of),
        }
        output = state.run(inputs, every_logit=True)
        state.kwargs, state.input_ids, state.length = kwargs, ids, width
        self.lengths = [length + n for length in self.lengths]
        return output

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget what comes after the first ``lengths[i]`` slots of row i."""
        state = self.state
        self.lengths = list(lengths)
        excess = state.length - max(lengths)
        if excess == 0:
            return
        for layer in layers_of(state.cache):
            if isinstance(layer, RowwiseLayer):
                layer.crop(-excess)
        state.cut_inputs(excess)
        state.length -= excess

    def join(self) -> None:
        """Give the cache the layers that it had before; all rows must have the same length."""
        assert len(set(self.lengths)) == 1, "rows of several lengths cannot be joined"
        join_rows(self.state.cache)

    def _unread_before(self) -> int:
        """How many more tokens the text has than slots (fewer are negative): those of a cache that was passed in."""
        return self.state.input_ids.shape[1] - self.state.length
