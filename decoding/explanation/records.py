"""Explanations as records: one form for all strategies, which JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from decoding.errors import OptionError, one_line, shown
from decoding.explanation.typed import typed
from decoding.generation.roles import EXPERT

__all__ = ["Candidate", "Explanation", "Step", "checked_explanation"]

VERSION = 1  # of an explanation's JSON
DRAFTS = ("accepted", "rejected")


@dataclass(frozen=True)
class Candidate:
    """A token that a step could have chosen, or would have without the strategy.

    Attributes:
        token: its id.
        text: what it would add to the text; the name of a token that is a part of a character; None without a
            tokenizer.
        log_probs: by the name of each reader, its log-probability, before the call's processors; None where the reader
            excludes the token or does not have it.
        score: under the strategy; None where it may not be chosen.
        probability: the softmax of the scores over the temperature, with which sampling draws it.
        parts: by name, what else its score is made of: ``confidence`` and ``penalty`` of contrastive search, what
            ``processors`` of the call have added.
        repeats: the position of the token of the text to whose hidden state its own is most similar, which ``penalty``
            measures; None where there is none.
    """

    token: int
    text: str | None
    log_probs: Mapping[str, float | None]
    score: float | None
    probability: float
    parts: Mapping[str, float] = field(default_factory=dict)
    repeats: int | None = None

    def probability_of(self, reader: str) -> float:
        """The probability that a reader gives the token."""
        log_prob = self.log_probs[reader]
        return 0.0 if log_prob is None else math.exp(log_prob)


@dataclass(frozen=True)
class Step:
    """The choice of one token.

    Where there are ``weights``, a candidate's score is the sum, over their names, of the weight times its
    log-probability under the reader of that name or its part of that name, up to a number that all candidates share.

    Attributes:
        position: the index of the token, counted in the row as it was given.
        chosen: the token that was chosen.
        rejected: the strongest others: those with the highest scores, those that the expert finds most probable, and
            what each other reader finds most probable; those with a score first, the highest first.
        greedy_token: the id of the token that greedy search would have chosen here.
        choices: how many tokens could be chosen; 1 where plausibility, or a processor, has left one.
        weights: by name of readers and parts.
        settings: by name, what the strategy has set for this step: a ``strength``, ``penalty_alpha`` and ``top_k``, the
            ``layer`` that was chosen, and what it was chosen by, the largest: ``divergence of layer 2`` and so on, in
            nats, as the strategy measures it (DoLa), ``probability of layer 20`` (DeCo).
        divergences: by the name of each reader but the expert, the Jensen-Shannon divergence of its distribution from
            the expert's, 0 to 1 (bits). No strategy chooses by it, so that readers of all strategies compare.
        draft: "accepted" where a draft was this token, "rejected" where the draft was another; None where there was
            none, or no record of drafts.
        draft_token: the id of the draft; None likewise.
    """

    position: int
    chosen: Candidate
    rejected: tuple[Candidate, ...]
    greedy_token: int
    choices: int
    weights: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, float] = field(default_factory=dict)
    divergences: Mapping[str, float] = field(default_factory=dict)
    draft: str | None = None
    draft_token: int | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The chosen token and the rejected ones, the most probable for the expert first."""
        return tuple(sorted((self.chosen, *self.rejected), key=lambda c: (-c.probability_of(EXPERT), c.token)))

    @property
    def greedy(self) -> Candidate:
        """The token that greedy search would have chosen, whose distribution the call's processors have changed too."""
        return next(c for c in (self.chosen, *self.rejected) if c.token == self.greedy_token)

    @property
    def differs_from_greedy(self) -> bool:
        """True where the chosen token is another."""
        return self.chosen.token != self.greedy_token

    @property
    def margin(self) -> float | None:
        """How much higher the chosen token scores than greedy search's; None where one of them may not be chosen."""
        chosen, greedy = self.chosen.score, self.greedy.score
        return None if chosen is None or greedy is None else chosen - greedy

    @property
    def disagreement(self) -> float | None:
        """The largest of the divergences; None where there is one reader."""
        return max(self.divergences.values(), default=None)


