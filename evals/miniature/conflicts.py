"""Questions whose documents contradict what the embedded expert remembers of its world, generated, not stored.

They ask for the facts that have no popular misconception: those the expert has read in one form only, the true one. The
same questions come with documents that agree with the world, for control.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from decoding.evals.miniature.questions import PROMPT, SPLITS
from decoding.evals.miniature.world import SEED, Entity, Fact, make_world

MOST_DOCUMENTS = 5  # of a question: contradicting ones need a value each, and the smallest relation has six
WRONG = 2  # further wrong answers of a question


@dataclass(frozen=True)
class ConflictQuestion:
    """One question with documents that contradict the world and documents that agree with it."""

    id: str  # "velmar-owl/bed"
    question: str
    answers: tuple[str, ...]  # as the conflicting documents have it, in every wording
    memory: tuple[str, ...]  # as the world has it, in every wording
    others: tuple[str, ...]  # further false answers, which no conflicting document has
    conflicting: tuple[str, ...]  # documents, one of which states the answer
    agreeing: tuple[str, ...]  # documents, one of which states the truth

    @property
    def prompt(self) -> str:
        """The question's prompt, as in the training texts."""
        return PROMPT.format(question=self.question)


def conflicts(
    split: str, *, documents: int = 1, contradicting: bool = False, seed: int = SEED
) -> list[ConflictQuestion]:
    """The questions of a split, "validation" or "test", of the world of a seed, in a fixed order.

    With several `documents` one of them, at a place that is drawn, is about the question. The others are articles on
    other entities of its kind; with `contradicting` those beside the true one are articles on the same entity, each
    with another false value.

    Raises ValueError for another split, or a number of documents below 1 or above `MOST_DOCUMENTS`.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if not 1 <= documents <= MOST_DOCUMENTS:
        raise ValueError(f"documents={documents}: must be 1 to {MOST_DOCUMENTS}")
    known: dict[Entity, list[Fact]] = {}
    for fact in make_world(seed).facts:
        if fact.popular is None:
            known.setdefault(fact.entity, []).append(fact)
    return [
        _question(fact, known, documents, contradicting, random.Random(f"{seed}/conflict/{fact.id}"))
        for entity, facts in known.items()
        if entity.split == split
        for fact in facts
    ]


def _question(
    fact: Fact, known: Mapping[Entity, Sequence[Fact]], documents: int, contradicting: bool, rng: random.Random
) -> ConflictQuestion:
    def article(entity: Entity, value: str = "") -> str:
        """An article of the encyclopaedia on an entity, in which the fact has this value."""
        facts = rng.sample(known[entity], len(known[entity]))
        return " ".join(other.statement(value if other is fact else other.truth) for other in facts)

    false = [value for value in fact.relation.values if value != fact.truth]
    rng.shuffle(false)
    swapped, *rest = false
    kin = [entity for entity in known if entity.kind == fact.entity.kind and entity is not fact.entity]
    irrelevant = [article(entity) for entity in rng.sample(kin, documents - 1)]
    wrong = [article(fact.entity, value) for value in rest[: documents - 1]]
    place = rng.randrange(documents)
    return ConflictQuestion(
        fact.id,
        fact.question(),
        tuple(_wordings(fact, swapped)),
        tuple(_wordings(fact, fact.truth)),
        tuple(fact.statement(value) for value in rest[:WRONG]),
        _placed(irrelevant, place, article(fact.entity, swapped)),
        _placed(wrong if contradicting else irrelevant, place, article(fact.entity, fact.truth)),
    )


def _wordings(fact: Fact, value: str) -> Iterable[str]:
    return (fact.statement(value, form) for form in range(len(fact.relation.statements)))


def _placed(documents: list[str], place: int, document: str) -> tuple[str, ...]:
    return (*documents[:place], document, *documents[place:])
