"""Rows that are read to lengths of their own, and can go back: the rows of a batch accept different numbers of drafts.

Slot i of a row holds its i-th token, in whatever passes it was read. A pass writes n tokens after the end of each row;
a 4-D mask keeps them from what is behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        # A prompt of embeddings has slots and no tokens.
        self._last_place = None if max_length is None else max_length - state.input_ids.shape[1] + state.length - 1
        self._first_position = state.kwargs["position_ids"][..., -1:] - (state.length - 1)  # (batch, 1) of slot 0
        separate_rows(state.cache)

    def read(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens, after the end of each row; ``hidden`` is (batch, n, dim)."""
        state = self.state
        n = tokens.shape[1]
        slots = self._behind(n, tokens.device)
        kwargs, ids = self._grown(slots, tokens)
        output = self._run(tokens, slots, slots, kwargs, ids)
        state.kwargs, state.input_ids, state.length = kwargs, ids, state.length + n
        self.lengths = [length + n for length in self.lengths]
        return output

    def read_leaves(self, tokens: Tensor, after: Tensor) -> ForwardOutput:
        """Read tokens each of which follows a beginning of its row, and none of which sees another; keep none.

        Args:
            tokens: (batch, n).
            after: (batch, n) how many slots of its row each of them follows.

        Returns:
            The output; ``hidden`` is (batch, n, dim). Until the next pass, :meth:`keep_leaves` can keep one of each
            row, whose i-th is in slot ``lengths[row] + i``.
        """
        n = tokens.shape[1]
        slots = self._behind(n, tokens.device)
        kwargs, ids = self._grown(slots, tokens)
        output = self._run(tokens, slots, after, kwargs, ids)
        for layer in layers_of(self.state.cache):
            if isinstance(layer, RowwiseLayer):
                layer.crop(-n)
        return output

    def keep_leaves(self, tokens: Tensor, slots: Sequence[int]) -> None:
        """Put a token of each row at its end.

        Args:
            tokens: (batch,).
            slots: where their keys and values are, see :meth:`read_leaves`; those of a draft are in its own slot.
        """
        state = self.state
        longest = max(self.lengths) + 1
        for layer in layers_of(state.cache):
            if isinstance(layer, RowwiseLayer):
                layer.move(slots, self.lengths, longest)
        ends = torch.tensor(self.lengths, device=tokens.device)[:, None]
        state.kwargs, state.input_ids = self._grown(ends, tokens[:, None])
        state.length = longest
        self.lengths = [length + 1 for length in self.lengths]

    def _behind(self, n: int, device: torch.device) -> Tensor:
        """(batch, n) the slots behind each row's end."""
        return torch.tensor(self.lengths, device=device)[:, None] + torch.arange(n, device=device)

    def _grown(self, slots: Tensor, tokens: Tensor) -> tuple[dict[str, Any], Tensor]:
        """The model's keyword arguments and the token ids with (batch, n) tokens in their slots."""
        state, n = self.state, tokens.shape[1]
        # The text has fewer tokens than slots where a prompt was embeddings.
        ids = torch.nn.functional.pad(state.input_ids, (0, n))
        return state.grown_kwargs(n), ids.scatter_(1, slots + (state.input_ids.shape[1] - state.length), tokens)

    def _run(self, tokens: Tensor, slots: Tensor, places: Tensor, kwargs: dict[str, Any], ids: Tensor) -> ForwardOutput:
        """Run a pass over (batch, n) tokens that are written to slots.

        Args:
            tokens: read.
            slots: (batch, n) where their keys and values go.
            places: (batch, n) their places in the text: each attends to the slots before its place and to its own.
            kwargs: with n more tokens.
            ids: likewise.
        """
        state, n, device = self.state, tokens.shape[1], tokens.device
        positions = places if self._last_place is None else places.clamp(max=self._last_place)
        positions = self._first_position + positions
        if state.graph_steps is not None:
            return state.graph_steps.read_rows(state, tokens, positions, slots, places)
        width = state.length + n
        for layer in layers_of(state.cache):
            if isinstance(layer, RowwiseLayer):
                layer.write_next_at(slots, width)
        present = kwargs.get("attention_mask") if state.padded else None

        def mask_of(offset: int, window: int | None) -> Tensor:
            columns = torch.arange(offset, width, device=device)
            own = columns == slots[:, :, None]  # (batch, n, columns)
            seen = own | (columns < places[:, :, None])
            if window is not None:
                seen &= own | (places[:, :, None] - columns < window)
            if present is not None:
                seen &= present[:, None, offset:width] != 0
            mask = torch.zeros(seen.shape, dtype=state.dtype, device=device)
            return mask.masked_fill_(~seen, torch.finfo(state.dtype).min)[:, None]

        inputs = state.inputs_beside_tokens(ids, n, kwargs)
        inputs |= {
            "input_ids": tokens,
            "position_ids": positions,
            "attention_mask": masks_by_layer(state, n, mask_of),
        }
        return state.run(inputs, every_logit=True)

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
