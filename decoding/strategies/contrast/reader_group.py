"""Readers that share a forward pass: which may, one stream of all their rows, and the logits of each of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from decoding.cache.layer_kinds import has_window, is_recurrent
from decoding.capabilities.branching import branching_of
from decoding.errors import InputError, ModelError
from decoding.models.adapters import expert_adapter
from decoding.models.degraded_rows import DegradedRows
from decoding.models.forward_errors import is_environment_error
from decoding.models.inputs import given_inputs
from decoding.models.mixed_rows import MixedRows
from decoding.models.row_variants import JoinedVariants, RowVariants
from decoding.models.structure import ModelStructure
from decoding.models.text_config import within_vocabulary
from decoding.strategies.contrast.readers import Reader, ReaderLogits
from decoding.stream.output import ForwardOutput, joined
from decoding.stream.stream import Stream
from decoding.stream.token_tree import TokenTree
from decoding.transformers_private import CACHE_ARGUMENT, cache_in, is_callers_cache

__all__ = ["ReaderGroup", "ReaderHead", "may_fuse_expert", "may_fuse_rows", "row_variants"]


@dataclass(frozen=True)
class ReaderHead:
    """The head of a model for several of its readers: rows ``i·batch`` to ``(i+1)·batch`` are those of reader i.

    Attributes:
        model: whose weights the readers have.
        structure: of the model.
        readers: the expert first where it is among them.
        batch: rows of each.
    """

    model: Any
    structure: ModelStructure
    readers: Sequence[Reader]
    batch: int

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers after which any of the readers exits, ascending."""
        return tuple(sorted({exit_ for reader in self.readers for exit_ in reader.exits}))

    def reader_logits(
        self,
        hidden: Tensor,
        exits: Sequence[Tensor],
        logits: Tensor | None,
        final_norm: bool,
        tokens: Tensor | None = None,
    ) -> dict[str, ReaderLogits]:
        """The logits of every reader by role.

        Args:
            hidden: (rows, ..., dim) after the final norm.
            exits: one (rows, ..., dim) for each layer of :attr:`exits`, before any final norm.
            logits: (rows, ..., vocab) where the forward pass computed them; None otherwise.
            final_norm: whether lower layers pass the final norm.
            tokens: see :meth:`decoding.models.structure.ModelStructure.all_logits`.
        """
        wanted = [(i, final_norm, reader.exits) for i, reader in enumerate(self.readers) if reader.exits]
        final, early = self.logits(hidden, exits, logits, wanted, tokens)
        lower = {i: exit_logits for (i, *_), exit_logits in zip(wanted, early, strict=True)}
        return {reader.role: ReaderLogits(final[i], lower.get(i)) for i, reader in enumerate(self.readers)}

    def logits(
        self,
        hidden: Tensor,
        exits: Sequence[Tensor],
        logits: Tensor | None,
        wanted: Sequence[tuple[int, bool, Sequence[int]]],
        tokens: Tensor | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of the readers, (batch, ..., vocab) each, and those of each wanted (reader, final norm, exits),
        (exits, batch, ..., vocab): one matrix product for all of them.
        """
        structure, order = self.structure, self.exits
        states: dict[bool, list[Tensor]] = {True: [], False: []}
        for i, norm, layers in wanted:
            rows = slice(i * self.batch, (i + 1) * self.batch)
            # Of a model spread over devices each layer's states are on its own.
            states[norm] += [exits[order.index(layer)][rows].to(hidden.device) for layer in layers]
        if wanted or tokens is not None:
            normed, bare = (torch.cat(states[norm]) if states[norm] else None for norm in (True, False))
            final, *lower = structure.all_logits(self.model, hidden, normed, bare, tokens)
            rest = dict(zip((True, False), lower, strict=True))
        else:
            final = structure.logits(self.model, hidden) if logits is None else logits
        early = []
        for _, norm, layers in wanted:
            count = len(layers) * self.batch
            early.append(rest[norm][:count].unflatten(0, (len(layers), self.batch)))
            rest[norm] = rest[norm][count:]
        return list(final.split(self.batch)), early


@dataclass(frozen=True)
class ReaderGroup:
    """One stream and its readers.

    Attributes:
        stream: reads for all of them.
        head: their head.
        padding: slots before the first token of each reader's longest row.
        limit: of the context, where going past it would be this library's doing.
    """

    stream: Stream
    head: ReaderHead
    padding: Sequence[int]
    limit: int | None = None

    @property
    def readers(self) -> Sequence[Reader]:
        """The readers, the expert first where it is among them."""
        return self.head.readers

    def extend(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens and keep them.

        Raises:
            InputError: a reader has come to the end of its context.
        """
        if self.limit is not None and self.stream.length + tokens.shape[1] > self.limit:
            raise InputError(
                f"the text has come to the end of the {self.readers[-1].role}'s context of {self.limit} tokens: "
                "ask for fewer new tokens"
            )
        # A finished row is given pad tokens, which may be outside the vocabulary; its logits no longer matter.
        tokens = within_vocabulary(self.stream.model, tokens.to(self.stream.input_ids.device))
        return self.stream.extend(tokens.repeat(len(self.readers), 1))

    def forward_tree(self, tree: TokenTree) -> ForwardOutput:
        """Read a tree; see :meth:`decoding.strategies.contrast.fused_streams.FusedStreams.forward_tree`."""
        prompt = self.stream.prompt
        logits = None if self.stream.structure.separable or prompt.logits is None else prompt.logits[:, -1:]
        start = ForwardOutput(prompt.hidden[:, -1:], logits, prompt.exits)
        return joined([start, self.stream.forward_tree(tree)]) if len(tree) else start

    def reorder(self, rows: Tensor) -> None:
        """Make row i of each reader what its row ``rows[i]`` was."""
        rows = rows.to(self.stream.input_ids.device)
        self.stream.reorder(torch.cat([rows + i * self.head.batch for i in range(len(self.readers))]))

    def with_lasting(self, roles: Collection[str], all_readers: Sequence[Reader]) -> ReaderGroup:
        """The group without the readers that have none of these roles, whose rows are read no more.

        It is the same group where rows cannot be dropped, or lower layers are read for these alone.

        Args:
            roles: at least one of its readers has one of them.
            all_readers: of the strategy.
        """
        kept = [i for i, reader in enumerate(self.readers) if reader.role in roles]
        head = replace(self.head, readers=[self.readers[i] for i in kept])
        if len(kept) == len(self.readers) or head.exits != self.head.exits or not self.stream.can_drop_rows:
            return self
        batch = self.head.batch
        rows = torch.cat([torch.arange(i * batch, (i + 1) * batch) for i in kept])
        has_own_weights = head.readers[0].model is not None
        variants = None if has_own_weights else row_variants(head.model, head.readers, all_readers, batch)
        self.stream.keep_rows(rows.to(self.stream.input_ids.device), variants)
        return replace(self, head=head, padding=[self.padding[i] for i in kept])

    def reader_logits(
        self, output: ForwardOutput, final_norm: bool, tokens: Tensor | None = None
    ) -> dict[str, ReaderLogits]:
        """The next-token logits of every reader after the last token of a forward pass, (batch, vocab), or those of
        (n,) ``tokens``, (batch, n).
        """
        exits = tuple(states[:, -1] for states in output.exits)
        logits = None if output.logits is None else output.logits[:, -1]
        return self.head.reader_logits(output.hidden[:, -1], exits, logits, final_norm, tokens)

    def final_logits(self, hidden: Tensor, roles: Collection[str]) -> dict[str, Tensor]:
        """The final logits (batch, ..., vocab) after hidden states (rows, ..., dim), of those readers that have one of
        these roles.
        """
        chosen = [i for i, reader in enumerate(self.readers) if reader.role in roles]
        if not chosen:
            return {}
        states = hidden.unflatten(0, (len(self.readers), -1))[chosen]  # (chosen, batch, ..., dim)
        logits = self.head.structure.logits(self.head.model, states)
        return {self.readers[i].role: of_reader for i, of_reader in zip(chosen, logits, strict=True)}

    def logits_at(
        self, output: ForwardOutput, positions: Tensor, wanted: Mapping[tuple[str, bool], Sequence[int]]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, bool], Tensor]]:
        """Logits at positions of a tree; see :meth:`decoding.strategies.contrast.fused_streams.FusedStreams.logits_at`.

        Exits that are wanted of readers of other groups are left out.
        """
        roles = [reader.role for reader in self.readers]
        exits_by_key = {key: tuple(exits) for key, exits in wanted.items() if key[0] in roles}
        logits = None if output.logits is None else _at(output.logits, positions)
        final, lower = self.head.logits(
            _at(output.hidden, positions), tuple(_at(states, positions) for states in output.exits), logits,
            [(roles.index(role), norm, exits) for (role, norm), exits in exits_by_key.items()],
        )  # fmt: skip
        return dict(zip(roles, final, strict=True)), dict(zip(exits_by_key, lower, strict=True))


