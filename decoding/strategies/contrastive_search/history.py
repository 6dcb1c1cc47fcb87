"""The hidden states of the text so far, kept for the degeneration penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.kernels.degeneration_penalty import append, degeneration_penalty, inverse_norms
from decoding.kernels.selection import Selection, select

__all__ = ["HiddenHistory"]

BLOCK = 256  # as the cache grows


class HiddenHistory:
    """Raw hidden states in the model's dtype, with their float32 inverse norms; appended to in place.

    Rows end together at slot ``length``; row b begins at ``start[b]``, so left padding is never compared with. The
    prompt is appended in chunks as it is read, each written once to its place. After it the storage grows by a
    sixteenth, which copies it, and never past ``expected``.

    With a window only the last states are copied when the storage is full, so that it holds the window and a sixteenth
    of it, however long the text. (A ring buffer would hold as much, but a row whose padding is still in it would be in
    two parts, and the kernels take one.)

    Args:
        mask: (batch, slots) of the prompt, 1 for tokens, 0 for padding anywhere; None where there is none.
        prompt: how many slots it has, where that is known; of a continued text, with those read before.
        expected: how many tokens the text may have in the end; None where that is not known.
        window: how many tokens back the penalty reaches; None is all.

    Attributes:
        length: slots appended so far.
    """

    def __init__(
        self, mask: Tensor | None = None, prompt: int = 0, expected: int | None = None, window: int | None = None
    ) -> None:
        self.length = 0
        self.window = window
        self.start: Tensor | None = None  # (batch,)
        self._expected = expected
        self._prompt = prompt
        self._padding = 0  # of the row that has most
        self._slots: Tensor | None = None  # (batch, slots) where each goes, where padding is between tokens
        self._offset = 0  # the slot that the storage begins with
        self.row_lengths: list[int] | None = None  # where rows have lengths of their own
        self._states: Tensor | None = None  # (batch, capacity, dim)
        self._inverse_norms: Tensor | None = None  # (batch, capacity)
        if mask is not None and not bool(mask.all()):
            present = mask != 0
            self.start = (~present).sum(1)
            self._padding = int(self.start.max())
            if bool((present[:, :-1] & ~present[:, 1:]).any()):
                # Padding first, then the tokens in their order.
                self._slots = present.int().argsort(dim=1, stable=True).argsort(dim=1)
                self._prompt = mask.shape[1]
                self._offset = 0 if window is None else max(0, self._prompt - window)

    @property
    def states(self) -> Tensor:
        """(batch, capacity, dim) storage, from the first slot that it holds on."""
        assert self._states is not None, "nothing was appended"
        return self._states

    def append(self, hidden: Tensor) -> None:
        """Add (batch, n, dim) hidden states; of more than the window, the last."""
        n = hidden.shape[1]
        if self._slots is not None and self.length < self._prompt:
            self._scatter(hidden, self._slots)
            return
        if self.window is not None and n > self.window:
            hidden = hidden[:, -self.window :]
        end = self.length + n
        self._ensure_capacity(hidden, end)
        assert self._inverse_norms is not None
        append(self.states, self._inverse_norms, hidden, end - hidden.shape[1] - self._offset)
        self.length = end

    def separate_rows(self) -> None:
        """Let each row have a length of its own from now on."""
        self.row_lengths = [self.length] * len(self.states)

    def append_to_rows(self, hidden: Tensor) -> None:
        """Add (batch, 1, dim) hidden states, after the end of each row."""
        assert self.row_lengths is not None
        longest = max(self.row_lengths) + 1
        self._ensure_capacity(hidden, longest)
        norms = self._inverse_norms
        assert norms is not None
        for row, length in enumerate(self.row_lengths):
            rows = slice(row, row + 1)
            append(self.states[rows], norms[rows], hidden[rows], length - self._offset)
        self.rewind_rows([length + 1 for length in self.row_lengths])

    def rewind_rows(self, lengths: Sequence[int]) -> None:
        """Forget what comes after the first ``lengths[i]`` slots of row i."""
        self.row_lengths = list(lengths)
        self.length = max(lengths)

    def join_rows(self) -> None:
        """Undo :meth:`separate_rows`; all rows must have the same length."""
        assert self.row_lengths is None or set(self.row_lengths) == {self.length}, "rows of several lengths"
        self.row_lengths = None

    def penalty(self, candidates: Tensor) -> Tensor:
        """(batch, k) float32 degeneration penalty of candidates (batch, k, dim)."""
        return degeneration_penalty(candidates, *self._kernel_inputs())

    def repeated(self, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The penalty of candidates (batch, k, dim), and (batch, k) int64 the index of the state with that cosine, in
        the order in which they were appended; -1 for a row without any.
        """
        penalty, places = degeneration_penalty(candidates, *self._kernel_inputs(), positions=True)
        places = torch.where(places < 0, -1, places + self._first)
        if self._slots is not None:
            came_from = self._slots.to(places.device).argsort(dim=1)
            moved = (places >= 0) & (places < self._prompt)
            places = torch.where(moved, came_from.gather(1, places.clamp(0, self._prompt - 1)), places)
        return penalty, places

    def select(
        self,
        logits: Tensor,
        probabilities: Tensor,
        candidates: Tensor,
        penalty_alpha: float | Tensor,
        hidden: Tensor,
        counts: Tensor | None = None,
    ) -> Selection:
        """The best candidate of each row; see :func:`decoding.kernels.selection.select`."""
        return select(logits, probabilities, candidates, penalty_alpha, hidden, *self._kernel_inputs(), counts=counts)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        assert self._inverse_norms is not None
        own_rows = rows.to(self.states.device)
        self._states, self._inverse_norms = self.states[own_rows], self._inverse_norms[own_rows]
        if self.start is not None:
            self.start = self.start[rows.to(self.start.device)]
        if self._slots is not None:
            self._slots = self._slots[rows.to(self._slots.device)]

    def reaches(self, window: int | None) -> bool:
        """True where it keeps all states that a penalty with this window compares with."""
        return self.window is None or (window is not None and window <= self.window)

    def continued(self, window: int | None, expected: int | None) -> HiddenHistory:
        """The same history, for another call with a window that it reaches."""
        self.window, self._expected = window, expected
        return self

    @property
    def _first(self) -> int:
        """The first slot that counts in some row."""
        shortest = self.length if self.row_lengths is None else min(self.row_lengths)
        return self._offset if self.window is None else max(self._offset, shortest - self.window)

    def _kernel_inputs(self) -> tuple[Tensor, Tensor, Tensor | None, int | Tensor]:
        """History, inverse norms, start and length as the kernels take them."""
        first = self._first
        assert self._inverse_norms is not None
        skipped = first - self._offset
        start = None if self.start is None else self.start.to(self.states.device)
        if start is not None and first > 0:
            start = None if first >= self._padding else (start - first).clamp_min(0)
        states, norms, length = self.states[:, skipped:], self._inverse_norms[:, skipped:], self.length - first
        if self.row_lengths is None or min(self.row_lengths) == self.length:
            return states, norms, start, length
        lengths = torch.tensor(self.row_lengths, device=states.device) - first
        if self.window is not None:
            own = (lengths - self.window).clamp_min(0)
            start = own if start is None else torch.maximum(start, own)
        return states, norms, start, lengths

    def _ensure_capacity(self, like: Tensor, end: int) -> None:
        """Storage for the slots up to ``end``, of which the last ``like.shape[1]`` are about to be written."""
        old, norms = self._states, self._inverse_norms
        # A tensor made in inference mode may not be written to outside it.
        writable = old is not None and (torch.is_inference_mode_enabled() or not old.is_inference())
        if old is not None and writable and end - self._offset <= old.shape[1]:
            return
        before = end - like.shape[1]
        window = None if self.row_lengths is not None else self.window  # rows may go back behind it
        first = self._offset if window is None else max(self._offset, min(end - window, before))
        prompt = max(end, self._prompt)  # allocated once
        last = prompt + max(BLOCK, prompt // 16)
        if self._expected is not None and self._expected >= prompt:
            last = min(last, self._expected)
        size = last - first
        if window is not None:
            size = max(end - first, min(size, window + max(BLOCK, window // 16)))
        self._states = like.new_empty(len(like), size, like.shape[2])
        self._inverse_norms = torch.empty(len(like), size, dtype=torch.float32, device=like.device)
        if old is not None and norms is not None and self.length > first:
            kept = slice(first - self._offset, self.length - self._offset)
            self._states[:, : self.length - first] = old[:, kept]
            self._inverse_norms[:, : self.length - first] = norms[:, kept]
        self._offset = first

    def _scatter(self, hidden: Tensor, slots: Tensor) -> None:
        """Append a chunk of a prompt whose padding is anywhere: each state goes to its own slot."""
        if self._states is None:
            size = self._prompt - self._offset + BLOCK
            self._states = hidden.new_zeros(len(hidden), size, hidden.shape[2])
            self._inverse_norms = torch.zeros(len(hidden), size, dtype=torch.float32, device=hidden.device)
        n = hidden.shape[1]
        slots = slots[:, self.length : self.length + n].to(hidden.device) - self._offset
        row, place = (slots >= 0).nonzero(as_tuple=True)
        kept = hidden[row, place]
        assert self._inverse_norms is not None
        self._states[row, slots[row, place]] = kept
        self._inverse_norms[row, slots[row, place]] = inverse_norms(kept)
        self.length += n
