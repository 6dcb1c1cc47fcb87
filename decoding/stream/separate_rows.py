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
from decoding.stream.lower_layers import LowerLayers
from decoding.stream.output import ForwardOutput, joined_tokens
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
        gave_nan: whether some state of the last pass was NaN.
        lower: the model's first layers, where they may read ahead of the others; None where not.

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
        self.gave_nan = False
        self.lower: LowerLayers | None = None
        separate_rows(state.cache)

    def read(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens, after the end of each row; ``hidden`` is (batch, n, dim).

        A token is read as after those before it alone, whatever comes after it.
        """
        before = list(self.lengths)
        output = self._read_above(tokens)
        if tokens.shape[1] == 1 or not self.gave_nan:
            return output
        # Attention masks what comes after a token: that weighs nothing, and nothing times NaN is NaN.
        self.rewind(before)
        return joined_tokens([self._read(token) for token in tokens.split(1, dim=1)])

    def read_ahead(self, tokens: Sequence[Sequence[int]]) -> ForwardOutput:
        """Read tokens of each row with the first layers alone, behind what these have read ahead.

        A :meth:`read` of the same tokens, with more behind them, begins after these layers.

        Returns:
            The output of the model as if it ended there; ``hidden`` is (batch, n, dim), where n is the most of a row.
        """
        assert self.lower is not None, "read_ahead() without lower layers"
        state, lower, n = self.state, self.lower, max(map(len, tokens))
        ids = state.readable([[*row, *[0] * (n - len(row))] for row in tokens])
        slots = self._behind(n, ids.device, lower.lengths)
        more = max(lower.lengths) + n - state.length
        inputs = self._inputs(ids, slots, slots, *self._grown(slots, ids, more), slice(lower.count))
        return lower.read(tokens, inputs, state.batch, state.length)

    def begin_ahead(self) -> None:
        """Forget what the first layers have read ahead."""
        assert self.lower is not None, "begin_ahead() without lower layers"
        self._clear_behind()
        self.lower.begin(self.lengths)

    def _read_above(self, tokens: Tensor) -> ForwardOutput:
        """Read tokens, with the layers alone that have not read them."""
        lower = self.lower
        missing = None if lower is None else lower.missing(tokens.tolist())
        if lower is None or missing is None:
            return self._read(tokens)
        self.read_ahead(missing)
        if not lower.usable:
            self.gave_nan = True
            return self._read(tokens)
        return self._read(tokens, lower)

    def _read(self, tokens: Tensor, lower: LowerLayers | None = None) -> ForwardOutput:
        state, n = self.state, tokens.shape[1]
        if lower is None:
            self._clear_behind()
            if self.lower is not None:
                self.lower.usable = False
        slots = self._behind(n, tokens.device)
        kwargs, ids = self._grown(slots, tokens, n)
        if lower is None:
            output = self._run(tokens, slots, slots, kwargs, ids)
        else:
            inputs = self._inputs(tokens, slots, slots, kwargs, ids, slice(lower.count, None))
            output = self._noted(lower.read_above(inputs, state.batch, state.length))
            for layer in layers_of(state.cache)[: lower.count]:
                if isinstance(layer, RowwiseLayer):
                    layer.be_as_long_as(state.length + n)
        state.kwargs, state.input_ids, state.length = kwargs, ids, state.length + n
        self.lengths = [length + n for length in self.lengths]
        return output

    def read_leaves(self, tokens: Tensor, after: Tensor, first: int = 0) -> ForwardOutput:
        """Read tokens each of which follows a beginning of its row, and none of which sees another; keep none.

        The first of them may be a run that goes on behind the end of the row: one that follows more slots than the row
        has sees the first tokens of this pass, in whose slots they are.

        Args:
            tokens: (batch, n).
            after: (batch, n) how many slots of its row each of them follows.
            first: how many leaves were read before these, after the same texts, and can be kept still.

        Returns:
            The output; ``hidden`` is (batch, n, dim). Until the next pass, :meth:`keep_leaves` can keep one of each
            row, whose i-th is in slot ``lengths[row] + first + i``.
        """
        end = first + tokens.shape[1]
        if not first:
            self._clear_behind()
        slots = self._behind(end, tokens.device)[:, first:]
        kwargs, ids = self._grown(slots, tokens, end)
        output = self._run(tokens, slots, after, kwargs, ids)
        for layer in layers_of(self.state.cache):
            if isinstance(layer, RowwiseLayer):
                layer.crop(-end)
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
        state.kwargs, state.input_ids = self._grown(ends, tokens[:, None], 1)
        state.length = longest
        self.lengths = [length + 1 for length in self.lengths]

    def keep_following(self, tokens: Tensor) -> None:
        """Keep (batch, n) tokens behind each row's end that have been read there: a run of :meth:`read_leaves`, whose
        first token is the row's last by now.
        """
        state, n = self.state, tokens.shape[1]
        state.kwargs, state.input_ids = self._grown(self._behind(n, tokens.device), tokens, n)
        for layer in layers_of(state.cache):
            if isinstance(layer, RowwiseLayer) and layer.is_initialized:
                layer.mark_written(n)
        state.length += n
        self.lengths = [length + n for length in self.lengths]

    def _behind(self, n: int, device: torch.device, lengths: Sequence[int] | None = None) -> Tensor:
        """(batch, n) the slots behind each row's end, or behind so many slots of each."""
        ends = torch.tensor(self.lengths if lengths is None else lengths, device=device)
        return ends[:, None] + torch.arange(n, device=device)

    def _grown(self, slots: Tensor, tokens: Tensor, more: int) -> tuple[dict[str, Any], Tensor]:
        """The model's keyword arguments and the token ids with so many more slots, (batch, n) tokens in theirs."""
        state = self.state
        # The text has fewer tokens than slots where a prompt was embeddings.
        ids = torch.nn.functional.pad(state.input_ids, (0, more))
        return state.grown_kwargs(more), ids.scatter_(1, slots + (state.input_ids.shape[1] - state.length), tokens)

    def _run(self, tokens: Tensor, slots: Tensor, places: Tensor, kwargs: dict[str, Any], ids: Tensor) -> ForwardOutput:
        """Run a pass over (batch, n) tokens that are written to slots.

        Args:
            tokens: read.
            slots: (batch, n) where their keys and values go.
            places: (batch, n) their places in the text: each attends to the slots before its place and to its own.
            kwargs: with more slots, up to the last that is written in the longest row.
            ids: likewise.
        """
        state = self.state
        if state.graph_steps is not None:
            positions, width = self._positions(places), self._width(ids)
            return self._noted(state.graph_steps.read_rows(state, tokens, positions, slots, places, width))
        return self._noted(state.run(self._inputs(tokens, slots, places, kwargs, ids), every_logit=True))

    def _positions(self, places: Tensor) -> Tensor:
        """The position of each place, below the end of the text."""
        return self._first_position + (places if self._last_place is None else places.clamp(max=self._last_place))

    def _width(self, ids: Tensor) -> int:
        """The slots of the longest row with these token ids."""
        return int(self.state.length + ids.shape[1] - self.state.input_ids.shape[1])

    def _inputs(
        self,
        tokens: Tensor,
        slots: Tensor,
        places: Tensor,
        kwargs: dict[str, Any],
        ids: Tensor,
        layers: slice = slice(None),
    ) -> dict[str, Any]:
        """The inputs of a pass, of some layers perhaps, which are told where to write; arguments as in :meth:`_run`."""
        state, n, device, width = self.state, tokens.shape[1], tokens.device, self._width(ids)
        for layer in layers_of(state.cache)[layers]:
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

        plain = n == 1 and places is slots and layers == slice(None) and self._even
        inputs = state.inputs_beside_tokens(ids, n, kwargs)
        inputs |= {
            "input_ids": tokens,
            "position_ids": self._positions(places),
            "attention_mask": kwargs.get("attention_mask") if plain else masks_by_layer(state, n, mask_of),
        }
        return inputs

    @property
    def _even(self) -> bool:
        """True where a token of each row is read like one of a stream: with a mask of its own, which hides nothing,
        transformers' attention would copy the keys and values of every layer for the heads that share them.
        """
        return (
            len(set(self.lengths)) == 1
            and not self.state.padded
            and not any(isinstance(layer, RowwiseLayer) and layer.window for layer in layers_of(self.state.cache))
        )

    def _noted(self, output: ForwardOutput) -> ForwardOutput:
        """The output, of which it is noted whether something is NaN."""
        self.gave_nan |= bool(output.hidden.isnan().any())
        return output

    def _clear_behind(self) -> None:
        """Zero what is behind each row's end where it may be NaN: a masked slot weighs nothing, and nothing times NaN
        is NaN.
        """
        if self.gave_nan:
            self.gave_nan = False
            for layer in layers_of(self.state.cache):
                if isinstance(layer, RowwiseLayer):
                    layer.clear_behind(self.lengths)

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
