"""Explanations as records: one form for all strategies, which JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from decoding.errors import InputError, one_line
from decoding.generation.roles import EXPERT

__all__ = ["Candidate", "Explanation", "Step"]


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
        repeats: the position of the token that it would repeat, the one to whose hidden state its own is most similar;
            None where there is none.
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
        settings: by name, what the strategy has set for this step: a ``strength``, the ``layer`` that was chosen,
            ``penalty_alpha`` and ``top_k``.
        divergences: by the name of each reader but the expert, the Jensen-Shannon divergence of its distribution from
            the expert's, 0 to 1 (bits).
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
        return asdict(self)

    def to_json(self, indent: int | None = None) -> str:
        """The explanation as JSON; :meth:`from_json` reads it."""
        return json.dumps(self.as_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Explanation:
        """Read what :meth:`to_json` wrote.

        Raises:
            InputError: the text is something else.
        """
        try:
            return cls.from_dict(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"the text is no explanation as to_json() writes it: {one_line(error)}") from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Explanation:
        """The explanation that :meth:`as_dict` wrote."""
        steps = tuple(
            Step(**{
                **step,
                "chosen": Candidate(**step["chosen"]),
                "rejected": tuple(Candidate(**candidate) for candidate in step["rejected"]),
            })
            for step in values["steps"]
        )  # fmt: skip
        rows = {name: tuple(values[name]) for name in ("readers", "tokens", "is_padding")}
        texts = None if values["texts"] is None else tuple(values["texts"])
        return cls(strategy=values["strategy"], texts=texts, steps=steps, **rows)
