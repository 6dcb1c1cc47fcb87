"""Overlap of texts with references: BLEU, chrF, ROUGE; and with one another: self-BLEU."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import InputError
from decoding.evals.metrics.repetition import ngrams
from decoding.evals.metrics.texts import as_list, as_texts
from decoding.evals.metrics.units import Units, splitter
from decoding.parameters import plain_number, require_choice, require_count

__all__ = ["Overlap", "bleu", "character_counts", "chrf", "chrf_of_counts", "rouge", "self_bleu"]

LONGEST = 100  # n-gram: each length takes a pass over the texts

CHARACTERS = 6  # of the longest n-grams that chrF counts
References = Sequence[str] | Sequence[Sequence[str]]


@dataclass(frozen=True)
class Overlap:
    """A corpus figure of sacrebleu.

    Attributes:
        score: 0 to 100.
        signature: sacrebleu's, which names its settings; report it with the score.
    """

    score: float
    signature: str


def bleu(texts: Sequence[str], references: References, *, tokenize: str = "13a", lowercase: bool = False) -> Overlap:
    """Corpus BLEU, as sacrebleu has it (Papineni et al. 2002; Post 2018).

    Args:
        texts: translations.
        references: for each text its reference, or a sequence of them.
        tokenize: sacrebleu's tokenizer: "13a"; "zh" for Chinese; "char" for Japanese, Thai and others without spaces;
            "none" for texts that are tokenised already.
        lowercase: ignore case.

    Raises:
        InputError: texts and references that do not match.
        OptionError: another tokenizer.

    Example:
        >>> bleu(["the cat sat on the mat"], ["the cat sat on a mat"]).score > 40
        True
    """
    from sacrebleu.metrics import BLEU

    require_choice("tokenize", tokenize, list(BLEU.TOKENIZERS))
    return _corpus(BLEU(tokenize=tokenize, lowercase=lowercase), texts, references)


def chrf(texts: Sequence[str], references: References, *, word_order: int = 0) -> Overlap:
    """Corpus chrF, as sacrebleu has it (Popović 2015): F-score of character n-grams, for every script alike.

    Args:
        texts: translations.
        references: for each text its reference, or a sequence of them.
        word_order: 2 is chrF++, which counts words and their pairs as well.

    Raises:
        InputError: texts and references that do not match.
    """
    from sacrebleu.metrics import CHRF

    require_count("word_order", word_order, 0, high=LONGEST)
    return _corpus(CHRF(word_order=plain_number(word_order)), texts, references)


def character_counts(text: str, reference: str) -> list[int]:
    """The counts of chrF: for n = 1 to 6 the character n-grams of a text, of its reference, and those in common.

    Counts of several texts add up to those of all; :func:`chrf_of_counts` computes the figure.
    """
    counts = []
    ours, theirs = ("".join(side.split()) for side in (text, reference))
    for n in range(1, CHARACTERS + 1):
        counted, wanted = _counted(ours, n), _counted(theirs, n)
        # As in sacrebleu, n-grams longer than the reference do not count.
        counts += [counted.total() if wanted else 0, wanted.total(), (counted & wanted).total()]
    return counts


def chrf_of_counts(counts: Sequence[int]) -> float:
    """chrF, 0 to 100, of sums of :func:`character_counts`: recall weighs twice (β = 2) what precision does."""
    orders = [order for order in zip(counts[::3], counts[1::3], counts[2::3], strict=True) if order[0] and order[1]]
    precision, recall = (sum(order[2] / order[side] for order in orders) for side in (0, 1))
    if not precision + recall:
        return 0.0
    return 100 * 5 * precision * recall / (4 * precision + recall) / len(orders)


def rouge(texts: Sequence[str], references: References, units: Units | None = None) -> dict[str, float]:
    """ROUGE F-scores, as rouge_score has them (Lin 2004), averaged over the texts.

    Args:
        texts: summaries, a sentence a line (for rougeLsum).
        references: for each text its reference, or a sequence of them, of which the best counts.
        units: None for rouge_score's own words: English, stemmed; they drop every character outside a-z and 0-9, so
            that nothing is left of a Russian or Chinese summary. Name units for those
            (:func:`decoding.evals.metrics.units.splitter`).

    Returns:
        rouge1, rouge2, rougeL and rougeLsum, each 0 to 100.

    Raises:
        InputError: texts and references that do not match.
        OptionError: units of another name.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = RougeScorer(names, use_stemmer=True, tokenizer=None if units is None else _Split(units))
    scores = [scorer.score_multi(wanted, text) for text, wanted in zip(*_listed(texts, references), strict=True)]
    return {name: 100 * sum(score[name].fmeasure for score in scores) / len(scores) for name in names}


