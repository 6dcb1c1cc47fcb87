"""Readers that share a forward pass: one stream of all their rows, and what each of them says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.errors import InputError
from decoding.strategies.contrast.readers import Reader, ReaderLogits
from decoding.stream.output import ForwardOutput, joined
from decoding.stream.stream import Stream
from decoding.stream.token_tree import TokenTree

__all__ = ["ReaderGroup"]


@dataclass(frozen=True)
class ReaderGroup:
    """One stream and its readers: rows ``i·batch`` to ``(i+1)·batch`` are those of reader i.

    Attributes:
        stream: reads for all of them.
        readers: the expert first where it is among them.
        batch: rows of each.
        padding: slots before the first token of each reader's longest row.
        limit: of the context, where going past it would be this library's doing.
    """

    stream: Stream
    readers: Sequence[Reader]
    batch: int
    padding: Sequence[int]
    limit: int | None = None

    # --- reading on -------------------------------------------------------------------------------------------------

    def extend(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch,) tokens and keep them.

        Raises:
            InputError: a reader has come to the end of its context.
        """
        if self.limit is not None and self.stream.length >= self.limit:
            raise InputError(
                f"the text has come to the end of the {self.readers[-1].role}'s context of {self.limit} tokens: "
                "ask for fewer new tokens"
            )
        return self.stream.extend(self._for_rows(tokens)[:, None])

    def branch(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, branches, n) alternative continuations."""
        return self.stream.branch(self._for_rows(tokens))

    def forward_tree(self, tree: TokenTree) -> ForwardOutput:
        """See :meth:`decoding.strategies.contrast.fused_streams.FusedStreams.forward_tree`."""
        prompt = self.stream.prompt
        given = None if self.stream.structure.separable or prompt.logits is None else prompt.logits[:, -1:]
        start = ForwardOutput(prompt.hidden[:, -1:], given, prompt.exits)
        return joined([start, self.stream.forward_tree(tree)]) if len(tree) else start

    def reorder(self, rows: Tensor) -> None:
        """Make row i of each reader what its row ``rows[i]`` was."""
        own = rows.to(self.stream.input_ids.device)
        self.stream.reorder(torch.cat([own + i * self.batch for i in range(len(self.readers))]))

    def _for_rows(self, tokens: Tensor) -> Tensor:
        vocab = self.stream.model.config.get_text_config(decoder=True).vocab_size
        # A finished row is given pad tokens, which may be nobody's; what it reads then is of no matter.
        tokens = tokens.to(self.stream.input_ids.device).clamp(0, vocab - 1)
        return tokens.repeat(len(self.readers), *[1] * (tokens.dim() - 1))

    # --- what is said -----------------------------------------------------------------------------------------------

    def heard(self, reading: ForwardOutput, final_norm: bool) -> dict[str, ReaderLogits]:
        """The next-token logits of every reader, (batch, vocab), after the last token of a reading."""
        last = tuple(states[:, -1] for states in reading.exits)
        given = None if reading.logits is None else reading.logits[:, -1]
        leaving = [(i, final_norm, reader.exits) for i, reader in enumerate(self.readers) if reader.exits]
        final, early = self._logits(reading.hidden[:, -1], last, given, leaving)
        lower = {i: logits for (i, *_), logits in zip(leaving, early, strict=True)}
        return {reader.role: ReaderLogits(final[i], lower.get(i)) for i, reader in enumerate(self.readers)}

    def logits_at(
        self, reading: ForwardOutput, places: Tensor, wanted: Mapping[tuple[str, bool], Sequence[int]]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, bool], Tensor]]:
        """See :meth:`decoding.strategies.contrast.fused_streams.FusedStreams.logits_at`; what is wanted of other parts is left out."""
        roles = [reader.role for reader in self.readers]
        groups = {key: tuple(exits) for key, exits in wanted.items() if key[0] in roles}
        given = None if reading.logits is None else _at(reading.logits, places)
        final, lower = self._logits(
            _at(reading.hidden, places), tuple(_at(states, places) for states in reading.exits), given,
            [(roles.index(role), norm, exits) for (role, norm), exits in groups.items()],
        )  # fmt: skip
        return dict(zip(roles, final, strict=True)), dict(zip(groups, lower, strict=True))

    def _logits(
        self,
        hidden: Tensor,
        exits: Sequence[Tensor],
        given: Tensor | None,
        wanted: Sequence[tuple[int, bool, Sequence[int]]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of the readers, (batch, ..., vocab) each, and those of each (reader, norm, exits), (exits, batch, ...,
        vocab): one matrix product for all of them.
        """
        stream, found = self.stream, self.stream.structure
        order = sorted({exit_ for reader in self.readers for exit_ in reader.exits})
        states: dict[bool, list[Tensor]] = {True: [], False: []}
        for i, norm, leaving in wanted:
            rows = slice(i * self.batch, (i + 1) * self.batch)
            # Of a model spread over devices each layer's states are on its own.
            states[norm] += [exits[order.index(exit_)][rows].to(hidden.device) for exit_ in leaving]
        if wanted:
            normed, bare = (torch.cat(states[norm]) if states[norm] else None for norm in (True, False))
            final, *lower = found.all_logits(stream.model, hidden, normed, bare)
            rest = dict(zip((True, False), lower, strict=True))
        else:
            final = found.logits(stream.model, hidden) if given is None else given
        early = []
        for _, norm, leaving in wanted:
            count = len(leaving) * self.batch
            early.append(rest[norm][:count].unflatten(0, (len(leaving), self.batch)))
            rest[norm] = rest[norm][count:]
        return list(final.split(self.batch)), early


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states[:, places.to(states.device)]
