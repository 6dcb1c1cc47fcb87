"""The texts of a batch as one stream has read them, each to a length of its own, and what it said after tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from decoding.stream.output import ForwardOutput, at_places
from decoding.stream.stream import Stream

__all__ = ["TextsRead", "shared_beginning"]


@dataclass
class _Pass:
    """One pass.

    Attributes:
        starts: of each row, the place in its text of the token read first.
        counts: tokens of each row; what was read behind them is of no meaning.
        output: of the pass.
        last_logits: (batch, vocab) after the last token of each row, once they were asked for.
    """

    starts: Sequence[int]
    counts: Sequence[int]
    output: ForwardOutput
    last_logits: Tensor | None = field(default=None)

    def has(self, row: int, place: int) -> bool:
        return self.starts[row] <= place < self.starts[row] + self.counts[row]

    def at(self, places: Sequence[int], rows: Sequence[int]) -> ForwardOutput:
        """The output after a token of each of some rows; of the others it is of no meaning."""
        columns = [0] * len(places)
        for row in rows:
            columns[row] = places[row] - self.starts[row]
        output = at_places(self.output, torch.tensor(columns, device=self.output.hidden.device)[:, None])
        if output.logits is None and all(columns[row] == self.counts[row] - 1 for row in rows):
            output.logits = None if self.last_logits is None else self.last_logits[:, None]
        return output


class TextsRead:
    """What one stream has read of the texts of a batch: it goes back to what they are, and reads on.

    Args:
        stream: which has read each row's prompt; its rows are separated.
        prompts: tokens of each text that the stream has read.
        of_reader: whether the stream is a reader's, which frees it, and which is told what was said after the tokens of
            a round; else the stream is freed with its texts, and outputs are not kept.

    Attributes:
        tokens: of each text, those that were read.
    """

    def __init__(self, stream: Stream, prompts: Sequence[Sequence[int]], of_reader: bool = False) -> None:
        self.stream = stream
        self.tokens = [list(prompt) for prompt in prompts]
        self._of_reader = of_reader
        self._rows = stream.separate_rows()
        self._before = [slots - len(read) for slots, read in zip(self._rows.lengths, self.tokens, strict=True)]
        self._passes: list[_Pass] = []

    def go_back(self, lengths: Sequence[int]) -> None:
        """Forget what comes after the first ``lengths[i]`` tokens of text i, where so many were read."""
        for read, length in zip(self.tokens, lengths, strict=True):
            del read[length:]
        self._rows.rewind(self._slots())

    def catch_up(self, texts: Sequence[Sequence[int]], most: Sequence[int]) -> Tensor:
        """Forget what is not in the texts, and read what is new in those of which drafts are wanted.

        Args:
            texts: of every row.
            most: drafts that are wanted of each.

        Returns:
            (batch, vocab) logits after the last token of each row.
        """
        # The last token is read in any case: its logits are wanted.
        self.go_back(
            [
                min(shared_beginning(read, text), len(text) - 1) if n else len(read)
                for read, text, n in zip(self.tokens, texts, most, strict=True)
            ]
        )
        return self.read(
            [list(text[len(read) :]) if n else [] for read, text, n in zip(self.tokens, texts, most, strict=True)]
        )

    @torch.no_grad()
    def read(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Read tokens behind each text, of which a row may have none.

        Returns:
            (batch, vocab) logits after the last of each row; :meth:`read_silently` leaves them out.
        """
        last = self.read_silently(tokens)
        places = torch.tensor([max(count - 1, 0) for count in last.counts], device=last.output.hidden.device)
        rows = torch.arange(len(places), device=places.device)
        if last.output.logits is not None:
            last.last_logits = last.output.logits[rows, places]
        else:
            last.last_logits = self.stream.structure.logits(self.stream.model, last.output.hidden[rows, places])
        return last.last_logits

    @torch.no_grad()
    def read_silently(self, tokens: Sequence[Sequence[int]]) -> _Pass:
        """Read tokens behind each text, of which a row may have none, and apply no head."""
        counts = [len(row) for row in tokens]
        width = max(counts)
        padded = [[*row, *[0] * (width - len(row))] for row in tokens]
        output = self.stream.extend(self.stream.readable(padded))
        found = _Pass([len(read) for read in self.tokens], counts, output)
        for read, row in zip(self.tokens, tokens, strict=True):
            read.extend(row)
        self._rows.rewind(self._slots())
        if self._of_reader:
            self._passes.append(found)
        return found

    def said(self, places: Sequence[int], rows: Sequence[int]) -> ForwardOutput:
        """What the stream's model said after a token of each text, (batch, 1, ...), since :meth:`forget`.

        Args:
            places: in each text.
            rows: whose place has been read since; the output of the others is of no meaning.

        Returns:
            ``logits`` are there where a head was applied for every one of these rows.
        """
        sources: dict[int, list[int]] = {}
        for row in rows:
            found = next(i for i, one in reversed([*enumerate(self._passes)]) if one.has(row, places[row]))
            sources.setdefault(found, []).append(row)
        parts = [(self._passes[found].at(places, of_pass), of_pass) for found, of_pass in sources.items()]
        (whole, _), *others = parts
        if any(part.logits is None for part, _ in parts):
            whole.logits = None
        elif others and whole.logits is not None:
            whole.logits = whole.logits.clone()  # those of a pass stay as they are
        for part, of_pass in others:
            whole.hidden[of_pass] = part.hidden[of_pass]
            for states, more in zip(whole.exits, part.exits, strict=True):
                states[of_pass] = more[of_pass]
            if whole.logits is not None and part.logits is not None:
                whole.logits[of_pass] = part.logits[of_pass]
        return whole

    def forget(self) -> None:
        """Forget what was said."""
        self._passes = []

    def release(self) -> None:
        """Free the stream, unless it is a reader's."""
        self.forget()
        if not self._of_reader:
            self.stream.release()

    def _slots(self) -> list[int]:
        """The slots of each row that hold what was read of its text."""
        return [before + len(read) for before, read in zip(self._before, self.tokens, strict=True)]


def shared_beginning(read: Sequence[int], text: Sequence[int]) -> int:
    """The number of tokens with which both begin."""
    shared = min(len(read), len(text))
    if list(read[:shared]) == list(text[:shared]):
        return shared
    return next(i for i in range(shared) if read[i] != text[i])
