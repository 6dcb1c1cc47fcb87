"""Contrastive search (Su et al., NeurIPS 2022; Su & Collier, TMLR 2023)."""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.cache.growing import tokens_in
from decoding.capabilities.capabilities import open_prepared_stream
from decoding.errors import InputError
from decoding.generation.candidates import CandidateStrategy, TopKStrategy
from decoding.generation.score_parts import ScoreParts, candidate_parts
from decoding.generation.session import Further, Processed, StreamSession, argmax_first
from decoding.kernels.candidates import top_candidates
from decoding.models.structure import inspect_model
from decoding.parameters import require_count
from decoding.strategies.contrastive_search.candidate_rule import CandidateRule, SameEverywhere
from decoding.strategies.contrastive_search.candidates import Candidates
from decoding.strategies.contrastive_search.history import HiddenHistory
from decoding.strategies.contrastive_search.speculative import SpeculativeSearch
from decoding.stream.output import ForwardOutput
from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream
from decoding.transformers_private import CACHE_ARGUMENT, cache_in, mask_length

__all__ = ["ContrastiveSearch", "HiddenStateSearch"]

# By cache that a call returned: the tokens in it and their hidden states, so that a later call that continues the cache
# need not read them again. They live as long as the cache.
_histories: weakref.WeakKeyDictionary[Any, tuple[Tensor, HiddenHistory]] = weakref.WeakKeyDictionary()


class HiddenStateSearch(CandidateStrategy):
    """Base of the searches whose penalty is the likeness of a candidate's hidden state to those of the text.

    Subclasses have the field ``max_history``, and :meth:`candidate_rule`.
    """

    max_history: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_history is not None:
            require_count("max_history", self.max_history, 1, ", or None for the whole text")

    @abstractmethod
    def candidate_rule(self) -> CandidateRule:
        """Return the rule of one call: how many candidates there are, and how much their penalty weighs."""

    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
    ) -> HiddenStateSession:
        """Open a session; see :meth:`Strategy.session`."""
        history = _history_before(model, input_ids, model_kwargs, self.max_history, generation_config)
        stream = open_prepared_stream(
            model, input_ids, model_kwargs, generation_config, restorable=restorable,
            whole_prompt=False, prompt_states=history.append,
        )  # fmt: skip
        return HiddenStateSession(self.candidate_rule(), stream, history)


@dataclass(frozen=True)
class ContrastiveSearch(TopKStrategy, HiddenStateSearch):
    """Contrastive search: among the k most probable tokens, the one that repeats the context least in hidden space.

    The token chosen is the argmax over the top k of (1 - α)·p(v | x) - α·max_j cos(h_v, h_j): p is the
    full-vocabulary softmax of the logits after all processors, h the last hidden states after the final norm, j runs
    over prompt and generated tokens. Source: Su et al., "A Contrastive Framework for Neural Text Generation", eq. 2.

    Tokens whose processed logit is -inf (bad words, a prefix constraint, top-p) are never chosen. With
    ``do_sample=True`` the token is drawn from the softmax of the k scores over ``temperature``; temperature then
    acts there and not on the logits, while the other warpers limit the candidates.

    Args:
        penalty_alpha: α in [0, 1], weight of the degeneration penalty; 0 is greedy search. The paper uses 0.6 for
            open-ended text.
        top_k: k >= 1, number of candidates; 1 is greedy search. The paper uses 3 to 5.
        max_history: how many tokens back the penalty reaches, at least 1; None is all of prompt and text, as in the
            paper. Memory and time of the penalty are bounded by it.

    Raises:
        OptionError: a value out of range, or k beyond the model's vocabulary (when a call begins).

    Example:
        >>> strategy = ContrastiveSearch(penalty_alpha=0.6, top_k=4)
        >>> model.generate(**inputs, custom_generate=strategy, max_new_tokens=64)
    """

    penalty_alpha: float = field(default=0.6, metadata={"grid": (0.4, 0.6)})
    top_k: int = field(default=4, metadata={"grid": (4, 6, 8)})
    max_history: int | None = None
    name: ClassVar[str] = "contrastive-search"

    def candidate_rule(self) -> CandidateRule:
        """The same k and α at every step."""
        return SameEverywhere(self.top_k, self.penalty_alpha)


