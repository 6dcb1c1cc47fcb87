"""``decoding metrics``: figures of texts that are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from decoding.cli.options import Device, DeviceMap, Dtype, Json, Output
from decoding.cli.output import as_json, console, progress, writable, write_files
from decoding.errors import InputError, OptionError, nearest
from decoding.evals.engine.rows import Row, read_lines, read_rows
from decoding.evals.metrics.distribution import mauve
from decoding.evals.metrics.likelihood import coherence, perplexity
from decoding.evals.metrics.overlap import bleu, chrf, rouge, self_bleu
from decoding.evals.metrics.repetition import distinct, diversity, repetition
from decoding.evals.metrics.units import Splitter, splitter
from decoding.models.loading import load

__all__ = ["METRICS", "metrics_command"]


@dataclass(frozen=True)
class Judge:
    """The model that coherence, perplexity and MAUVE ask, loaded once it is needed."""

    name: str | None
    device: str | None
    dtype: str | None
    device_map: str | None

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        if self.name is None:
            raise OptionError("coherence, perplexity and mauve ask a model: give --model")
        return load(self.name, self.device, self.dtype, device_map=self.device_map)


@dataclass(frozen=True)
class Settings:
    """What n-grams are made of, whether that is words between spaces, and the model asked."""

    units: Splitter
    by_words: bool
    judge: Judge


@dataclass(frozen=True)
class Texts:
    """What one row of the table is about.

    Attributes:
        name: of the row.
        texts: the continuations.
        prefixes: what they continue, where the file says.
        references: what people wrote instead, where the file says.
        settings: what n-grams are made of, and the model asked.
    """

    name: str
    texts: list[str]
    prefixes: list[str] | None
    references: list[str] | None
    settings: Settings

    def needed(self, what: str) -> list[str]:
        """The prefixes or references, which a metric needs.

        Raises:
            InputError: the file has none.
        """
        found: list[str] | None = getattr(self, what)
        if found is None:
            raise InputError(f"{self.name}: has no {what}; --prefix and --reference name the fields that hold them")
        return found


def _repetition(given: Texts) -> dict[str, float]:
    shares = {f"rep-{n}": repetition(given.texts, n, given.settings.units) for n in (2, 3, 4)}
    exact, corrected = (diversity(given.texts, given.settings.units, paper_exact=mode) for mode in (True, False))
    return {**shares, "diversity": exact, "diversity corrected": corrected}


def _rouge(given: Texts) -> dict[str, float]:
    # None: the words of rouge_score itself, English ones, stemmed
    units = None if given.settings.by_words else given.settings.units
    return {"rougeL": rouge(given.texts, given.needed("references"), units)["rougeL"]}


METRICS: dict[str, Callable[[Texts], dict[str, float]]] = {
    "repetition": _repetition,
    "distinct": lambda given: {f"distinct-{n}": distinct(given.texts, n, given.settings.units) for n in (1, 2)},
    "self-bleu": lambda given: {"self-BLEU": self_bleu(given.texts, given.settings.units)},
    "coherence": lambda given: {
        "coherence": coherence(given.needed("prefixes"), given.texts, *given.settings.judge.loaded).mean
    },
    "perplexity": lambda given: {"perplexity": perplexity(given.texts, *given.settings.judge.loaded).corpus},
    "mauve": lambda given: {
        "MAUVE": mauve(given.texts, given.needed("references"), *given.settings.judge.loaded, same_length=True).score
    },
    "bleu": lambda given: {"BLEU": bleu(given.texts, given.needed("references")).score},
    "chrf": lambda given: {"chrF": chrf(given.texts, given.needed("references")).score},
    "rouge": _rouge,
}
DEFAULT_METRICS = ("repetition",)


def metrics_command(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Texts: JSON lines, JSON or CSV; or .txt with one text a line."),
    ],
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"One of {', '.join(METRICS)}; repeatable; by default repetition."),
    ] = None,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Which field holds the text, by default output; repeatable, a row each."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(metavar="NAME", help="A row for each value of this field, such as strategy.")
    ] = None,
    prefix: Annotated[str, typer.Option(metavar="NAME", help="Which field holds what the text continues.")] = (
        "prefix_text"
    ),
    reference: Annotated[str, typer.Option(metavar="NAME", help="Which field holds what people wrote.")] = (
        "reference_text"
    ),
    units: Annotated[
        str,
        typer.Option(metavar="NAME", help="whitespace, characters, a sentencepiece model, or a tokenizer's folder."),
    ] = "whitespace",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model that coherence, perplexity and mauve ask.")
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """Measure texts: how much they repeat, how coherent they are, what they have in common with references.

    Example: decoding metrics greedy.jsonl contrastive.jsonl --field output --field reference_text
    """
    names = metric or list(DEFAULT_METRICS)
    for name in names:
        if name not in METRICS:
            raise OptionError(f"--metric {name!r}{nearest(name, METRICS)}")
    settings = Settings(splitter(units), units == "whitespace", Judge(model, device, dtype, device_map))
    rows = [row for file in files for row in _rows(file, field or ["output"], by, prefix, reference, settings)]
    writable(output)
    figures: list[dict[str, float]] = []
    with progress() as bar:
        task = bar.add_task("measuring", total=len(rows) * len(names))
        for row in rows:
            figures.append({})
            for name in names:
                figures[-1] |= METRICS[name](row)
                bar.advance(task)
    records = [
        {"name": row.name, "texts": len(row.texts), "units": units, "metrics": found}
        for row, found in zip(rows, figures, strict=True)
    ]
    write_files(output, {"metrics.json": as_json(records, indent=2) + "\n"})
    if json:
        print(as_json(records, indent=2))
        return
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("\ntexts", overflow="fold")
    for column in figures[0]:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for row, found in zip(rows, figures, strict=True):
        table.add_row(row.name, *(f"{value:.2f}" for value in found.values()))
    console().print(table)


def _rows(
    file: Path, fields: Sequence[str], by: str | None, prefix: str, reference: str, settings: Settings
) -> list[Texts]:
    """One for each field and value of ``by``; one for plain text, which has neither prefixes nor references."""
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
    """A text, which may be empty: some continuations end at once."""
    value = row.value(name)
    if not isinstance(value, str):
        raise row.fault(name, f"is {type(value).__name__}, not text; --field names the column of the texts")
    return value


def _optional(rows: Sequence[Row], name: str) -> list[str] | None:
    return [_text(row, name) for row in rows] if all(name in row for row in rows) else None
