"""Repetition (rep-n), diversity and distinct-n of generated text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from decoding.evals.metrics.texts import as_texts
from decoding.evals.metrics.units import Units, splitter
from decoding.parameters import require_count

__all__ = ["counted", "distinct", "diversity", "diversity_of", "ngrams", "pooled", "repetition"]


def repetition(texts: Iterable[str], n: int, units: Units = "whitespace", *, paper_exact: bool = True) -> float:
    """rep-n: the share of n-grams that have occurred before in their text, 100·(1 - unique/total).

    Unique and total n-grams are counted text by text and then summed over all texts.

    Args:
        texts: continuations, without their prompts; one text alone is a list of one.
        n: length of the n-grams, at least 1.
        units: what an n-gram is made of (:func:`decoding.evals.metrics.units.splitter`).
        paper_exact: the figure that Su et al. (NeurIPS 2022) publish: their code leaves out the last n-gram of a text
            and rounds to 2 decimals. False counts every n-gram and does not round.

    Returns:
        Percent, 0 (nothing repeats) to 100. Texts too short for an n-gram do not count; 0 where all are.

    Raises:
        OptionError: n below 1, or units of another name.
    """
    split = splitter(units)
    counts = [counted(split(text), n, paper_exact=paper_exact) for text in as_texts(texts)]
    return pooled(counts, paper_exact=paper_exact)


def counted(words: Sequence[str], n: int, *, paper_exact: bool = True) -> tuple[int, int]:
    """The numbers of unique and of all n-grams of a text that is split into its units.

    Raises:
        OptionError: n below 1.
    """
    _check(n)
    grams = ngrams(words, n)[: -1 if paper_exact else None]
    return len(set(grams)), len(grams)


def pooled(counts: Iterable[Sequence[int]], *, paper_exact: bool = True) -> float:
    """rep-n of several texts, from the counts of each (:func:`counted`)."""
    unique, total = map(sum, zip((0, 0), *counts, strict=True))
    percent = 100 * (1 - unique / total) if total else 0.0
    return round(percent, 2) if paper_exact else percent


def diversity(texts: Iterable[str], units: Units = "whitespace", *, paper_exact: bool = True) -> float:
    """Diversity: the product of 1 - rep-n/100 for n = 2, 3, 4, in percent (100: nothing repeats).

    Args:
        texts: as in :func:`repetition`.
        units: as in :func:`repetition`.
        paper_exact: as in :func:`repetition`; the product itself is not rounded.

    Example:
        >>> diversity(["the sea the sea the sea the sea"]) < diversity(["the sea was calm and the town slept"])
        True
    """
    texts = as_texts(texts)
    return diversity_of(repetition(texts, n, units, paper_exact=paper_exact) for n in (2, 3, 4))


def diversity_of(repetitions: Iterable[float]) -> float:
    """Diversity, in percent, from rep-2, rep-3 and rep-4."""
    return 100 * prod(1 - share / 100 for share in repetitions)


def distinct(texts: Iterable[str], n: int, units: Units = "whitespace") -> float:
    """distinct-n: distinct n-grams of all texts together over all their n-grams (Li et al., NAACL 2016).

    Unlike :func:`repetition` it counts a phrase that two texts share, and it falls as texts are added: compare sets of
    the same size only. The paper divides by the number of words instead of n-grams.

    Args:
        texts: continuations, without their prompts.
        n: length of the n-grams, at least 1.
        units: as in :func:`repetition`.

    Returns:
        Percent, above 0 up to 100 (no n-gram occurs twice); 0 where there is none.

    Raises:
        OptionError: n below 1, or units of another name.
    """
    _check(n)
    split = splitter(units)
    grams = [gram for text in as_texts(texts) for gram in ngrams(split(text), n)]
    return 100 * len(set(grams)) / len(grams) if grams else 0.0


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of n units, in order; none where there are fewer."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _check(n: int) -> None:
    require_count("n", n, 1)
