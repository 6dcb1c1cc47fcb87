"""Needles: sentences that are put into a haystack, with a question that asks for them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from decoding.evals.miniature.world import make_world
from decoding.rows import Row, documents, rows_of

__all__ = ["Needle", "invented_needles", "read_needles"]


@dataclass(frozen=True)
class Needle:
    """A sentence to be found.

    Attributes:
        text: the sentence.
        question: what asks for it.
        answer: the part of the sentence that answers; "" for the whole sentence.
    """

    text: str
    question: str
    answer: str = ""

    @property
    def parts(self) -> tuple[str, str, str]:
        """What stands before the answer, the answer, and what stands after it."""
        if not self.answer:
            return "", self.text, ""
        before, answer, after = self.text.partition(self.answer)
        return before, answer, after


def invented_needles(seed: int = 0) -> list[Needle]:
    """Facts of the embedded models' world with values that they do not have there, in an order that is drawn.

    No model knows them: the embedded models have read others, and further models none.
    """
    rng = random.Random(f"{seed}/needles")
    needles = []
    for fact in make_world().facts:
        if fact.popular is None:
            value = rng.choice([value for value in fact.relation.values if value != fact.truth])
            needles.append(Needle(fact.statement(value), fact.question()))
    rng.shuffle(needles)
    return needles


def read_needles(source: str, skip_bad: bool = False) -> list[Needle]:
    """The needles of a file with the columns needle, question and perhaps answer.

    Args:
        source: a file, or a hub name.
        skip_bad: leave bad rows out.

    Raises:
        InputError: no such data, or a bad row, named by file, row and column.
    """

    def needle(row: Row) -> Needle:
        text, question = row.text("needle").strip(), row.text("question").strip()
        answer = row.text("answer", empty=True).strip() if "answer" in row else ""
        if answer not in text:
            raise row.fault("answer", f"{answer!r} is no part of the needle {text!r}")
        return Needle(text, question, answer)

    return documents(rows_of(source), needle, skip_bad)[0]
