"""Explanations of contrastive search: the token before each candidate that its hidden state repeats most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decoding.errors import InputError, OptionError, shown
from decoding.generation.strategy import check_generation_config
from decoding.models.inputs import check_inputs, check_tokens, with_named_inputs
from decoding.models.wrappers import unwrapped
from decoding.strategies.contrastive_search.strategy import HiddenStateSearch
from decoding.transformers_private import CALLERS_CACHE_ARGUMENTS, optimized_for_decode

__all__ = ["Candidate", "Step", "explain_contrastive_search"]

# Arguments of generate that do not change scores: the text is known.
IGNORED = ("compile", "stop_strings", "stopping_criteria", "streamer", "tokenizer")


@dataclass(frozen=True)
class Candidate:
    """One of the k tokens that a step had to choose from; adaptive search has a k and an α for each step.

    Attributes:
        token: its id.
        probability: p(v | x), over the full vocabulary.
        penalty: its degeneration penalty, the largest cosine of its hidden state with an earlier one.
        score: (1 - α)·probability - α·penalty; -inf for a token that the call's processors exclude.
        repeats: the index of the token whose hidden state that is, counted in the row as it was given; None for the
            first token of a text.
    """

    token: int
    probability: float
    penalty: float
    score: float
    repeats: int | None


@dataclass(frozen=True)
class Step:
    """The choice of one token.

    Attributes:
        position: the index of that token, counted in the row as it was given.
        chosen: the candidate that was chosen.
        candidates: all k, the most probable first, which greedy search would have chosen.
    """

    position: int
    chosen: Candidate
    candidates: tuple[Candidate, ...]

    @property
    def greedy(self) -> Candidate:
        """The most probable candidate; of equals the one with the lowest id."""
        return self.candidates[0]

    @property
    def differs_from_greedy(self) -> bool:
        """True where the chosen token is not the most probable one."""
        return self.chosen.token != self.greedy.token


def explain_contrastive_search(
    model: Any, sequences: Tensor, strategy: HiddenStateSearch, **inputs: Any
) -> list[list[Step]]:
    """Every choice that made a text of contrastive search, found by reading the text again.

    The call that made it is repeated with its tokens given, so that it costs as much once more, and the call itself
    nothing. Tokens that were drawn are explained as well as those with the largest score.

    Args:
        model: the generating model.
        sequences: (batch, length) token ids as ``generate`` returned them, the prompt included.
        strategy: that made them, adaptive or not.
        inputs: the inputs of that ``generate`` call beside the strategy: ``input_ids``, ``attention_mask``, and all
            that changes the model's logits, such as ``repetition_penalty``, ``do_sample`` with ``top_p``, or
            ``max_new_tokens`` where the model forces its end token there.

    Returns:
        For each row one :class:`Step` a new token, its end token included, padding left out.

    Raises:
        OptionError: another strategy.
        InputError: sequences that do not begin with the prompt, or hold a token that was no candidate; a prompt that
            is not given as tokens from the first one on.

    Example:
        >>> sequences = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=64)
        >>> for step in explain_contrastive_search(model, sequences, strategy, **inputs)[0]:
        ...     if step.differs_from_greedy and step.greedy.repeats is not None:
        ...         print(tokenizer.decode(sequences[0, step.greedy.repeats]), step.greedy.penalty)
    """
    model = unwrapped(model)
    if not isinstance(strategy, HiddenStateSearch):
        raise OptionError(
            f"strategy={shown(strategy)}: must be ContrastiveSearch or AdaptiveContrastiveSearch, whose penalty is "
            "explained"
        )
    _, inputs = with_named_inputs(None, inputs)
    check_tokens(model, sequences)
    if sequences.shape[1] == 0:
        raise InputError("sequences are empty: give what generate returned, the prompt included")
    for name in (*CALLERS_CACHE_ARGUMENTS, "inputs_embeds"):
        if inputs.get(name) is not None and not (name == "inputs_embeds" and model.config.is_encoder_decoder):
            raise InputError(f"{name}: tokens of the whole text are named, so give it as input_ids from the first on")
    steps: list[list[Step]] = []

    def replay(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Stand in for a decoding method, to which ``generate`` passes its processors and its prepared inputs."""
        check_generation_config(strategy.name, generation_config)
        check_inputs(model, input_ids, model_kwargs)
        strategy.check(model)
        text = sequences.to(input_ids.device)
        _check_prompt(text, input_ids)
        processors, _ = strategy.split_temperature(logits_processor)
        session = strategy.session(model, input_ids, model_kwargs, generation_config)
        try:
            with optimized_for_decode(model):
                steps.extend(_steps(session, text, input_ids.shape[1], processors, _ends(generation_config)))
        finally:
            session.release()
        return text

    inputs = {name: value for name, value in inputs.items() if name not in IGNORED}
    if not {"max_new_tokens", "max_length", "generation_config"} & inputs.keys():
        inputs["max_new_tokens"] = sequences.shape[1]  # at least as many as were made
    model.generate(**inputs, custom_generate=replay)
    return steps


def _steps(session: Any, text: Tensor, start: int, processors: Any, ends: list[int]) -> list[list[Step]]:
    """The steps of each row from position ``start`` on."""
    rows, length = text.shape
    steps: list[list[Step]] = [[] for _ in range(rows)]
    finished = [False] * rows
    for position in range(start, length):
        candidates = _candidates(session, text[:, :position], processors)
        for row, token in enumerate(text[:, position].tolist()):
            if finished[row]:
                continue
            chosen = next((candidate for candidate in candidates[row] if candidate.token == token), None)
            if chosen is None:
                raise InputError(
                    f"sequences: token {token} (row {row}, position {position}) was none of the {len(candidates[row])} "
                    "candidates; give what generate was given when it made them"
                )
            steps[row].append(Step(position, chosen, candidates[row]))
            finished[row] = token in ends
        if all(finished) or position + 1 == length:
            break
        session.advance(text[:, position])
    return steps


def _candidates(session: Any, text: Tensor, processors: Any) -> list[tuple[Candidate, ...]]:
    """The candidates of each row for the next token."""
    found = session.score_candidates(text, processors)
    penalty, repeats = (values.to(found.tokens.device) for values in session.history.repeated(found.hidden))
    columns = [
        values.tolist() for values in (found.tokens, found.probabilities, penalty, found.scores(penalty), repeats)
    ]
    counts = [found.tokens.shape[1]] * len(text) if found.counts is None else found.counts.tolist()
    return [
        tuple(
            Candidate(token, p, cosine, score, None if position < 0 else position)
            for token, p, cosine, score, position in sorted(
                list(zip(*row, strict=True))[:count], key=lambda candidate: (-candidate[1], candidate[0])
            )
        )
        for count, *row in zip(counts, *columns, strict=True)
    ]


def _check_prompt(text: Tensor, prompt: Tensor) -> None:
    if len(text) != len(prompt) or text.shape[1] < prompt.shape[1] or not text[:, : prompt.shape[1]].equal(prompt):
        raise InputError(
            f"sequences {tuple(text.shape)}: must be those that generate returned for this prompt "
            f"{tuple(prompt.shape)}, which they begin with"
        )


def _ends(generation_config: Any) -> list[int]:
    end = generation_config.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)
