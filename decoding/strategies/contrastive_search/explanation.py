"""Why contrastive search chose what it chose: what each candidate would have repeated of the text before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from decoding.errors import InputError, OptionError
from decoding.generation.strategy import check_generation_config
from decoding.kernels.selection import contrastive_scores
from decoding.models.inputs import check_inputs
from decoding.strategies.contrastive_search.strategy import ContrastiveSearch
from decoding.transformers_private import CALLERS_CACHE_ARGUMENTS, optimized_for_decode

__all__ = ["Candidate", "Step", "explain_contrastive_search"]

# Arguments of generate that say when a text ends and where it goes, which is known.
WITHOUT_SAY = ("compile", "stop_strings", "stopping_criteria", "streamer", "tokenizer")


@dataclass(frozen=True)
class Candidate:
    """One of the k tokens that a step had to choose from.

    Attributes:
        token: its id.
        probability: p(v | x), over the full vocabulary.
        penalty: its degeneration penalty, the largest cosine of its hidden state with one that came before.
        score: (1 - α)·probability - α·penalty; -inf for a token that the call's processors exclude.
        repeats: the place of the token whose hidden state that is, counted in the row as it was given; None where
            nothing came before.
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
        place: of that token, counted in the row as it was given.
        chosen: the candidate that stands there.
        candidates: all k, the most probable first, which is what greedy search would have taken.
    """

    place: int
    chosen: Candidate
    candidates: tuple[Candidate, ...]

    @property
    def greedy(self) -> Candidate:
        """The most probable candidate; of equals the one with the lowest id."""
        return self.candidates[0]

    @property
    def turned_away(self) -> bool:
        """Whether the token is another than the most probable one."""
        return self.chosen.token != self.greedy.token


def explain_contrastive_search(
    model: Any, sequences: Tensor, strategy: ContrastiveSearch, **inputs: Any
) -> list[list[Step]]:
    """Every choice that made a text of contrastive search, found by reading the text again.

    The call that made it is repeated with its tokens given, so that it costs as much once more, and the call itself
    nothing. Tokens that were drawn are explained as well as those with the largest score.

    Args:
        model: the generating model.
        sequences: (batch, length) token ids as ``generate`` returned them, the prompt included.
        strategy: that made them.
        inputs: what ``generate`` was given beside the strategy: ``input_ids``, ``attention_mask``, and all that bears
            on the model's logits, such as ``repetition_penalty``, ``do_sample`` with ``top_p``, or ``max_new_tokens``
            where the model forces its end token there.

    Returns:
        For each row one :class:`Step` a new token, its end token included, padding left out.

    Raises:
        OptionError: another strategy.
        InputError: sequences that do not begin with the prompt, or hold a token that was no candidate; a prompt that
            is not given as tokens from the first one on.

    Example:
        >>> sequences = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=64)
        >>> for step in explain_contrastive_search(model, sequences, strategy, **inputs)[0]:
        ...     if step.turned_away and step.greedy.repeats is not None:
        ...         print(tokenizer.decode(sequences[0, step.greedy.repeats]), step.greedy.penalty)
    """
    if not isinstance(strategy, ContrastiveSearch):
        raise OptionError(f"strategy={strategy!r}: accepted is ContrastiveSearch, whose penalty is explained")
    for name in (*CALLERS_CACHE_ARGUMENTS, "inputs_embeds"):
        if inputs.get(name) is not None and not (name == "inputs_embeds" and model.config.is_encoder_decoder):
            raise InputError(f"{name}: tokens of the whole text are named, so give it as input_ids from the first on")
    steps: list[list[Step]] = []

    def replay(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """In place of a decoding method, which ``generate`` hands its processors and its prepared inputs."""
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

    inputs = {name: value for name, value in inputs.items() if name not in WITHOUT_SAY}
    if not {"max_new_tokens", "max_length", "generation_config"} & inputs.keys():
        inputs["max_new_tokens"] = sequences.shape[1]  # at least those that there are
    model.generate(**inputs, custom_generate=replay)
    return steps


def _steps(session: Any, text: Tensor, start: int, processors: Any, ends: list[int]) -> list[list[Step]]:
    """The steps of each row from place ``start`` on."""
    rows, length = text.shape
    steps: list[list[Step]] = [[] for _ in range(rows)]
    finished = [False] * rows
    for place in range(start, length):
        candidates = _candidates(session, text[:, :place], processors)
        for row, token in enumerate(text[:, place].tolist()):
            if finished[row]:
                continue
            chosen = next((each for each in candidates[row] if each.token == token), None)
            if chosen is None:
                raise InputError(
                    f"sequences: token {token} (row {row}, place {place}) was none of the {len(candidates[row])} "
                    "candidates; give what generate was given when it made them"
                )
            steps[row].append(Step(place, chosen, candidates[row]))
            finished[row] = token in ends
        if all(finished) or place + 1 == length:
            break
        session.advance(text[:, place])
    return steps


def _candidates(session: Any, text: Tensor, processors: Any) -> list[tuple[Candidate, ...]]:
    """The candidates of each row for the next token."""
    logits, probabilities, tokens, hidden = session.score_candidates(text, processors)
    penalty, repeats = (each.to(tokens.device) for each in session.history.repeated(hidden))
    scores = contrastive_scores(logits, probabilities, tokens, penalty, session.strategy.penalty_alpha)
    columns = [each.tolist() for each in (tokens, probabilities, penalty, scores, repeats)]
    return [
        tuple(
            Candidate(token, p, cosine, score, None if place < 0 else place)
            for token, p, cosine, score, place in sorted(
                zip(*row, strict=True), key=lambda candidate: (-candidate[1], candidate[0])
            )
        )
        for row in zip(*columns, strict=True)
    ]


def _check_prompt(text: Tensor, prompt: Tensor) -> None:
    if len(text) != len(prompt) or text.shape[1] < prompt.shape[1] or not text[:, : prompt.shape[1]].equal(prompt):
        raise InputError(
            f"sequences {tuple(text.shape)}: accepted are those that generate returned for this prompt "
            f"{tuple(prompt.shape)}, which they begin with"
        )


def _ends(generation_config: Any) -> list[int]:
    end = generation_config.eos_token_id
    return [] if end is None else [end] if isinstance(end, int) else list(end)
