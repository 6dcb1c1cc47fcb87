"""All readers of one text read drafts: each group in one pass, its rows with lengths of their own."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from decoding.drafts.texts_read import TextsRead
from decoding.models.text_config import within_vocabulary
from decoding.strategies.contrast.drafting_reader import DraftingReader, Found
from decoding.strategies.contrast.fused_streams import MOST_UNREAD, FusedStreams
from decoding.strategies.contrast.reader_group import ReaderGroup
from decoding.strategies.contrast.readers import EXPERT, ReaderLogits
from decoding.stream.output import ForwardOutput, at_places, at_token, picked

__all__ = ["DraftedReaders"]


class DraftedReaders:
    """The readers of a call in rounds: a pass over each row's last token and its drafts, of which some are kept.

    A group of readers that waits is left to read a round's tokens later, with those of rounds before.

    Args:
        streams: of the readers, which have read the same tokens.

    Raises:
        ModelError: a model or a cache that cannot read drafts.
    """

    def __init__(self, streams: FusedStreams) -> None:
        self.streams = streams
        self._groups: list[_DraftedGroup | DraftingReader] = [_DraftedGroup(group, streams) for group in streams.groups]

    def read_by(self, role: str, prompts: Sequence[Sequence[int]]) -> TextsRead | None:
        """What a reader has read, with which somebody may draft from now on; None where others share its passes.

        Args:
            role: of the reader, which is not the expert.
            prompts: tokens of each row, without padding.
        """
        for index, group in enumerate(self.streams.groups):
            if [reader.role for reader in group.readers] == [role]:
                read = TextsRead(group.stream, prompts, of_reader=True)
                self._groups[index] = DraftingReader(group, self.streams, read)
                return read
        return None

    def read(
        self,
        tokens: Tensor,
        may_wait: Collection[int] = (),
        whole_heads: Collection[str] | None = None,
        counts: Sequence[int] | None = None,
    ) -> None:
        """Read (batch, n) tokens after the end of each row, but for groups that wait.

        Args:
            tokens: of the round.
            may_wait: indices of these groups.
            whole_heads: roles of the readers whose heads are applied for all tokens; None for all readers.
            counts: how many of each row's tokens behind the first are drafts; None for all.
        """
        for index, group in enumerate(self._groups):
            waits = index in may_wait and group is not self._of_expert  # its rows and its cache are the call's
            group.begin(tokens, waits, whole_heads, counts)

    @property
    def waiting(self) -> bool:
        """True where a group has not read the round's tokens."""
        return any(group.waits for group in self._groups)

    def catch_up(self, whole_heads: Collection[str] | None = None) -> None:
        """Read what groups were left to read, the round's tokens among it, in one pass each; see :meth:`read`."""
        for group in self._groups:
            if group.waits:
                group.catch_up(whole_heads)

    def at(self, slot: int) -> Found:
        """What is known after a token of the round, its index, of the readers that have read it.

        Raises:
            ModelError: logits of a row that counts are NaN.
        """
        found = Found(self._of_expert.expert_output_at(slot))
        for index, group in enumerate(self._groups):
            group.tell(slot, index, found)
        finals = {role: logits.final for role, logits in found.logits.items()} | found.finals
        self.streams.check_numbers(finals)
        return found

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first ``counts[i]`` tokens of row i of the round, in every group."""
        for group in self._groups:
            group.accept(counts)

    def rewind_to(self, tokens: int) -> None:
        """Forget what rows of the expert's group have read beyond this number of tokens after the prompt."""
        self._of_expert.rewind_to(tokens)

    @property
    def _of_expert(self) -> _DraftedGroup:
        return next(
            group
            for group in self._groups
            if isinstance(group, _DraftedGroup) and group.group.readers[0].role == EXPERT
        )


class _DraftedGroup:
    """One group: what it has read, and what it is still to read.

    ``unread`` has the tokens of each row that were kept and not read; those of the round that waits come after them.
    """

    def __init__(self, group: ReaderGroup, streams: FusedStreams) -> None:
        self.group = group
        self.streams = streams
        self.rows = group.stream.separate_rows()
        self.prompt_lengths = list(self.rows.lengths)
        self.before = self.prompt_lengths  # the round's tokens
        self.unread: list[list[int]] = [[] for _ in range(streams.batch)]
        self.waits = False
        self.tokens = torch.empty(0)
        self.output: ForwardOutput | None = None
        self.logits: dict[str, ReaderLogits] = {}
        self.finals: dict[str, Tensor] | None = None  # by role, where other heads are not applied

    def begin(
        self, tokens: Tensor, may_wait: bool, whole_heads: Collection[str] | None, counts: Sequence[int] | None
    ) -> None:
        self.tokens, self.output, self.logits, self.finals = tokens, None, {}, None
        if self.rows.lower is not None:
            self.rows.lower.drafts = counts
        self.waits = may_wait and max(map(len, self.unread)) < MOST_UNREAD
        if not self.waits:
            self.catch_up(whole_heads)

    @torch.no_grad()
    def catch_up(self, whole_heads: Collection[str] | None) -> None:
        """Read what is unread and the round's tokens; keep the output of the latter."""
        stream, readers = self.group.stream, len(self.group.readers)
        before = list(self.rows.lengths)
        tokens = within_vocabulary(stream.model, self.tokens.to(stream.input_ids.device))
        behind = [len(row) for row in self.unread]
        n, longest = tokens.shape[1], max(behind)
        if longest:
            ids = tokens.tolist()
            padded = [
                [*unread, *row, *[0] * (longest - len(unread))] for unread, row in zip(self.unread, ids, strict=True)
            ]
            tokens = stream.readable(padded)
        output = stream.extend(tokens.repeat(readers, 1))
        if longest:
            places = torch.tensor(behind, device=tokens.device).repeat(readers)[:, None] + torch.arange(
                n, device=tokens.device
            )
            output = at_places(output, places)
        self.before = [length + row for length, row in zip(before, behind * readers, strict=True)]
        self.unread = [[] for _ in self.unread]
        self.waits = False
        self.output = output
        if whole_heads is not None:
            self.finals = self.group.final_logits(output.hidden, whole_heads)
        else:
            self.logits = self.group.head.reader_logits(
                output.hidden, output.exits, output.logits, self.streams.final_norm
            )

    def tell(self, slot: int, index: int, found: Found) -> None:
        if self.output is not None and self.finals is not None:
            found.headless[index] = at_token(self.output, slot)
            found.finals |= {role: final[:, slot] for role, final in self.finals.items()}
        found.logits |= {
            role: ReaderLogits(logits.final[:, slot], None if logits.exits is None else logits.exits[:, :, slot])
            for role, logits in self.logits.items()
        }

    def expert_output_at(self, slot: int) -> ForwardOutput:
        assert self.output is not None
        output = at_token(self.output, slot)
        if len(self.group.readers) == 1:
            return output
        return picked(output, torch.arange(self.streams.batch, device=output.hidden.device))

    def accept(self, counts: Sequence[int]) -> None:
        if self.waits:
            for unread, row, count in zip(self.unread, self.tokens.tolist(), counts, strict=True):
                unread.extend(row[:count])
            self.waits = False
            return
        readers = len(self.group.readers)
        self.rows.rewind([length + count for length, count in zip(self.before, [*counts] * readers, strict=True)])

    def rewind_to(self, tokens: int) -> None:
        self.rows.rewind([length + tokens for length in self.prompt_lengths])
