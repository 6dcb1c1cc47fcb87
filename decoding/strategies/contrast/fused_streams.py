"""Several readings of one text side by side: the expert, the expert behind a guidance prompt, the amateur.

Readers that share weights are rows of one batch: one forward pass a token, one cache. A reader with weights of its own
is a second stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.cache.growing import layers_of
from decoding.capabilities.capabilities import open_prepared_stream
from decoding.capabilities.chunked_prefill import why_not_chunked
from decoding.capabilities.cuda_graphs import cuda_graphs_requested, request_cuda_graphs
from decoding.errors import InputError
from decoding.models.adapters import MixedRows, adapters_of, expert_adapter
from decoding.models.devices import input_device
from decoding.models.forward_errors import not_a_number
from decoding.models.inputs import check_inputs, context_of
from decoding.strategies.contrast.fusable import by_weights, may_fuse_expert, may_fuse_rows
from decoding.strategies.contrast.reader_group import ReaderGroup
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits, prompts_of, with_prefix
from decoding.stream.output import ForwardOutput, picked
from decoding.stream.prepare import prepare_inputs
from decoding.stream.token_tree import TokenTree
from decoding.transformers_private import cache_in

__all__ = ["FusedStreams"]

CHUNK = 64  # tokens; in pieces of 32 a prompt of 512 took a third longer to read


class FusedStreams:
    """All readers of one call, in step.

    Args:
        model: the generating model.
        readers: at least one; the expert first where it is among them.
        input_ids: (batch, length) the prompt, as ``generate`` prepares it.
        model_kwargs: likewise; the expert's stream owns it from here on.
        generation_config: of the call; its ``compile`` captures the steps of every part, and in pieces of its
            ``prefill_chunk_size`` every part reads its prompt.
        restorable: see :class:`decoding.stream.stream.Stream`.
        final_norm: of early exits, see :meth:`decoding.models.structure.ModelStructure.all_logits`.
        fuse: whether readers with the same weights share a forward pass; False is for comparison.

    Raises:
        InputError: a reader that cannot read this prompt.
        ModelError: a model that gives no early exits, or adapters that cannot share a batch.
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
        self.piece = (generation_config or model.generation_config).prefill_chunk_size
        self.step = 0
        self.parts: list[ReaderGroup] = []
        self.mixed: list[MixedRows] = []  # those of parts that could not be opened included: their hooks are to go
        expert = next((each for each in readers if each.role == EXPERT), None)
        others = [each for each in readers if each is not expert]
        prompts = prompts_of(input_ids, model_kwargs, model) if others else []
        new = _new_tokens(generation_config, input_ids)
        compile = cuda_graphs_requested(generation_config)
        fuse_same = fuse and may_fuse_rows(model, cache_in(model_kwargs), readers)
        together = fuse_same and may_fuse_expert(model, model_kwargs, generation_config, restorable)
        try:
            if expert is not None and not (together and any(each.model is None for each in others)):
                self._open_expert(expert, others, input_ids, model_kwargs, generation_config, restorable)
                expert = None
            for group in by_weights(others, fuse_same):
                if expert is not None and group[0].model is None:
                    group, expert = [expert, *group], None
                self._open(group, prompts, new, restorable, compile)
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
        mixed = self._mixed([expert], others)
        stream = open_prepared_stream(
            self.model, input_ids, model_kwargs, generation_config, restorable=restorable,
            exits=expert.exits, mixed=mixed, whole_prompt=False,
        )  # fmt: skip
        self.parts.append(ReaderGroup(stream, [expert], self.batch, [0]))

    def _open(self, group: list[Reader], prompts: list[list[int]], new: int, restorable: bool, compile: bool) -> None:
        model = group[0].model or self.model
        rows = [with_prefix(reader, prompt, row, model) for reader in group for row, prompt in enumerate(prompts)]
        limit = context_of(model)
        for index, row in enumerate(rows):
            reader = group[index // self.batch]
            if limit is not None and len(row) + new > limit:
                raise InputError(
                    f"the {reader.role}'s prompt has {len(row)} tokens, which with {new} new ones is more than its "
                    f"context of {limit}: shorten the prompt or max_new_tokens"
                )
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=input_device(model))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=input_device(model))
        check_inputs(model, ids, {"attention_mask": mask})
        mixed = self._mixed(group, group) if group[0].model is None else None
        exits = tuple(sorted({exit_ for reader in group for exit_ in reader.exits}))
        inputs, kwargs, config = prepare_inputs(model, input_ids=ids, attention_mask=mask, use_cache=self.use_cache)
        if self.piece is not None:
            config.prefill_chunk_size = self.piece
        elif len(group) > 1 and cache_in(kwargs) is not None:
            # Read in pieces, so that the activations of all rows together need less room than those of one would.
            piece = max(CHUNK, width // (4 * len(rows)))
            if piece < width and not why_not_chunked(model, piece, padded=not bool(mask.all())):
                config.prefill_chunk_size = piece
        config.max_length = width + new
        request_cuda_graphs(config, compile)
        stream = open_prepared_stream(
            model, inputs, kwargs, config, restorable=restorable, exits=exits, mixed=mixed, whole_prompt=False
        )
        longest = [max(map(len, rows[i : i + self.batch])) for i in range(0, len(rows), self.batch)]
        self.parts.append(ReaderGroup(stream, group, self.batch, [width - each for each in longest], limit))

    def _mixed(self, group: list[Reader], every: list[Reader]) -> MixedRows | None:
        """Which adapter each row reads with; None for a model without adapters."""
        if not adapters_of(self.model):
            return None
        amateur = next((each.adapter for each in every if each.adapter is not None), None)
        if amateur is None:
            return None
        own = expert_adapter(self.model, amateur)
        rows = MixedRows(self.model, [reader.adapter or own for reader in group for _ in range(self.batch)])
        self.mixed.append(rows)
        return rows

    # --- reading on -------------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> list[ForwardOutput]:
        """What each part gave on its prompt."""
        return [part.stream.prompt for part in self.parts]

    @torch.no_grad()
    def extend(self, tokens: Tensor) -> list[ForwardOutput]:
        """Read (batch,) tokens in every part.

        Raises:
            InputError: a reader other than the expert alone has come to the end of its context.
        """
        self.step += 1
        return [part.extend(tokens) for part in self.parts]

    @torch.no_grad()
    def branch(self, tokens: Tensor) -> list[ForwardOutput]:
        """Read (batch, branches, n) alternative continuations in every part."""
        return [part.branch(tokens) for part in self.parts]

    @torch.no_grad()
    def heard(self, readings: list[ForwardOutput]) -> dict[str, ReaderLogits]:
        """The next-token logits of every reader, (batch, vocab), after the last token of these readings."""
        heard: dict[str, ReaderLogits] = {}
        for part, reading in zip(self.parts, readings, strict=True):
            heard |= part.heard(reading, self.final_norm)
        self.check_numbers({role: each.final for role, each in heard.items()})
        return heard

    @property
    def uses_tree_attention(self) -> bool:
        """Whether every part reads a forest in one pass of as many tokens as it has nodes."""
        return all(part.stream.uses_tree_attention for part in self.parts)

    def lengths(self) -> Iterator[tuple[str, int, int | None]]:
        """Of each part its last reader's role, the tokens of its longest row so far, and its context."""
        for part in self.parts:
            yield part.readers[-1].role, part.stream.length - min(part.padding), context_of(part.stream.model)

    @torch.no_grad()
    def forward_tree(self, tree: TokenTree) -> list[ForwardOutput]:
        """Read texts that go on from here in every part, and keep none of them; needs ``restorable``.

        Returns:
            Of each part ``hidden``, ``exits`` and, where the head cannot be applied apart, ``logits`` (rows, 1 + nodes,
            ...): those after the prompt come first, then those of the forest's nodes.
        """
        return [part.forward_tree(tree) for part in self.parts]

    @torch.no_grad()
    def logits_at(
        self, readings: list[ForwardOutput], places: Tensor, wanted: Mapping[tuple[str, bool], Sequence[int]]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, bool], Tensor]]:
        """Logits at some places of readings of :meth:`forward_tree`, from one matrix product a part.

        Args:
            readings: of :meth:`forward_tree`.
            places: (n,) indices among their tokens.
            wanted: by role and whether lower layers pass the final norm, which of its reader's exits.

        Returns:
            By role the final logits (batch, n, vocab), and by role and norm those of the exits (exits, batch, n,
            vocab), as :class:`decoding.strategies.contrast.readers.ReaderLogits` has them.
        """
        finals: dict[str, Tensor] = {}
        early: dict[tuple[str, bool], Tensor] = {}
        for part, reading in zip(self.parts, readings, strict=True):
            final, lower = part.logits_at(reading, places, wanted)
            finals |= final
            early |= lower
        return finals, early

    def check_numbers(self, finals: Mapping[str, Tensor]) -> None:
        """Look at the final logits (batch, ..., vocab) of readers by role.

        Raises:
            ModelError: one of them is NaN.
        """
        for role, logits in finals.items():
            broken = logits.amax(-1).isnan()
            if bool(broken.any()):
                reader = next(each for part in self.parts for each in part.readers if each.role == role)
                model = reader.model or self.model
                raise not_a_number(model, role, int(broken.nonzero()[0, 0]), self.step)

    def expert_reading(self, readings: list[ForwardOutput]) -> ForwardOutput:
        """The expert's rows of the part that it belongs to."""
        for part, reading in zip(self.parts, readings, strict=True):
            if part.readers[0].role == EXPERT:
                return (
                    reading
                    if len(part.readers) == 1
                    else picked(reading, torch.arange(self.batch, device=reading.hidden.device))
                )
        raise InputError("the expert is not among the readers")

    # --- beams, ends ------------------------------------------------------------------------------------------------

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, in every part."""
        for part in self.parts:
            part.reorder(rows)

    def close(self) -> Any:
        """The expert's cache, fit to be continued by plain ``generate``."""
        part = next(part for part in self.parts if part.readers[0].role == EXPERT)
        cache = part.stream.close()
        if len(part.readers) > 1:
            for layer in layers_of(cache):
                for name in ("keys", "values"):
                    entries = getattr(layer, name)
                    setattr(layer, name, entries[: self.batch, :, part.padding[0] :].clone())
        return cache

    def release(self) -> None:
        """Let go of everything large, and of what hangs on the model."""
        for part in self.parts:
            part.stream.release()
        for rows in self.mixed:
            rows.release()
        self.parts, self.mixed = [], []


def _new_tokens(config: GenerationConfig | None, input_ids: Tensor) -> int:
    """How many tokens the call may add, the last of which nobody reads; 1 where it does not say."""
    if config is None or config.max_length is None:
        return 1
    return max(1, int(config.max_length) - input_ids.shape[1])
