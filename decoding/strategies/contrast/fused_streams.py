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
from decoding.capabilities.capabilities import left_padded, open_prepared_stream
from decoding.capabilities.chunked_prefill import why_not_chunked
from decoding.capabilities.cuda_graphs import cuda_graphs_requested, request_cuda_graphs
from decoding.errors import InputError
from decoding.models.devices import input_device
from decoding.models.forward_errors import not_a_number
from decoding.models.inputs import check_inputs, context_of
from decoding.strategies.contrast.reader_group import (
    ReaderGroup,
    ReaderHead,
    may_fuse_expert,
    may_fuse_rows,
    mixed_rows,
)
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits, by_weights, prompts_of, with_prefix
from decoding.stream.output import ForwardOutput, picked
from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream
from decoding.stream.token_tree import TokenTree
from decoding.transformers_private import cache_in

__all__ = ["MOST_UNREAD", "FusedStreams"]

MOST_UNREAD = 64  # tokens that a reader is left to read: their states take memory when they are read
CHUNK = 64  # tokens; in chunks of 32 a prompt of 512 took a third longer to read


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

    Raises:
        InputError: a reader that cannot read this prompt.
        ModelError: a model that has no early exits, or adapters that cannot share a batch.
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
    ) -> None:
        self.model = model
        self.batch = input_ids.shape[0]
        self.final_norm = final_norm
        self.use_cache = model_kwargs.get("use_cache") is not False
        self.chunk_size = (generation_config or model.generation_config).prefill_chunk_size
        self.step = 0
        self.groups: list[ReaderGroup] = []
        self.unread: dict[int, list[Tensor]] = {}
        expert = next((reader for reader in readers if reader.role == EXPERT), None)
        others = [reader for reader in readers if reader is not expert]
        prompts = prompts_of(input_ids, model_kwargs, model) if others else []
        new_tokens = _new_tokens(generation_config, input_ids)
        compile = cuda_graphs_requested(generation_config)
        fuse_same = fuse and may_fuse_rows(model, cache_in(model_kwargs), readers)
        together = fuse_same and may_fuse_expert(model, model_kwargs, generation_config, restorable)
        try:
            if expert is not None and not (together and any(reader.model is None for reader in others)):
                self._open_expert(expert, others, input_ids, model_kwargs, generation_config, restorable)
                expert = None
            for group in by_weights(others, fuse_same):
                if expert is not None and group[0].model is None:
                    group, expert = [expert, *group], None
                self._open(group, prompts, new_tokens, restorable, compile)
        except BaseException:
            self.release()
            raise

    def _open_expert(
        self,
        expert: Reader,
        others: list[Reader],
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None,
        restorable: bool,
    ) -> None:
        mixed = mixed_rows(self.model, [expert], others, self.batch)
        stream = open_prepared_stream(
            self.model, input_ids, model_kwargs, generation_config, restorable=restorable,
            exits=expert.exits, mixed=mixed, whole_prompt=False,
        )  # fmt: skip
        self.groups.append(ReaderGroup(stream, self._head(stream, [expert]), [0]))

    def _open(
        self, readers: list[Reader], prompts: list[list[int]], new_tokens: int, restorable: bool, compile: bool
    ) -> None:
        model = readers[0].model or self.model
        rows = [with_prefix(reader, prompt, row, model) for reader in readers for row, prompt in enumerate(prompts)]
        limit = context_of(model)
        for index, row in enumerate(rows):
            reader = readers[index // self.batch]
            if limit is not None and len(row) + new_tokens > limit:
                raise InputError(
                    f"the {reader.role}'s prompt has {len(row)} tokens, which with {new_tokens} new ones is more than "
                    f"its context of {limit}: shorten the prompt or max_new_tokens"
                )
        width = max(map(len, rows))
        ids, mask = left_padded(rows, input_device(model))
        check_inputs(model, ids, {"attention_mask": mask})
        mixed = mixed_rows(model, readers, readers, self.batch) if readers[0].model is None else None
        exits = tuple(sorted({exit_ for reader in readers for exit_ in reader.exits}))
        inputs, kwargs, config = prepare_inputs(model, input_ids=ids, attention_mask=mask, use_cache=self.use_cache)
        if self.chunk_size is not None:
            config.prefill_chunk_size = self.chunk_size
        elif len(readers) > 1 and cache_in(kwargs) is not None:
            # In chunks, the activations of all rows together need less memory than those of one row would.
            chunk_size = max(CHUNK, width // (4 * len(rows)))
            if chunk_size < width and not why_not_chunked(model, chunk_size, padded=not bool(mask.all())):
                config.prefill_chunk_size = chunk_size
        config.max_length = width + new_tokens
        request_cuda_graphs(config, compile)
        stream = open_prepared_stream(
            model, inputs, kwargs, config, restorable=restorable, exits=exits, mixed=mixed, whole_prompt=False
        )
        longest = [max(map(len, rows[i : i + self.batch])) for i in range(0, len(rows), self.batch)]
        padding = [width - length for length in longest]
        self.groups.append(ReaderGroup(stream, self._head(stream, readers), padding, limit))

    def _head(self, stream: Stream, readers: Sequence[Reader]) -> ReaderHead:
        return ReaderHead(stream.model, stream.structure, readers, self.batch)

    @property
    def prompt(self) -> dict[int, ForwardOutput]:
        """The output of each group on its prompt, by its index."""
        return {index: group.stream.prompt for index, group in enumerate(self.groups)}

    def groups_without(self, roles: Collection[str]) -> frozenset[int]:
        """Indices of the groups none of whose readers has one of these roles."""
        return frozenset(
            i for i, group in enumerate(self.groups) if not any(reader.role in roles for reader in group.readers)
        )

    @torch.no_grad()
    def extend(self, tokens: Tensor, waiting: Collection[int] = ()) -> dict[int, ForwardOutput]:
        """Read (batch,) tokens, but for the groups ``waiting``, which read them in :meth:`catch_up`.

        Returns:
            The output of each group that has read them, by its index.

        Raises:
            InputError: a reader other than the expert alone has come to the end of its context.
        """
        self.step += 1
        for index in waiting:
            self.unread.setdefault(index, []).append(tokens)
        return {i: group.extend(tokens[:, None]) for i, group in enumerate(self.groups) if i not in waiting}

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

    def check_numbers(self, finals: Mapping[str, Tensor], rows: Sequence[int] | None = None) -> None:
        """Check the final logits (batch, ..., vocab) of readers by role.

        Args:
            finals: the logits.
            rows: that count; None for all.

        Raises:
            ModelError: one of them is NaN.
        """
        for role, logits in finals.items():
            broken = logits.amax(-1).isnan()
            if rows is not None:
                broken[[row for row in range(len(broken)) if row not in rows]] = False
            if bool(broken.any()):
                reader = next(reader for group in self.groups for reader in group.readers if reader.role == role)
                model = reader.model or self.model
                raise not_a_number(model, role, int(broken.nonzero()[0, 0]), self.step)

    def expert_output(self, outputs: Mapping[int, ForwardOutput]) -> ForwardOutput:
        """The expert's rows of the group that it belongs to."""
        for index, output in outputs.items():
            group = self.groups[index]
            if group.readers[0].role == EXPERT:
                alone = len(group.readers) == 1
                return output if alone else picked(output, torch.arange(self.batch, device=output.hidden.device))
        raise InputError("the expert is not among the readers")

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
        if len(group.readers) > 1:
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


def _new_tokens(config: GenerationConfig | None, input_ids: Tensor) -> int:
    """The number of tokens that the call may add, the last of which no reader reads; 1 where it does not say."""
    if config is None or config.max_length is None:
        return 1
    return max(1, int(config.max_length) - input_ids.shape[1])
