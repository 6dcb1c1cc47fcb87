"""Several readers of one text in step: the expert, the expert with a guidance prompt, the amateur.

Readers that share weights are rows of one batch: one forward pass a token, one cache. A reader with other weights is a
second stream.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.cache.growing import layers_of
from decoding.errors import InputError
from decoding.models.forward_errors import not_a_number
from decoding.models.inputs import context_of
from decoding.strategies.contrast.open_groups import Call, open_groups
from decoding.strategies.contrast.reader_group import (
    ReaderGroup,
)
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.stream.output import ForwardOutput, picked
from decoding.stream.token_tree import TokenTree

__all__ = ["MOST_UNREAD", "FusedStreams"]

MOST_UNREAD = 64  # tokens that a reader is left to read: their states take memory when they are read


class FusedStreams:
    """The streams of all readers of one call, in step.

    Args:
        model: the generating model.
        readers: at least one; the expert first where it is among them.
        input_ids: (batch, length) the prompt, as ``generate`` prepares it.
        model_kwargs: likewise; the expert's stream owns it from here on.
        generation_config: of the call; its ``compile`` captures the steps of every group, and every group reads its
            prompt in chunks of its ``prefill_chunk_size``.
        restorable: see :class:`decoding.stream.stream.Stream`.
        final_norm: of early exits, see :meth:`decoding.models.structure.ModelStructure.all_logits`.
        fuse: whether readers with the same weights share a forward pass; False is for comparison.
        given: the keyword arguments of ``generate`` as the caller gave them, of which other readers get images, sound
            and the text of an encoder; None where the prompt is all.

    Raises:
        InputError: a reader that cannot read this prompt.
        ModelError: a model that has no early exits, or adapters that cannot share a batch.

    Attributes:
        unread: by the index of a group that waits, the tokens (batch,) that it is yet to read.
        ended: indices of groups that read no more.
        step: how many tokens have been read.
        steps: where rows have lengths of their own, the step of each row whose logits count, by its index; None where
            all do.
    """

    def __init__(
        self,
        model: Any,
        readers: Sequence[Reader],
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        *,
        restorable: bool = False,
        final_norm: bool = True,
        fuse: bool = True,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.batch = input_ids.shape[0]
        self.final_norm = final_norm
        self.step = 0
        self.steps: Mapping[int, int] | None = None
        self.groups: list[ReaderGroup] = []
        self.unread: dict[int, list[Tensor]] = {}
        self.ended: frozenset[int] = frozenset()
        self._all_readers = list(readers)
        call = Call(model, input_ids, model_kwargs, generation_config, given or {}, restorable)
        try:
            for group in open_groups(call, readers, fuse):
                self.groups.append(group)
        except BaseException:
            self.release()
            raise

    @property
    def prompt(self) -> dict[int, ForwardOutput]:
        """The output of each group on its prompt, by its index."""
        return {index: group.stream.prompt for index, group in enumerate(self.groups)}

    @property
    def readers(self) -> list[Reader]:
        """All readers that have not ended in a group that reads on, those of the expert's group first."""
        return [reader for group in self.groups for reader in group.readers]

    def groups_without(self, roles: Collection[str]) -> frozenset[int]:
        """Indices of the groups none of whose readers has one of these roles."""
        return frozenset(
            i for i, group in enumerate(self.groups) if not any(reader.role in roles for reader in group.readers)
        )

    @torch.no_grad()
    def end_readers(self, lasting: Collection[str]) -> frozenset[int]:
        """Let readers read no more, but for the expert and those that have one of these roles.

        Whole groups end, and the rows of readers in a group that reads on, where they can be dropped from its cache.

        Returns:
            Indices of the groups in which a reader has ended.
        """
        roles = {EXPERT, *lasting}
        self.ended = self.groups_without(roles)
        changed = set(self.ended)
        for index, group in enumerate(self.groups):
            if index not in self.ended:
                self.groups[index] = group.with_lasting(roles, self._all_readers)
                if self.groups[index] is not group:
                    changed.add(index)
        return frozenset(changed)

    @torch.no_grad()
    def extend(self, tokens: Tensor, waiting: Collection[int] = ()) -> dict[int, ForwardOutput]:
        """Read (batch,) tokens, but for groups that ended, and those ``waiting``, which read them in :meth:`catch_up`.

        Returns:
            The output of each group that has read them, by its index.

        Raises:
            InputError: a reader other than the expert alone has come to the end of its context.
        """
        self.step += 1
        for index in self.ended:
            self.unread.pop(index, None)
        for index in set(waiting) - self.ended:
            self.unread.setdefault(index, []).append(tokens)
        left_out = {*waiting, *self.ended}
        return {i: group.extend(tokens[:, None]) for i, group in enumerate(self.groups) if i not in left_out}

    @torch.no_grad()
    def catch_up(self) -> dict[int, ForwardOutput]:
        """Read what groups were left to read, in one pass each.

        Returns:
            The output of each of these groups, by its index.

        Raises:
            InputError: a reader has come to the end of its context.
        """
        unread, self.unread = self.unread, {}
        return {index: self.groups[index].extend(torch.stack(tokens, dim=1)) for index, tokens in unread.items()}

    @torch.no_grad()
    def reader_logits(
        self, outputs: Mapping[int, ForwardOutput], tokens: Tensor | None = None
    ) -> dict[str, ReaderLogits]:
        """The next-token logits of the readers of these groups, (batch, vocab), after the last token of the outputs.

        Args:
            outputs: by the group's index.
            tokens: (n,) ids of the tokens whose logits are wanted, (batch, n), which needs :attr:`selects_tokens`; None
                for all.
        """
        logits: dict[str, ReaderLogits] = {}
        for index, output in outputs.items():
            logits |= self.groups[index].reader_logits(output, self.final_norm, tokens)
        self.check_numbers({role: reader_logits.final for role, reader_logits in logits.items()})
        return logits

    @torch.no_grad()
    def final_logits(self, outputs: Mapping[int, ForwardOutput], roles: Collection[str]) -> dict[str, Tensor]:
        """The final next-token logits (batch, vocab) of those readers of these groups that have one of these roles."""
        finals: dict[str, Tensor] = {}
        for index, output in outputs.items():
            finals |= self.groups[index].final_logits(output.hidden[:, -1], roles)
        self.check_numbers(finals)
        return finals

    @property
    def selects_tokens(self) -> bool:
        """True where every reader's logits of a few tokens can be computed without those of the others."""
        return all(group.head.structure.selects_tokens for group in self.groups)

    @property
    def uses_tree_attention(self) -> bool:
        """True where every group reads a tree in one pass of as many tokens as it has nodes."""
        return all(group.stream.uses_tree_attention for group in self.groups)

    def lengths(self) -> Iterator[tuple[str, int, int | None]]:
        """The role of each group's last reader, the tokens of its longest row so far, and its context."""
        for group in self.groups:
            yield group.readers[-1].role, group.stream.length - min(group.padding), context_of(group.stream.model)

    @torch.no_grad()
    def forward_tree(self, tree: TokenTree) -> list[ForwardOutput]:
        """Read texts that continue the prompt in every group, and keep none of them; needs ``restorable``.

        Returns:
            For each group ``hidden``, ``exits`` and, where the head cannot be applied apart, ``logits`` (rows, 1 +
            nodes, ...): those after the prompt come first, then those of the tree's nodes.
        """
        return [group.forward_tree(tree) for group in self.groups]

    @torch.no_grad()
    def logits_at(
        self, outputs: list[ForwardOutput], positions: Tensor, wanted: Mapping[tuple[str, bool], Sequence[int]]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, bool], Tensor]]:
        """Logits at some positions of a tree, from one matrix product a group.

        Args:
            outputs: of :meth:`forward_tree`.
            positions: (n,) indices among their tokens.
            wanted: by role and whether lower layers pass the final norm, which of its reader's exits.

        Returns:
            By role the final logits (batch, n, vocab), and by role and norm those of the exits (exits, batch, n,
            vocab), as :class:`decoding.strategies.contrast.readers.ReaderLogits` has them.
        """
        finals: dict[str, Tensor] = {}
        early: dict[tuple[str, bool], Tensor] = {}
        for group, output in zip(self.groups, outputs, strict=True):
            final, lower = group.logits_at(output, positions, wanted)
            finals |= final
            early |= lower
        return finals, early

    def check_numbers(self, finals: Mapping[str, Tensor]) -> None:
        """Check the final logits (batch, ..., vocab) of readers by role, of the rows that count.

        Raises:
            ModelError: one of them is NaN.
        """
        for role, logits in finals.items():
            broken = logits.amax(-1).isnan()
            if not bool(broken.any()):
                continue
            rows = dict.fromkeys(broken.nonzero()[:, 0].tolist(), self.step)
            if self.steps is not None:
                rows = {row: self.steps[row] for row in rows if row in self.steps}
            for row, step in rows.items():
                reader = next(reader for group in self.groups for reader in group.readers if reader.role == role)
                raise not_a_number(reader.model or self.model, role, row, step)

    def expert_output(self, outputs: Mapping[int, ForwardOutput]) -> ForwardOutput:
        """The expert's rows of the group that it belongs to."""
        for index, output in outputs.items():
            group = self.groups[index]
            if group.readers[0].role == EXPERT:
                alone = len(group.readers) == 1
                return output if alone else picked(output, torch.arange(self.batch, device=output.hidden.device))
        raise InputError("the expert is not among the readers")

    @property
    def expert_waits(self) -> bool:
        """True where the expert has been left to read tokens."""
        return any(self.groups[index].readers[0].role == EXPERT for index in self.unread)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, in every group."""
        for group in self.groups:
            group.reorder(rows)
        self.unread = {
            index: [of_step[rows.to(of_step.device)] for of_step in tokens] for index, tokens in self.unread.items()
        }

    def close(self) -> Any:
        """The expert's cache, fit to be continued by plain ``generate``."""
        group = next(group for group in self.groups if group.readers[0].role == EXPERT)
        cache = group.stream.close()
        if len(group.readers) > 1 or group.padding[0] > 0:
            for layer in layers_of(cache):
                for name in ("keys", "values"):
                    entries = getattr(layer, name)
                    setattr(layer, name, entries[: self.batch, :, group.padding[0] :].clone())
        return cache

    def release(self) -> None:
        """Free everything large."""
        for group in self.groups:
            group.stream.release()
        self.groups = []
        self.unread = {}
