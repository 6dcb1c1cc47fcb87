"""A reader that proposes the drafts too: what it has said while it drafted is not read again to check them.

While it drafts, it has read each row's last token and all drafts but the last. So its logits are known wherever a draft
is checked; those behind the last draft are read where all of them are accepted, and only if they count.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from decoding.drafts.texts_read import TextsRead, shared_beginning
from decoding.strategies.contrast.fused_streams import MOST_UNREAD, FusedStreams
from decoding.strategies.contrast.reader_group import ReaderGroup
from decoding.strategies.contrast.readers import ReaderLogits
from decoding.stream.output import ForwardOutput

__all__ = ["DraftingReader", "Found"]


@dataclass
class Found:
    """What is known after a token of a round.

    Attributes:
        expert_output: the expert's rows of its group's pass.
        logits: by role, of readers all of whose heads were applied.
        finals: by role (batch, vocab), of readers of other groups whose final head was.
        headless: by group, the outputs of these groups.
    """

    expert_output: ForwardOutput
    logits: dict[str, ReaderLogits] = field(default_factory=dict)
    finals: dict[str, Tensor] = field(default_factory=dict)
    headless: dict[int, ForwardOutput] = field(default_factory=dict)


class DraftingReader:
    """A group of one reader, with whose stream drafts are made; in rounds it is asked as the other groups are.

    Args:
        group: of the reader alone.
        streams: of all readers.
        read: what it has read, which who drafts adds to; no more than the prompts so far.

    Attributes:
        waits: whether it has not read the place that was looked at last, and need not have.
    """

    def __init__(self, group: ReaderGroup, streams: FusedStreams, read: TextsRead) -> None:
        self.group = group
        self.waits = False
        self._streams = streams
        self._read = read
        self._texts = [list(prompt) for prompt in read.tokens]  # with all tokens that were kept
        self._round: list[list[int]] = []  # tokens of each row, of which some may be kept
        self._may_wait = False
        self._whole_heads: Collection[str] | None = None
        self._slot = 0

    def begin(
        self, tokens: Tensor, may_wait: bool, whole_heads: Collection[str] | None, counts: Sequence[int] | None
    ) -> None:
        """Take (batch, n) tokens of a round, of which it may have read some; see :meth:`DraftedReaders.read`."""
        n = tokens.shape[1]
        drafts = [n - 1] * len(tokens) if counts is None else counts
        self._round = [row[: 1 + count] for row, count in zip(tokens.tolist(), drafts, strict=True)]
        self._whole_heads = whole_heads
        self._slot, self.waits = 0, False
        unread = [len(text) - len(read) for text, read in zip(self._texts, self._read.tokens, strict=True)]
        self._may_wait = may_wait and max(unread) < MOST_UNREAD
        # A row that has ended is given padding, which nobody has proposed.
        self._read.go_back(
            [
                len(text) + shared_beginning(read[len(text) :], row)
                for text, read, row in zip(self._texts, self._read.tokens, self._round, strict=True)
            ]
        )

    def catch_up(self, whole_heads: Collection[str] | None) -> None:
        """Read what is to be read of the place that was looked at last, and of the places behind it.

        Args:
            whole_heads: as in :meth:`begin`, whose count for the whole round.
        """
        missing = [
            [*text, *row][len(read) :] if i in self._rows() else []
            for i, (text, row, read) in enumerate(zip(self._texts, self._round, self._read.tokens, strict=True))
        ]
        width = max(len(missing[row]) for row in self._behind())
        self._read.read_silently([row[:width] for row in missing])  # a row that is not behind yet may be soon
        self.waits = False

    def tell(self, slot: int, index: int, found: Found) -> None:
        """Add what is known after a token of the round; it is read now, unless it may wait.

        Args:
            slot: index of the token.
            index: of the group.
            found: is added to.
        """
        self._slot = slot
        self.waits = bool(self._behind())
        if self.waits and not self._may_wait:
            self.catch_up(self._whole_heads)
        if self.waits:
            return
        output = self._read.said([len(text) + slot for text in self._texts], self._rows())
        role = self.group.readers[0].role
        if self._whole_heads is None:
            found.logits[role] = self._logits(output)
            return
        found.headless[index] = output
        if role in self._whole_heads:
            found.finals[role] = self._logits(replace(output, exits=())).final

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first ``counts[i]`` tokens of row i of the round."""
        for text, row, count in zip(self._texts, self._round, counts, strict=True):
            text.extend(row[:count])
        self._read.go_back([len(text) for text in self._texts])
        self._read.forget()
        self.waits = False

    def _rows(self) -> Sequence[int]:
        """The rows that are looked at."""
        return range(self._streams.batch) if self._streams.steps is None else list(self._streams.steps)

    def _behind(self) -> list[int]:
        """Those of them that are not read up to the place that is looked at."""
        return [row for row in self._rows() if len(self._read.tokens[row]) <= len(self._texts[row]) + self._slot]

    @torch.no_grad()
    def _logits(self, output: ForwardOutput) -> ReaderLogits:
        """The logits of the one token of an output."""
        head, role = self.group.head, self.group.readers[0].role
        known = None if output.logits is None else output.logits[:, 0]
        if known is not None and not output.exits:
            return ReaderLogits(known)
        hidden = output.hidden[:, 0]
        exits = tuple(states[:, 0] for states in output.exits)
        if not exits:
            return ReaderLogits(head.structure.logits(head.model, hidden))
        logits = head.reader_logits(hidden, exits, None, self._streams.final_norm)[role]
        return logits if known is None else replace(logits, final=known)