@dataclass(frozen=True)
class Explanation:
    """The choices that made one text.

    Attributes:
        strategy: its name and parameters.
        readers: the names of the readers, the expert first.
        tokens: the ids of the row as it was given, to the last that is explained; positions count in it.
        texts: what each of these adds to the text, "" for padding and for a token that ends within a character: the
            token that completes the character has all of it. None without a tokenizer.
        is_padding: True for those that are padding.
        steps: one for each new token, its end token included.
    """

    strategy: str
    readers: tuple[str, ...]
    tokens: tuple[int, ...]
    texts: tuple[str, ...] | None
    is_padding: tuple[bool, ...]
    steps: tuple[Step, ...]

    def as_dict(self) -> dict[str, Any]:
        """The explanation as JSON has it."""
        return {"version": VERSION, **asdict(self)}

    def to_json(self, indent: int | None = None) -> str:
        """The explanation as JSON; :meth:`from_json` reads it."""
        return json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Read what :meth:`to_json` wrote.

        Raises:
            OptionError: the text is something else, or of another version; says where it is.
        """
        if not isinstance(text, (str, bytes, bytearray)):
            raise OptionError(f"explanation={shown(text)}: must be JSON as to_json() writes it")
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"explanation: must be JSON as to_json() writes it ({one_line(error)})") from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Explanation:
        """Read what :meth:`as_dict` returned.

        Raises:
            OptionError: likewise.
        """
        if not isinstance(values, Mapping) or "version" not in values:
            raise OptionError(f"explanation={shown(values)}: must be what to_json() or as_dict() wrote, with a version")
        version = values["version"]
        if version != VERSION or isinstance(version, bool):
            raise OptionError(f"explanation: version {shown(version)} is none that is read here; must be {VERSION}")
        return checked_explanation({name: value for name, value in values.items() if name != "version"})


def checked_explanation(given: Explanation | Mapping[str, Any]) -> Explanation:
    """An explanation whose values have the types of their fields and the lengths that belong together.

    Args:
        given: an explanation, or its fields as JSON has them.

    Raises:
        OptionError: names the first value that is none.
    """
    explanation: Explanation = typed(Explanation, given, "explanation")
    tokens, readers = explanation.tokens, explanation.readers
    if not readers or len(set(readers)) < len(readers):
        raise OptionError(f"explanation.readers={shown(readers)}: must be one name or several, each once")
    for name in ("texts", "is_padding"):
        values = getattr(explanation, name)
        if values is not None and len(values) != len(tokens):
            raise OptionError(f"explanation.{name}: {len(values)} values; must be one for each of {len(tokens)} tokens")
    first = len(tokens) - len(explanation.steps)
    if first < 0:
        raise OptionError(
            f"explanation.steps: are {len(explanation.steps)}; must be at most one a token, {len(tokens)}"
        )
    for index, step in enumerate(explanation.steps):
        _check_step(step, first + index, readers, f"explanation.steps[{index}]")
    return explanation


def _check_step(step: Step, position: int, readers: tuple[str, ...], where: str) -> None:
    if step.position != position:
        raise OptionError(f"{where}.position={step.position}: must be {position}, since steps are of the last tokens")
    candidates = (step.chosen, *step.rejected)
    if step.greedy_token not in {candidate.token for candidate in candidates}:
        raise OptionError(f"{where}.greedy_token={step.greedy_token}: must be the token of a candidate")
    if step.draft not in (None, *DRAFTS):
        raise OptionError(f"{where}.draft={step.draft!r}: must be {' or '.join(DRAFTS)}, or none")
    for candidate in candidates:
        for reader in readers:
            if reader not in candidate.log_probs:
                raise OptionError(f"{where}: token {candidate.token} has no log-probability of the reader {reader!r}")
        if candidate.repeats is not None and not 0 <= candidate.repeats < position:
            raise OptionError(
                f"{where}: token {candidate.token} repeats {candidate.repeats}; must be 0 to {position - 1}"
            )
