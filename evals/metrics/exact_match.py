"""Exact match of short answers, as SQuAD's evaluation has it (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

__all__ = ["exact_match", "mentioned", "normalised_answer"]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_answer(text: str) -> str:
    """An answer in lower case, without punctuation and English articles, with single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(text: str, references: Iterable[str]) -> bool:
    """True where a text is one of the references, after :func:`normalised_answer`."""
    return normalised_answer(text) in {normalised_answer(reference) for reference in references}


def mentioned(text: str, references: Iterable[str]) -> bool:
    """True where the words of a reference stand in a text one after another, after :func:`normalised_answer`.

    A reference without a word is in no text.
    """
    words = f" {normalised_answer(text)} "
    return any(f" {short} " in words for short in map(normalised_answer, references) if short)
