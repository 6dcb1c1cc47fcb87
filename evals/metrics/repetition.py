"""Repetition (rep-n) and diversity of generated text, as the papers on contrastive search report them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod

__all__ = ["UNITS", "Units", "diversity", "repetition"]

# What an n-gram is made of: the papers split at whitespace; texts in scripts without spaces need characters.
UNITS: dict[str, Callable[[str], Sequence[str]]] = {
    "whitespace": str.split,
    "characters": lambda text: "".join(text.split()),
}
Units = str | Callable[[str], Sequence[str]]


def repetition(texts: Iterable[str], n: int, units: Units = "whitespace", *, paper_exact: bool = True) -> float:
    """rep-n: the share of n-grams that have occurred before in their text, 100·(1 - unique/total).

    Unique and total n-grams are counted text by text and then summed over all texts.

    Args:
        texts: continuations, without their prompts.
        n: length of the n-grams, at least 1.
        units: "whitespace", "characters", or a function from a text to its units.
        paper_exact: the figure that Su et al. (NeurIPS 2022) publish: their code leaves out the last n-gram of a text
            and rounds to 2 decimals. False counts every n-gram and does not round.

    Returns:
        Percent, 0 (nothing repeats) to 100. Texts too short for an n-gram count for nothing; 0 where all are.

    Raises:
        ValueError: n below 1, or units of another name.
    """
    if n < 1:
        raise ValueError(f"n={n}: accepted are whole numbers from 1")
    split = _splitter(units)
    unique = total = 0
    for text in texts:
        words = split(text)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + (0 if paper_exact else 1))]
        unique += len(set(grams))
        total += len(grams)
    percent = 100 * (1 - unique / total) if total else 0.0
    return round(percent, 2) if paper_exact else percent


def diversity(texts: Iterable[str], units: Units = "whitespace", *, paper_exact: bool = True) -> float:
    """Diversity: the product of 1 - rep-n/100 for n = 2, 3, 4, in percent (100: nothing repeats).

    Args:
        texts: as in :func:`repetition`.
        units: likewise.
        paper_exact: likewise; the product itself is not rounded.

    Example:
        >>> diversity(["the sea the sea the sea the sea"]) < diversity(["the sea was calm and the town slept"])
        True
    """
    texts = list(texts)
    return 100 * prod(1 - repetition(texts, n, units, paper_exact=paper_exact) / 100 for n in (2, 3, 4))


def _splitter(units: Units) -> Callable[[str], Sequence[str]]:
    if callable(units):
        return units
    if units not in UNITS:
        raise ValueError(f"units={units!r}: accepted are {', '.join(UNITS)}, or a function")
    return UNITS[units]
