"""A stream: one model reading one batch of rows, with its cache, able to branch.

Four verbs. ``extend`` reads tokens and keeps them; ``branch`` reads several alternative continuations in one forward
pass; ``commit`` keeps one of these per row; ``rewind`` forgets what came after a point. Strategies are written in these
verbs and never see a cache, a mask or a position id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.cache.growing import grow_in_place, layers_of, self_attention_cache
from decoding.cache.layer_kinds import can_share_prefix, is_recurrent, kind_of
from decoding.cache.module_states import as_model_cache
from decoding.cache.quantised import is_quantised
from decoding.errors import InputError, ModelError
from decoding.models.row_variants import RowVariants
from decoding.models.text_config import placeholder_tokens
from decoding.stream.cuda_graph_steps import CudaGraphSteps, GraphPlan
from decoding.stream.equal_rows import EqualRows
from decoding.stream.forked_rows import ForkedBranches
from decoding.stream.output import ForwardOutput, joined, reordered
from decoding.stream.recompute import RecomputedBranches, disable_cache, recompute, why_cache_unusable
from decoding.stream.separate_rows import SeparateRows
from decoding.stream.shared_prefix import SharedPrefixBranches, forward_tree
from decoding.stream.state import BatchState
from decoding.stream.token_tree import TokenTree
from decoding.stream.ways import Branching, may_share_prefix

__all__ = ["Stream"]


class Stream(BatchState):
    """One model reading one batch of rows.

    A stream is told how it is served; :func:`decoding.open_stream` finds that out, opens one and reads its prompt.

    Args:
        model: a generating transformers model.
        input_ids: (batch, length) token ids of the prompt, as ``generate`` prepares them.
        model_kwargs: what ``generate`` passes to a decoding method beside them: masks, positions, cache, encoder
            outputs. The stream owns the dictionary from here on.
        generation_config: of the call.
        branching: how the stream branches, or a function of the stream that tells: it is called at the first branch,
            since checking a model costs a few forward passes. The stream is handed to it, since a function that holds
            its stream would keep the cache alive after the call.
        graph_plan: how the one-token steps and the branches are captured; None runs them as they are.
        restorable: True where the state before a branch may be needed again although that branch is not kept: where the
            cache is handed back or several branches are tried in turn. Caches of attention layers can be restored at no
            cost; others are copied before each branch.
        exits: numbers of layers after which outputs also have hidden states (0 for the embeddings); ascending.
        variants: how each row is read (a LoRA adapter, layers left out); None for the model as it is.
    """

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig,
        *,
        branching: Branching | Callable[[Stream], Branching],
        graph_plan: GraphPlan | None = None,
        restorable: bool = False,
        exits: Sequence[int] = (),
        variants: RowVariants | None = None,
    ) -> None:
        super().__init__(model, input_ids, model_kwargs, restorable, exits, variants)
        self.generation_config = generation_config
        self._branching = branching
        self.use_cache = not self.recompute_reason  # as the call has it
        self._pending: SharedPrefixBranches | ForkedBranches | RecomputedBranches | None = None
        self._fork: ForkedBranches | None = None
        self.rows: SeparateRows | EqualRows | None = None
        if graph_plan is not None:
            self.graph_steps = CudaGraphSteps(self, graph_plan, generation_config.max_length)

    def prefill(
        self, whole_prompt: bool = True, prompt_states: Callable[[Tensor], None] | None = None
    ) -> ForwardOutput:
        """Read the prompt; its output stays in ``prompt``.

        Args:
            whole_prompt: True keeps the hidden states of every prompt token (but for those in a cache that was passed
                in), False those of the last token.
            prompt_states: is called with the prompt's hidden states (batch, n, dim) as they are computed.
        """
        self.read_prompt(self.generation_config, whole_prompt, prompt_states)
        if not self.recompute_reason:
            if reason := why_cache_unusable(self.cache):
                disable_cache(self, reason)
            else:
                grow_in_place(self.cache, self.generation_config.max_length)
        return self.prompt

    # --- the four verbs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def extend(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens and keep them; ``hidden`` is (batch, n, dim)."""
        self.drop()
        self._collapse()
        if self.rows is not None:
            return self.rows.read(tokens)
        return self.extend_together(tokens)

    def extend_together(self, tokens: Tensor, every_logit: bool = False) -> ForwardOutput:
        """Read (batch, n) tokens of rows of one length; with ``every_logit`` the logits of each, where the head cannot
        be applied separately.
        """
        if not self.recompute_reason and tokens.shape[1] > 1 and is_recurrent(self.cache):
            return joined([self.extend(token) for token in tokens.split(1, dim=1)])
        self.kwargs = self.grown_kwargs(tokens.shape[1])
        self.input_ids = torch.cat([self.input_ids, tokens], dim=1)
        if self.recompute_reason:
            self.length += tokens.shape[1]
            return recompute(self, self.input_ids, self.kwargs, tokens.shape[1])
        if self.graph_steps is not None and tokens.shape[1] == 1:
            output = self.graph_steps.read(self, tokens[:, None], self.kwargs["position_ids"][:, -1:])
        else:
            inputs = self.model.prepare_inputs_for_generation(
                self.input_ids, next_sequence_length=tokens.shape[1], **self.kwargs
            )
            output = self.run(inputs, every_logit)
        self.length += tokens.shape[1]
        for layer in layers_of(self.cache):
            kind_of(layer).end_branches(layer)
        return output

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
        if self.branching.way == "recompute" and not self.recompute_reason:
            disable_cache(self, self.branching.reason)
        if self.recompute_reason:
            self._pending = RecomputedBranches(self, tokens)
        elif self.uses_tree_attention:
            self._collapse()
            self._pending = SharedPrefixBranches(self, tokens)
        else:
            if is_quantised(self.cache):
                raise ModelError(
                    f"a quantised cache needs tree attention, which {type(self.model).__name__} does not allow "
                    f"({self.branching.reason}): leave out cache_implementation='quantized'"
                )
            if self._fork is None or self._fork.branches != tokens.shape[1]:
                self._collapse()
                self._fork = ForkedBranches(self, tokens.shape[1])
            self._fork.read(tokens)
            self._pending = self._fork
        return self._pending.output

    @torch.no_grad()
    def commit(self, branch: Tensor) -> ForwardOutput:
        """Keep one branch per row, (batch,) its index, and forget the others; returns the output of the kept tokens."""
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
    def forward_tree(self, tree: TokenTree) -> ForwardOutput:
        """Read a tree of tokens after the text, the same in every row, and keep none of them.

        The stream must be ``restorable``.

        Returns:
            ``hidden`` and ``exits`` are (batch, nodes, dim), in the tree's order; ``logits`` (batch, nodes, vocab)
            where the head cannot be applied separately.
        """
        self.drop()
        if self.uses_tree_attention:
            self._collapse()
            return forward_tree(self, tree)
        return self._forward_paths(tree)

    def rewind(self, length: int) -> None:
        """Forget the tokens from slot ``length`` (counted as the cache counts, padding included) on.

        Raises:
            ModelError: the cache cannot go back (recurrent states, a window that has moved on).
        """
        self.drop()
        self._collapse()
        excess = self.length - length
        if excess < 0:
            raise InputError(
                f"rewind({length}): the stream has read {self.length} tokens; length must be 0 to {self.length}"
            )
        if excess == 0:
            return
        if is_quantised(self.cache):
            raise ModelError(f"rewind({length}): a quantised cache has packed the tokens that it should forget")
        if not self.recompute_reason:
            try:
                self_attention_cache(self.cache).crop(-excess)
            except (RuntimeError, AttributeError, TypeError) as error:
                raise ModelError(
                    f"{type(self.model).__name__}: its cache cannot be rewound by {excess} tokens ({error})"
                ) from error
        self.length = length
        if self.graph_steps is not None:
            self.graph_steps.forget()
        self.cut_inputs(excess)

    @property
    def can_separate_rows(self) -> bool:
        """True where :meth:`separate_rows` is allowed; of an encoder-decoder it is not known."""
        return not self.model.config.is_encoder_decoder and self.uses_tree_attention and not is_quantised(self.cache)

    def separate_rows(self) -> SeparateRows | EqualRows:
        """Let each row have a length of its own from now on, to which it can go back; see :class:`SeparateRows`.

        :meth:`extend` then reads tokens after the end of each row, and returns the logits of each where the head cannot
        be applied separately. The other verbs are of rows of one length. Those of an encoder-decoder keep one length.

        Raises:
            ModelError: a model or a cache that does not allow it.
        """
        if self.rows is None:
            self.drop()
            self._collapse()
            if self.model.config.is_encoder_decoder:
                self.rows = EqualRows(self)
                return self.rows
            if not self.uses_tree_attention:
                reason = self.recompute_reason or self.branching.reason
                raise ModelError(f"{type(self.model).__name__} cannot read drafts: it has no shared prefix ({reason})")
            self.rows = SeparateRows(self, self.generation_config.max_length)
        return self.rows

    @property
    def can_drop_rows(self) -> bool:
        """True where :meth:`keep_rows` is allowed: text alone, a cache of attention layers, no captured steps."""
        return (
            self.graph_steps is None
            and self.rows is None
            and not placeholder_tokens(self.model)
            and (bool(self.recompute_reason) or (can_share_prefix(self.cache) and not is_quantised(self.cache)))
        )

    def keep_rows(self, rows: Tensor, variants: RowVariants | None) -> None:
        """Forget all rows but some, which go on as they are. The prompt's output stays that of all rows.

        Args:
            rows: (kept,) their indices.
            variants: how each of them is read; None for the model as it is.
        """
        self.drop()
        self.reorder(rows)
        self.batch = len(rows)
        self.passes.variants = variants

    # --- what strategies ask beside the verbs ----------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, output: ForwardOutput) -> Tensor:
        """(batch, vocab) next-token logits after the last token of an output of ``extend`` or ``commit``."""
        if output.logits is not None:
            return output.logits[:, -1]
        return self.structure.logits(self.model, output.hidden[:, -1])

    @torch.no_grad()
    def every_logit(self, output: ForwardOutput) -> Tensor:
        """(batch, n, vocab) next-token logits after each token of an output that has them, or whose head is apart."""
        return self.structure.logits(self.model, output.hidden) if output.logits is None else output.logits

    @property
    def branching(self) -> Branching:
        """The way in which this stream branches."""
        if not isinstance(self._branching, Branching):
            self._branching = self._branching(self)
        return self._branching

    @property
    def uses_tree_attention(self) -> bool:
        """True where branches share one prefix, side by side in one row."""
        return not self.recompute_reason and self.branching.way == "shared prefix" and may_share_prefix(self)

    def close(self) -> Any:
        """Forget an uncommitted branch and return the cache, for plain ``generate`` to continue; None without one."""
        self.drop()
        self._collapse()
        if self.recompute_reason:
            return None
        if self.rows is not None:
            self.rows.join()
        for layer in layers_of(self.cache):
            kind_of(layer).stop_branching(layer)
        if self.graph_steps is not None:
            self.graph_steps.hand_over(self.cache)
        return as_model_cache(self.cache)

    def release(self) -> None:
        """Free cache and branches now: branches and stream refer to each other, and the cache is large."""
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
            if not self.recompute_reason:
                self.cache.reorder_cache(rows)
        self.input_ids = self.input_ids[rows]
        self.kwargs = reordered(self.kwargs, rows)

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _forward_paths(self, tree: TokenTree) -> ForwardOutput:
        """Read each path of a tree as a branch, where a model does not allow tree attention."""
        paths = [path for path in tree.paths if path]
        width = max(map(len, paths))
        # Shorter paths are filled up after their end, which no token before it attends to.
        padded = [[tree.tokens[node] for node in [*path, *path[-1:] * (width - len(path))]] for path in paths]
        tokens = self.readable([padded]).expand(self.batch, -1, -1)
        output = self.branch(tokens)
        position = {node: (row, i) for row, path in enumerate(paths) for i, node in enumerate(path)}
        rows, steps = torch.tensor([position[node] for node in range(len(tree))], device=tokens.device).T

        def of_nodes(states: Tensor) -> Tensor:
            return states[:, rows.to(states.device), steps.to(states.device)]

        logits = None if output.logits is None else of_nodes(output.logits)
        result = ForwardOutput(of_nodes(output.hidden), logits, tuple(of_nodes(states) for states in output.exits))
        self.drop()
        return result

    def _collapse(self) -> None:
        """Bring a forked cache back to one row per row."""
        fork, self._fork = self._fork, None
        if fork is not None:
            fork.collapse()
