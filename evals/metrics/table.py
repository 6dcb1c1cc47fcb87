"""Metrics of the texts of a file: what each needs of the file, and the figures that it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from decoding.cli.options import Placement
from decoding.errors import InputError, OptionError
from decoding.evals.metrics.distribution import mauve
from decoding.evals.metrics.likelihood import coherence, perplexity
from decoding.evals.metrics.overlap import bleu, chrf, rouge, self_bleu
from decoding.evals.metrics.repetition import distinct, diversity, repetition
from decoding.evals.metrics.units import Splitter
from decoding.rows import Row, read_lines, read_rows

__all__ = ["METRICS", "Judge", "Settings", "Texts", "texts_of"]


@dataclass(frozen=True)
class Judge:
    """The model that coherence, perplexity and MAUVE use, loaded when it is first needed."""

    name: str | None
    placement: Placement

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        if self.name is None:
            raise OptionError("coherence, perplexity and mauve need a model: give --model")
        return self.placement.load(self.name)


@dataclass(frozen=True)
class Settings:
    """The units of n-grams, whether these are words between spaces, and the model that judges."""

    units: Splitter
    by_words: bool
    judge: Judge


@dataclass(frozen=True)
class Texts:
    """The texts of one row of the table.

    Attributes:
        name: of the row.
        texts: the continuations.
        prefixes: the texts that they continue, where the file has them.
        references: human continuations, where the file has them.
        settings: the units of n-grams, and the model that judges.
    """

    name: str
    texts: list[str]
    prefixes: list[str] | None
    references: list[str] | None
    settings: Settings

    def needed(self, what: str) -> list[str]:
        """Return the prefixes or references, which a metric needs.

        Raises:
            InputError: the file has none.
        """
        texts: list[str] | None = getattr(self, what)
        if texts is None:
            raise InputError(f"{self.name}: has no {what}; --prefix and --reference name the fields that hold them")
        return texts


def _repetition(row: Texts) -> dict[str, float]:
    shares = {f"rep-{n}": repetition(row.texts, n, row.settings.units) for n in (2, 3, 4)}
    exact, corrected = (diversity(row.texts, row.settings.units, paper_exact=mode) for mode in (True, False))
    return {**shares, "diversity": exact, "diversity corrected": corrected}


def _rouge(row: Texts) -> dict[str, float]:
    # None: the words of rouge_score itself, English ones, stemmed
    units = None if row.settings.by_words else row.settings.units
    return {"rougeL": rouge(row.texts, row.needed("references"), units)["rougeL"]}


METRICS: dict[str, Callable[[Texts], dict[str, float]]] = {
    "repetition": _repetition,
    "distinct": lambda row: {f"distinct-{n}": distinct(row.texts, n, row.settings.units) for n in (1, 2)},
    "self-bleu": lambda row: {"self-BLEU": self_bleu(row.texts, row.settings.units)},
    "coherence": lambda row: {
        "coherence": coherence(row.needed("prefixes"), row.texts, *row.settings.judge.loaded).mean
    },
    "perplexity": lambda row: {"perplexity": perplexity(row.texts, *row.settings.judge.loaded).corpus},
    "mauve": lambda row: {
        "MAUVE": mauve(row.texts, row.needed("references"), *row.settings.judge.loaded, same_length=True).score
    },
    "bleu": lambda row: {"BLEU": bleu(row.texts, row.needed("references")).score},
    "chrf": lambda row: {"chrF": chrf(row.texts, row.needed("references")).score},
    "rouge": _rouge,
}


def texts_of(
    file: Path, fields: Sequence[str], by: str | None, prefix: str, reference: str, settings: Settings
) -> list[Texts]:
    """Read the texts of a file, for each field and each value of ``by``.

    Plain text has one column, and neither prefixes nor references.
    """
    if file.suffix == ".txt":
        return [Texts(file.stem, read_lines(file), None, None, settings)]
    groups: dict[str, list[Row]] = {}
    for row in read_rows(file):
        groups.setdefault("" if by is None else f":{row.value(by)}", []).append(row)
    return [
        Texts(
            f"{file.name.partition('.')[0]}:{name}{group}",
            [_text(row, name) for row in rows],
            _optional(rows, prefix),
            _optional(rows, reference),
            settings,
        )
        for group, rows in groups.items()
        for name in fields
    ]


def _text(row: Row, name: str) -> str:
    """Return a text, which may be empty: some continuations end with their first token."""
    value = row.value(name)
    if not isinstance(value, str):
        raise row.fault(name, f"is {type(value).__name__}, not text; --field names the column of the texts")
    return row.checked(name, value, empty=True)


def _optional(rows: Sequence[Row], name: str) -> list[str] | None:
    return [_text(row, name) for row in rows] if all(name in row for row in rows) else None