def _at(states: Tensor, positions: Tensor) -> Tensor:
    return states[:, positions.to(states.device)]


def row_variants(
    model: Any, readers: Sequence[Reader], all_readers: Sequence[Reader], batch: int
) -> RowVariants | None:
    """How each row of a batch is read; None where every reader reads with the model as it is.

    Args:
        model: the generating model.
        readers: whose rows these are, ``batch`` of each.
        all_readers: of the strategy, some of which may read with an adapter.
        batch: rows of each reader.
    """
    variants: list[RowVariants] = []
    adapters = {reader.adapter for reader in all_readers if reader.adapter is not None}
    if adapters:
        expert = expert_adapter(model, adapters)
        variants.append(MixedRows(model, [reader.adapter or expert for reader in readers for _ in range(batch)]))
    if any(reader.degradation is not None for reader in readers):
        variants.append(DegradedRows(model, [reader.degradation for reader in readers for _ in range(batch)]))
    return JoinedVariants(variants) if len(variants) > 1 else next(iter(variants), None)


def may_fuse_rows(model: Any, cache: Any, readers: Sequence[Reader]) -> bool:
    """True where prompts of several lengths can share a batch of a model, or only one of the readers has its weights.

    A recurrent state reads padding as text, and some models misread their cache after it (Git). Without a cache this
    cannot be known, and some recurrent models are given none (xLSTM makes its own).
    """
    if not isinstance(cache, Cache) or is_recurrent(cache):
        return False
    if sum(reader.model is None for reader in readers) < 2 or isinstance(cache, EncoderDecoderCache):
        return True
    try:
        return branching_of(model).way != "recompute"
    except ModelError as refusal:
        if is_environment_error(refusal):
            raise
        return False