class HiddenStateSession(StreamSession):
    """One call of such a search: a stream, the history of its hidden states, and the last candidates."""

    looks_ahead = True

    def __init__(self, rule: CandidateRule, stream: Stream, history: HiddenHistory) -> None:
        super().__init__(stream)
        self.rule = rule
        self.history = history
        self.candidates: Tensor | None = None  # (batch, k)
        self.branch: Tensor | None = None  # (batch,), which of them were chosen here
        self.speculative: SpeculativeSearch | None = None

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """Contrastive scores of the candidates, -inf elsewhere; reads all candidates in one forward pass."""
        found = self.score_candidates(input_ids, logits_processor)
        contrastive = found.scores(self.history.penalty(found.hidden))
        return torch.full_like(found.logits, -torch.inf).scatter_(1, found.tokens, contrastive)

    def score_parts(self, input_ids: Tensor, logits_processor: Any) -> ScoreParts:
        """The scores, and of each candidate its probability, its penalty and the token that it is most like."""
        found = self.score_candidates(input_ids, logits_processor)
        penalty, repeats = (values.to(found.tokens.device) for values in self.history.repeated(found.hidden))
        return candidate_parts(
            found.logits, found.tokens, found.probabilities, penalty, found.scores(penalty), found.penalty_alpha,
            self.logits, repeats,
        )  # fmt: skip

    def greedy(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The argmax of :meth:`scores`, which are not computed: on a GPU two launches, and nothing waits for them.

        Where rows have numbers of candidates of their own, the largest is waited for before they are read.
        """
        if input_ids.device != self.history.states.device:  # a model spread over devices
            return super().greedy(input_ids, logits_processor)
        found = self.score_candidates(input_ids, logits_processor)
        selection = self.history.select(
            found.logits, found.probabilities, found.tokens, found.penalty_alpha, found.hidden, found.counts
        )
        self.branch = selection.branch
        return torch.where(selection.score > -torch.inf, selection.token, -1)

    def score_candidates(self, input_ids: Tensor, logits_processor: Any) -> Candidates:
        """The candidates for the next token, which are read in one forward pass."""
        if self.speculative is not None:
            return self.speculative.candidates(lambda logits: logits_processor(input_ids, logits[:, 0])[:, None])
        logits = self.processed_logits(input_ids, logits_processor)
        distribution = logits.softmax(-1)
        probabilities, tokens = top_candidates(distribution, self.rule.most)
        limits = self.rule.limits(distribution[:, None], probabilities[:, None])
        counts = limits.counts_at(0)
        # Of captured steps each number of branches would be another graph: these read the most candidates always.
        if counts is not None and self.stream.graph_steps is None:
            most = int(counts.max())
            probabilities, tokens = probabilities[:, :most], tokens[:, :most]
        self.candidates, self.branch = tokens, None
        hidden = self.stream.branch(tokens).hidden[:, :, -1]  # (batch, k, dim)
        return Candidates(logits, probabilities, tokens, hidden, limits.alpha_at(0), counts)

    @property
    def reads_known_text(self) -> bool:
        """False: the candidates of each step are read, and drafts that are none of them cannot be."""
        return False

    def begin_drafts(self) -> None:
        """Let each row have a length of its own."""
        self.speculative = SpeculativeSearch(self.stream, self.history, self.rule, self.logits)

    def read_by_exit(self, layers: int) -> None:
        """None: a round begins with a token that has been read as a candidate, by all layers."""
        return None

    def read_drafts(self, tokens: Tensor, processed: Processed, further: Further | None = None) -> None:
        """Keep the candidates that the first of (batch, n) tokens are; read the others, and all their candidates."""
        assert self.speculative is not None
        self.speculative.read(tokens, processed, further)

    def widths_of_passes(self, drafts: int) -> Sequence[int]:
        """A pass over the drafts, if there are any, and one over the candidates at every place that are none."""
        places = drafts + 1
        candidates = self.stream.batch * (places * self.rule.most - drafts)
        return [self.stream.batch * places, candidates] if drafts else [candidates]

    def at(self, slot: int, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Go to the candidates after a token of the last pass."""
        assert self.speculative is not None
        self.speculative.go_to(slot)
        self.logits, self.output = self.speculative.logits, self.speculative.output

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first tokens of each row."""
        assert self.speculative is not None
        self.speculative.accept(counts)

    def rewind_to(self, tokens: int) -> None:
        """Forget what is beyond a number of new tokens."""
        assert self.speculative is not None
        self.speculative.rewind_to(tokens)

    def advance(self, tokens: Tensor) -> None:
        """Keep the branch that :meth:`greedy` chose, or else that of each row's token; the first where it is no
        candidate (the pad of a finished row).
        """
        assert self.candidates is not None, "advance() before scores()"
        branch = argmax_first(self.candidates == tokens[:, None]) if self.branch is None else self.branch
        self.take(self.stream.commit(branch))

    def follow(self, tokens: Tensor) -> None:
        """Keep the branches of the tokens, or read the tokens where one of them was no candidate."""
        if self.candidates is not None and bool((self.candidates == tokens[:, None]).any(1).all()):
            self.advance(tokens)
        else:
            super().advance(tokens)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        super().reorder(rows)
        self.history.reorder(rows)
        self.rule.reorder(rows)
        if self.candidates is not None:
            self.candidates = self.candidates[rows]
        if self.branch is not None:
            self.branch = self.branch[rows]

    def close(self) -> Any:
        """The cache, whose history is kept for a later call that continues it."""
        cache = super().close()
        self.history.join_rows()
        if cache is not None:
            _histories[cache] = (self.stream.input_ids, self.history)
        return cache

    def release(self) -> None:
        """Free cache and history."""
        super().release()
        del self.history

    def take(self, output: ForwardOutput) -> None:
        """Append the hidden states of the tokens read to the history."""
        self.candidates = self.branch = None
        self.rule.accept()
        self.history.append(output.hidden)
        super().take(output)


def _history_before(
    model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], window: int | None, config: GenerationConfig | None
) -> HiddenHistory:
    """The hidden states of all tokens in a cache that was passed in, to which those of the rest of the prompt go."""
    expected = None if config is None else config.max_length
    cache = cache_in(model_kwargs)
    past = tokens_in(cache)
    encoder_decoder = bool(model.config.is_encoder_decoder)
    mask = model_kwargs.get("decoder_attention_mask" if encoder_decoder else "attention_mask")
    length = input_ids.shape[1] if mask is None else mask.shape[1]
    if mask is None and past > 0 and config is not None and not encoder_decoder:
        length = mask_length(config) or length
    whole = length == input_ids.shape[1]
    if past == 0:
        return HiddenHistory(mask, length, expected, window)
    if cache in _histories:
        ids, history = _histories[cache]
        known = ids.shape == (len(input_ids), past) and (not whole or torch.equal(ids, input_ids[:, :past]))
        if known and history.length == past and history.reaches(window):
            return history.continued(window, expected)
    structure = inspect_model(model)
    if not whole or past >= input_ids.shape[1] or not structure.separable or encoder_decoder:
        raise InputError(
            f"{CACHE_ARGUMENT} holds {past} tokens whose hidden states contrastive search needs: pass input_ids from "
            "the first token on, or a cache that contrastive search returned (a copy of one has none)"
        )
    inputs: dict[str, Any] = {"input_ids": input_ids[:, :past], "use_cache": False}
    if mask is not None:
        inputs["attention_mask"] = mask[:, :past]
    if model_kwargs.get("position_ids") is not None:
        inputs["position_ids"] = model_kwargs["position_ids"][..., :past]
    history = HiddenHistory(mask, length, expected, window)
    chunk_size = None if config is None else config.prefill_chunk_size
    if chunk_size is not None:
        ids, kwargs, prompt_config = prepare_inputs(model, **{**inputs, "use_cache": True})
        prompt_config.prefill_chunk_size = chunk_size
        open_prepared_stream(
            model, ids, kwargs, prompt_config, whole_prompt=False, prompt_states=history.append
        ).release()
        return history
    with torch.no_grad():
        history.append(structure.forward_backbone(model, inputs).last_hidden_state)
    return history