def self_bleu(texts: Sequence[str], units: Units = "whitespace", order: int = 4) -> float:
    """self-BLEU: the mean BLEU of each text against all others (Zhu et al., SIGIR 2018); high is little variety.

    As sacrebleu's sentence BLEU with floor smoothing (0.1 matches where there is none, as in the paper's code), n-grams
    longer than the text left out. The references' counts are taken once, so that the cost grows with the number of
    texts and not of pairs. Figures depend on the number of texts: compare sets of the same size only.

    Args:
        texts: at least two.
        units: what an n-gram is made of (:func:`decoding.evals.metrics.units.splitter`).
        order: of the longest n-grams.

    Returns:
        0 to 100.

    Raises:
        InputError: fewer than two texts.
        OptionError: units of another name, or order below 1 or above 100.
    """
    require_count("order", order, 1, high=LONGEST)
    texts = as_texts(texts)
    if len(texts) < 2:
        raise InputError(f"self-BLEU compares texts with one another: {len(texts)} given, at least 2 are needed")
    split = splitter(units)
    words = [split(text) for text in texts]
    counts = [[_counted(text, n) for n in range(1, order + 1)] for text in words]
    most = [_most([text[n] for text in counts]) for n in range(order)]
    lengths = Counter(map(len, words))
    return sum(_bleu_against_others(i, counts[i], most, len(words[i]), lengths) for i in range(len(texts))) / len(texts)


Gram = tuple[str, ...]


def _bleu_against_others(
    index: int,
    counts: list[Counter[Gram]],
    most: list[dict[Gram, tuple[int, int, int]]],
    length: int,
    lengths: Counter[int],
) -> float:
    logs, matched = [], 0
    for grams, tops in zip(counts, most, strict=True):
        total = grams.total()
        if not total:
            break
        matches = 0
        for gram, count in grams.items():
            highest, holder, second = tops[gram]
            matches += min(count, second if holder == index else highest)
        matched += matches
        logs.append(math.log((matches or 0.1) / total))
    if not matched:
        return 0.0
    others = [other for other, texts in lengths.items() if texts > (other == length)]
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 100 * math.exp(min(0.0, 1 - closest / length) + sum(logs) / len(logs))


def _most(counts: list[Counter[Gram]]) -> dict[Gram, tuple[int, int, int]]:
    """The highest count of each n-gram in one text, the index of that text, and the highest count in the others."""
    most: dict[Gram, tuple[int, int, int]] = {}
    for index, grams in enumerate(counts):
        for gram, count in grams.items():
            highest, holder, second = most.get(gram, (0, -1, 0))
            most[gram] = (count, index, highest) if count > highest else (highest, holder, max(second, count))
    return most


def _counted(words: Sequence[str], n: int) -> Counter[Gram]:
    return Counter(ngrams(words, n))


def _corpus(metric: Any, texts: Sequence[str], references: References) -> Overlap:
    texts, listed = _listed(texts, references)
    # sacrebleu wants the first references of all texts, then the second ones; None where a text has fewer.
    streams = [[row[i] if i < len(row) else None for row in listed] for i in range(max(map(len, listed)))]
    score = metric.corpus_score(texts, streams).score
    return Overlap(float(score), str(metric.get_signature()))


def _listed(texts: Sequence[str], references: References) -> tuple[list[str], list[list[str]]]:
    """The texts, and the references of each as a list."""
    texts = as_texts(texts)
    references = as_list(references, "references")
    if len(texts) != len(references):
        raise InputError(f"{len(texts)} texts and {len(references)} references: each text needs its own")
    listed = [as_texts(reference, f"references of text {number}") for number, reference in enumerate(references, 1)]
    if not listed or not all(listed):
        raise InputError("no reference: each text needs at least one")
    return texts, listed


class _Split:
    """Units as a tokenizer of rouge_score."""

    def __init__(self, units: Units) -> None:
        self.split = splitter(units)

    def tokenize(self, text: str) -> list[str]:
        return list(self.split(text))
