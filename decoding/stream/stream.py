"""A stream: one model reading one batch of rows, with its cache, able to branch.

Four verbs. ``extend`` reads tokens and keeps them; ``branch`` reads several alternative continuations in one forward
pass; ``commit`` keeps one of these per row; ``rewind`` forgets what came after a point. Strategies are written in these
verbs and never see a cache, a mask or a position id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from decoding.cache.growing import (
    grow_in_place,
    is_recurrent,
    is_sliding,
    layers_of,
    reserve_lookahead_slot,
    self_attention_cache,
    tokens_in,
)
from decoding.cache.module_states import OwnStates, handed_back, with_states
from decoding.cache.quantised import is_quantised
from decoding.capabilities.branching import branching_of
from decoding.capabilities.chunked_prefill import checked_chunking
from decoding.capabilities.cuda_graphs import cuda_graphs_requested, request_cuda_graphs
from decoding.errors import InputError, ModelError
from decoding.models.adapters import MixedRows
from decoding.models.structure import ModelStructure
from decoding.stream.cuda_graph_steps import CudaGraphSteps
from decoding.stream.forked_rows import ForkedBranches
from decoding.stream.forward import Passes
from decoding.stream.output import ForwardOutput, joined, reordered
from decoding.stream.recompute import RecomputedBranches, disable_cache, recompute, why_cache_unusable
from decoding.stream.shared_prefix import SharedPrefixBranches, side_by_side
from decoding.stream.token_tree import TokenTree
from decoding.stream.ways import Branching, may_share
from decoding.transformers_private import CACHE_ARGUMENTS, cache_in, update_model_kwargs

if TYPE_CHECKING:
    from decoding.stream.stream import Stream
from decoding.stream.shared_prefix import _readable

__all__ = ["Stream", "as_branches"]


class Stream:
    """One model reading one batch of rows.

    Args:
        model: a generating transformers model.
        input_ids: (batch, length) token ids of the prompt, as ``generate`` prepares them.
        model_kwargs: what ``generate`` passes to a decoding method beside them: masks, positions, cache, encoder
            outputs. The stream owns it from here on.
        generation_config: of the call, or None for a stream outside ``generate``.
        restorable: whether the state before a branch may be wanted again although that branch is not kept: true
            where the cache is handed back or several branches are tried in turn. Caches of attention layers can be
            restored at no cost; others are copied before each branch.
        exits: after how many layers (0 for the embeddings) readings also give hidden states; ascending.
        mixed: which LoRA adapter each row reads with; None for the model as it is.
        whole_prompt: whether the prompt's hidden states are wanted, or those of its last token alone.
        prompt_states: is given the prompt's hidden states (batch, n, dim), piece by piece as they are read.

    Where ``generation_config.compile`` is true, the one-token steps and the branches of a stream are captured (see
    :class:`decoding.stream.cuda_graph_steps.CudaGraphSteps`).

    Raises:
        OptionError: ``compile`` with a model or a call that cannot be captured.

    Attributes:
        prompt: the reading of the prompt (its ``hidden`` covers the tokens that were not in a cache handed in, or the
            last of them).
        length: how many slots have been read and kept, padding included.
        padded: whether some of them hold padding.
        passes: the model's forward passes for these rows.
        cacheless: why every step reads the whole text anew (:mod:`decoding.stream.recompute`): the call says
            ``use_cache=False``, or the model keeps no cache that can be read on from; empty where it does.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
        exits: Sequence[int] = (),
        mixed: MixedRows | None = None,
        whole_prompt: bool = True,
        prompt_states: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.model = model
        self.passes = Passes(model, exits, mixed)
        self.structure: ModelStructure = self.passes.structure
        self.length = 0
        self.input_ids = input_ids
        self.kwargs = model_kwargs
        self.restorable = restorable
        self.batch = input_ids.shape[0]
        self.cacheless = "use_cache=False" if model_kwargs.get("use_cache") is False else ""
        self._use_cache = not self.cacheless  # as the call has it
        self._pending: SharedPrefixBranches | ForkedBranches | RecomputedBranches | None = None
        self._fork: ForkedBranches | None = None
        self.constant_inputs: dict[str, Any] | None = None  # of branches; set by Shared
        self.graph_steps: CudaGraphSteps | None = None
        reserve_lookahead_slot(cache_in(model_kwargs), model)
        positions = model_kwargs.get("position_ids")
        if positions is not None and positions.dim() == 2 and positions.shape[0] == 1:
            model_kwargs["position_ids"] = positions.expand(self.batch, -1)
        if generation_config is not None and cuda_graphs_requested(generation_config):
            self.graph_steps = CudaGraphSteps(self, generation_config)
        cache = cache_in(model_kwargs)
        expected = None if generation_config is None else generation_config.max_length
        if isinstance(cache, Cache):
            grow_in_place(cache, expected)
            with_states(model, cache)
        past = tokens_in(cache)
        config = checked_chunking(model, input_ids, model_kwargs, generation_config or model.generation_config)
        self.chunked = config.prefill_chunk_size is not None
        self.prompt, read, output = self.passes.read_prompt(input_ids, self.kwargs, config, whole_prompt, prompt_states)
        self._take_cache(output)
        del output  # its logits are no longer wanted
        self.length = past + read
        mask = self.padding_mask
        self.padded = mask is not None and not bool(mask.all())
        if not self.cacheless:
            if unusable := why_cache_unusable(self.cache):
                disable_cache(self, unusable)
            else:
                grow_in_place(self.cache, expected)
        self._branching: Branching | None = None

    @classmethod
    def open(
        cls, model: Any, restorable: bool = False, exits: Sequence[int] = (), compile: bool = False, **inputs: Any
    ) -> Stream:
        """A stream over ``inputs`` as ``generate`` takes them (``input_ids``, ``attention_mask``, ...)."""
        input_ids, model_kwargs, config = cls.prepare(model, **inputs)
        request_cuda_graphs(config, compile)
        return cls(model, input_ids, model_kwargs, config, restorable, exits)

    @staticmethod
    def prepare(model: Any, **inputs: Any) -> tuple[Tensor, dict[str, Any], GenerationConfig]:
        """What ``generate`` would hand to a decoding method for ``inputs``: input ids, keyword arguments, config."""
        prepared: dict[str, Any] = {}

        def keep(model: Any, input_ids: Tensor, **kwargs: Any) -> Tensor:
            prepared.update(kwargs, input_ids=input_ids)
            return input_ids

        use_cache = inputs.pop("use_cache", True)
        config = GenerationConfig(
            max_new_tokens=1, do_sample=False, num_beams=1, penalty_alpha=None, use_cache=use_cache
        )
        if model.generation_config.cache_implementation and cache_in(inputs) is None:
            config.cache_implementation = "dynamic"  # what a model is configured with is for the text of generate()
        model.generate(**inputs, generation_config=config, custom_generate=keep)
        for name in ("logits_processor", "stopping_criteria"):
            prepared.pop(name)
        config = prepared.pop("generation_config")
        config.max_length = None  # how far the text will go is not known here
        return prepared.pop("input_ids"), prepared, config

    # --- the four verbs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens and keep them; ``hidden`` is (batch, n, dim)."""
        self.drop()
        self._collapse()
        if not self.cacheless and tokens.shape[1] > 1 and is_recurrent(self.cache):
            return joined([self.extend(token) for token in tokens.split(1, dim=1)])
        self.kwargs = self.grown_kwargs(tokens.shape[1])
        self.input_ids = torch.cat([self.input_ids, tokens], dim=1)
        if self.cacheless:
            self.length += tokens.shape[1]
            return recompute(self, self.input_ids, self.kwargs, tokens.shape[1])
        if self.graph_steps is not None and tokens.shape[1] == 1:
            reading = self.graph_steps.read(self, tokens[:, None], self.kwargs["position_ids"][:, -1:])
        else:
            inputs = self.model.prepare_inputs_for_generation(
                self.input_ids, next_sequence_length=tokens.shape[1], **self.kwargs
            )
            reading = self.run(inputs)
        self.length += tokens.shape[1]
        for layer in layers_of(self.cache):
            if is_sliding(layer) and layer.record_past:
                layer.crop(0)
        return reading

    @torch.no_grad()
    def branch(self, tokens: Tensor) -> ForwardOutput:
        """Read alternative continuations of every row in one forward pass; none is kept until :meth:`commit`.

        Args:
            tokens: (batch, branches), or (batch, branches, n) for continuations of n tokens.

        Returns:
            ``hidden`` is (batch, branches, n, dim).
        """
        self.drop()
        tokens = tokens[:, :, None] if tokens.dim() == 2 else tokens
        if self.branching.way == "read anew" and not self.cacheless:
            disable_cache(self, self.branching.reason)
        if self.cacheless:
            self._pending = RecomputedBranches(self, tokens)
        elif self.side_by_side:
            self._collapse()
            self._pending = SharedPrefixBranches(self, tokens)
        else:
            if is_quantised(self.cache):
                raise ModelError(
                    f"a quantised cache takes branches side by side only, and {type(self.model).__name__} does not "
                    f"({self.branching.reason}): leave out cache_implementation='quantized'"
                )
            if self._fork is None or self._fork.branches != tokens.shape[1]:
                self._collapse()
                self._fork = ForkedBranches(self, tokens.shape[1])
            self._fork.read(tokens)
            self._pending = self._fork
        return self._pending.reading

    @torch.no_grad()
    def commit(self, branch: Tensor) -> ForwardOutput:
        """Keep one branch per row, (batch,) its index, and forget the others; the reading of the kept tokens."""
        if self._pending is None:
            raise InputError("commit() without branch(): nothing was branched since the last commit, extend or rewind")
        pending, self._pending = self._pending, None
        kept = pending.keep(branch)
        rows = torch.arange(self.batch, device=branch.device)
        self.input_ids = torch.cat([self.input_ids, pending.tokens[rows, branch]], dim=1)
        self.kwargs = pending.kwargs
        self.length += pending.tokens.shape[2]
        return kept

    @torch.no_grad()
    def look(self, tree: TokenTree) -> ForwardOutput:
        """Read texts that go on from here, alike in every row, and keep none of them.

        The stream must be ``restorable``.

        Returns:
            ``hidden`` and ``exits`` are (batch, nodes, dim), in the forest's order; ``logits`` (batch, nodes, vocab)
            where the head cannot be applied apart.
        """
        self.drop()
        if self.side_by_side:
            self._collapse()
            return side_by_side(self, tree)
        return as_branches(self, tree)

    def rewind(self, length: int) -> None:
        """Forget the tokens from slot ``length`` (counted as the cache counts, padding included) on.

        Raises:
            ModelError: the cache cannot go back (recurrent states, a window that has moved on).
        """
        self.drop()
        self._collapse()
        excess = self.length - length
        if excess < 0:
            raise InputError(f"rewind({length}): the stream has read {self.length} tokens; accepted are 0 to that")
        if excess == 0:
            return
        if is_quantised(self.cache):
            raise ModelError(f"rewind({length}): a quantised cache has packed the tokens that it should forget")
        if not self.cacheless:
            try:
                self_attention_cache(self.cache).crop(-excess)
            except (RuntimeError, AttributeError, TypeError) as error:
                raise ModelError(
                    f"{type(self.model).__name__}: its cache cannot be rewound by {excess} tokens ({error})"
                ) from error
        self.length = length
        if self.graph_steps is not None:
            self.graph_steps.forget()
        self.input_ids = self.input_ids[:, :-excess]
        for name in ("attention_mask", "decoder_attention_mask", "position_ids", "decoder_position_ids"):
            if self.kwargs.get(name) is not None and not (self._encoder_decoder and name == "attention_mask"):
                self.kwargs[name] = self.kwargs[name][..., :-excess]

    # --- what strategies ask beside the verbs ----------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, reading: ForwardOutput) -> Tensor:
        """(batch, vocab) next-token logits after the last token of a reading of ``extend`` or ``commit``."""
        if reading.logits is not None:
            return reading.logits[:, -1]
        return self.structure.logits(self.model, reading.hidden[:, -1])

    @property
    def branching(self) -> Branching:
        """How this stream branches; the first time that a model is asked, it is checked."""
        if self._branching is None:
            self._branching = branching_of(self.model, self._use_cache, self.padded)
        return self._branching

    @branching.setter
    def branching(self, branching: Branching) -> None:
        self._branching = branching

    @property
    def side_by_side(self) -> bool:
        """Whether branches share one prefix."""
        return not self.cacheless and self.branching.way == "shared prefix" and may_share(self)

    @property
    def cache(self) -> Any:
        """The cache, or None before the model has made one."""
        return cache_in(self.kwargs)

    @property
    def padding_mask(self) -> Tensor | None:
        """(batch, slots) 1 where a slot holds a token, 0 where padding; None where every slot holds one."""
        return self.kwargs.get("decoder_attention_mask" if self._encoder_decoder else "attention_mask")

    def close(self) -> Any:
        """Forget an uncommitted branch and return the cache, for plain ``generate`` to continue; None if none."""
        self.drop()
        self._collapse()
        if self.cacheless:
            return None
        for layer in layers_of(self.cache):
            if is_sliding(layer):
                layer.record_past = False
        if self.graph_steps is not None:
            self.graph_steps.hand_over(self.cache)
        return handed_back(self.cache)

    def release(self) -> None:
        """Let go of cache and branches now: branches and stream refer to each other, and the cache is large."""
        self._pending = self._fork = None
        if self.graph_steps is not None:
            self.graph_steps.release(self.model)
        self.constant_inputs = None
        self.kwargs = {}

    def drop(self) -> None:
        """Forget an uncommitted branch."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.drop()

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was (as beam search needs it), an uncommitted branch included."""
        if self._pending is not None:
            self._pending.reorder(rows)
        else:
            self._collapse()
            if not self.cacheless:
                self.cache.reorder_cache(rows)
        self.input_ids = self.input_ids[rows]
        self.kwargs = reordered(self.kwargs, rows)

    # --- for the three ways of branching ----------------------------------------------------------------------------

    def grown_kwargs(self, n: int) -> dict[str, Any]:
        """The model's keyword arguments once n more tokens are read: masks and positions are longer."""
        return update_model_kwargs(self.model, {}, dict(self.kwargs), n)

    def run(self, inputs: dict[str, Any], every_logit: bool = False) -> ForwardOutput:
        """One forward pass; through the backbone alone where the head can be applied apart."""
        reading, output = self.passes.run(inputs, self.batch, self.length, every_logit)
        self._take_cache(output)
        return reading

    @property
    def _encoder_decoder(self) -> bool:
        return bool(self.model.config.is_encoder_decoder)

    def _take_cache(self, output: Any) -> None:
        if self.cacheless:
            return
        for name in CACHE_ARGUMENTS:
            if name in output and output[name] is not None:
                held = self.kwargs.get(name)
                if output[name] is not held and not isinstance(held, OwnStates):
                    self.kwargs[name] = with_states(self.model, output[name])
                return

    def _collapse(self) -> None:
        """Bring a forked cache back to one row per row."""
        fork, self._fork = self._fork, None
        if fork is not None:
            fork.collapse()


def as_branches(stream: Stream, tree: TokenTree) -> ForwardOutput:
    """Each text as a branch by itself, where a model cannot place them side by side."""
    paths = [path for path in tree.paths if path]
    width = max(map(len, paths))
    # Shorter ones are filled up behind their end, which nothing before it sees.
    padded = [[tree.tokens[node] for node in [*path, *path[-1:] * (width - len(path))]] for path in paths]
    tokens = _readable(stream, [padded]).expand(stream.batch, -1, -1)
    reading = stream.branch(tokens)
    place = {node: (row, i) for row, path in enumerate(paths) for i, node in enumerate(path)}
    rows, steps = torch.tensor([place[node] for node in range(len(tree))], device=tokens.device).T

    def of_nodes(states: Any) -> Any:
        return states[:, rows.to(states.device), steps.to(states.device)]

    logits = None if reading.logits is None else of_nodes(reading.logits)
    found = ForwardOutput(of_nodes(reading.hidden), logits, tuple(of_nodes(each) for each in reading.exits))
    stream.drop()
    return found