def may_fuse_expert(
    model: Any,
    model_kwargs: Mapping[str, Any],
    config: GenerationConfig | None,
    restorable: bool,
    known: Collection[str],
    computed_positions: bool,
) -> bool:
    """True where the expert's rows can be made anew beside those of other readers: nothing given or asked for is bound
    to a batch without these.

    Args:
        model: the generating model.
        model_kwargs: of the call, as ``generate`` has prepared them.
        config: of the call.
        restorable: see :class:`decoding.stream.stream.Stream`.
        known: names of inputs beside the text that are known as they were given.
        computed_positions: whether transformers has computed the positions.
    """
    cache = cache_in(model_kwargs)
    recorded = config is not None and bool(config.output_attentions or config.output_hidden_states)
    if isinstance(cache, EncoderDecoderCache):
        fresh = not is_callers_cache(cache) and cache.get_seq_length() == 0 and not restorable and not recorded
        usual = type(cache.self_attention_cache) is DynamicCache
        mask = model_kwargs.get("decoder_attention_mask")
        return fresh and usual and (mask is None or bool(mask.all()))
    if model.config.is_encoder_decoder or type(cache) is not DynamicCache or is_callers_cache(cache):
        return False
    if is_recurrent(cache) or cache.get_seq_length() > 0 or getattr(cache, "offloading", False):
        return False
    if restorable and has_window(cache):
        return False
    if recorded:
        return False
    plain = {"attention_mask", CACHE_ARGUMENT, "position_ids", "use_cache", "logits_to_keep", "cache_position"}
    beside_text = given_inputs(model_kwargs) - plain - {"output_attentions", "output_hidden_states"} - set(known)
    if known:  # generate() has encoded what it was given
        beside_text = {name for name in beside_text if not isinstance(model_kwargs[name], Mapping)}
    return not beside_text and (bool(known and computed_positions) or _usual_positions(model_kwargs))


def _usual_positions(model_kwargs: Mapping[str, Any]) -> bool:
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is None:
        return True
    if positions.dim() != 2 or mask is None or mask.dim() != 2 or positions.shape[1] != mask.shape[1]:
        return mask is None
    usual = (mask.long().cumsum(1) - 1).clamp(min=0)
    return bool(((positions == usual) | (mask == 0)).all())
