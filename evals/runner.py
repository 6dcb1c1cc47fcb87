"""Runs an evaluation: documents shared out among ranks, samples kept as they come, resumed after any end.

A task says what its documents are and how one is evaluated; everything else is here. See docs/evaluation.md.
"""

from __future__ import annotations

import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from decoding.cli_options import progress
from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.evals.configurations import Configuration
from decoding.evals.results import Results, results_of, write_results
from decoding.evals.samples import Sample, SampleFile

__all__ = ["Document", "Record", "Shard", "Task", "run"]

Record = dict[str, Any]
"""What an evaluation says of one document under one configuration: JSON-able, finite numbers only.

``metrics`` maps names to numbers, the same names on every document; their means over the documents are the task's
figures. Whatever else it holds (scores, texts) is kept in the samples file.
"""


@dataclass(frozen=True)
class Document:
    """One document of a task.

    Attributes:
        id: names it in the samples file: unique within the task, and the same from run to run.
        content: what the task makes of it.
        where: file and row that it comes from, for messages; "" for none.
    """

    id: str
    content: Any
    where: str = ""


class Task(ABC):
    """What is evaluated on which documents. A subclass holds the model and whatever else it needs.

    Attributes:
        name: of the task, as files and tables have it; letters, digits, ``-`` and ``_``.
        settings: JSON-able; what of the task bears on its numbers (prompt style, data, ...). Shown in the results;
            hand the same to :func:`decoding.evals.configurations.configured`.
        skipped: why documents were left out when the data were read (``--skip-bad``); counted in the results.
        group_size: so many documents go through :meth:`evaluate_group` at a time, and are written together.
        corpus_resamples: how often :meth:`corpus_metrics` is worked out anew for its intervals; 0 for none.
    """

    name: str
    settings: Mapping[str, Any] = {}
    skipped: Sequence[str] = ()
    group_size: int = 1
    corpus_resamples: int = 0

    @abstractmethod
    def documents(self) -> Sequence[Document]:
        """All documents, in a fixed order; ``--limit`` takes the first."""

    @abstractmethod
    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One record for each configuration, in their order. What they have in common may be worked out once.

        A record may depend on the document and the configuration alone. Where tokens are drawn, seed with
        ``configuration.seed(document.id)``.

        Raises:
            InputError: this document cannot be evaluated (an answer longer than the context, ...): named and fatal,
                or counted with ``--skip-bad``.
        """

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """For each document what :meth:`evaluate` gives; to be overridden where several are faster together."""
        return [self.evaluate(document, configurations) for document in documents]

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """Figures of one configuration that are no mean over documents; records may come several times."""
        return {}

    def corpus_metrics_once(self, records: Sequence[Record]) -> Mapping[str, float]:
        """More of them, which cost too much for intervals by resampling and have none."""
        return {}


@dataclass(frozen=True)
class Shard:
    """Which part of the documents this process evaluates: rank 0 to world - 1."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """As torchrun (``RANK``, ``WORLD_SIZE``) or srun (``SLURM_PROCID``, ``SLURM_NTASKS``) say; else all of them.

        Raises:
            OptionError: they say nonsense.
        """
        for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
            if environment.get(rank) and environment.get(world):
                given = f"{rank}={environment[rank]}, {world}={environment[world]}"
                try:
                    shard = cls(int(environment[rank]), int(environment[world]))
                except ValueError:
                    shard = cls(0, 0)
                if not 0 <= shard.rank < shard.world:
                    raise OptionError(f"{given} in the environment: accepted are ranks from 0 to {world} - 1")
                return shard
        return cls()


def run(
    task: Task,
    configurations: Sequence[Configuration],
    *,
    output: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    shard: Shard | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Results | None:
    """Evaluate configurations on the documents of a task, as far as the samples in ``output`` do not have them yet.

    Args:
        task: what is evaluated.
        configurations: at least one; the first is what the others are compared with.
        output: folder of the samples file and the results file; None keeps everything in memory.
        limit: evaluate the first so many documents only.
        seed: of the bootstrap.
        skip_bad: count documents that cannot be evaluated instead of stopping at the first.
        shard: which part this process does; by default what torchrun or srun say.
        extra: more for the results file (how hyper-parameters were chosen, ...).

    Returns:
        The results; None on a rank that did not end last: the one that does reads all samples and writes the results.

    Raises:
        InputError: a document that cannot be evaluated, or none at all.
        OptionError: ``output`` cannot be written.
    """
    began = time.time()
    shard = shard or Shard.of_environment()
    documents = list(task.documents())[:limit]
    _check(task, documents, configurations)
    if shard.world > 1 and output is None:
        raise OptionError(f"{shard.world} processes share the documents: they need --output DIR to meet in")
    with SampleFile(output, task.name, shard.rank, shard.world) as samples:
        try:
            _evaluate(task, documents, configurations, samples, skip_bad, shard)
        except KeyboardInterrupt:
            if output is not None:
                warnings.warn(
                    f"interrupted; {samples.path} keeps {len(samples.known)} samples: run the same command again to "
                    "go on",
                    DecodingWarning,
                    stacklevel=2,
                )
            raise
    if shard.world == 1:
        found = results_of(task, documents, configurations, samples.known, limit=limit, seed=seed, extra=extra or {})
        return write_results(found, output, began)
    assert output is not None
    with SampleFile(output, task.name, wait=True) as whole:
        if not samples.path.exists() or _missing(documents, configurations, whole):
            return None  # another rank has seen to it, or will
        order = {document.id: index for index, document in enumerate(documents)}
        columns = {configuration.hash: index for index, configuration in enumerate(configurations)}
        whole.merge(lambda sample: (order.get(sample["document"], len(order)), columns.get(sample["configuration"], 0)))
        found = results_of(task, documents, configurations, whole.known, limit=limit, seed=seed, extra=extra or {})
        return write_results(found, output, began)


def _check(task: Task, documents: Sequence[Document], configurations: Sequence[Configuration]) -> None:
    if not documents:
        raise InputError(f"{task.name}: there is no document to evaluate")
    ids = [document.id for document in documents]
    if len(set(ids)) < len(ids):
        twice = next(each for each in ids if ids.count(each) > 1)
        raise InputError(f"{task.name}: two documents have the id {twice!r}; accepted are ids that differ")
    if not configurations:
        raise OptionError(f"{task.name}: no strategy to evaluate; give at least one")


def _evaluate(
    task: Task,
    documents: Sequence[Document],
    configurations: Sequence[Configuration],
    samples: SampleFile,
    skip_bad: bool,
    shard: Shard,
) -> None:
    # Groups are those of all documents, whatever is done already and however many ranks there are: a document is
    # evaluated beside the same others in every run, down to the last bit.
    size = task.group_size
    groups = [documents[start : start + size] for start in range(0, len(documents), size)]
    own = groups[shard.rank :: shard.world]
    done = sum(_missing(group, configurations, samples) == [] for group in own)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
    )  # fmt: skip
    with progress(*columns, shown=shard.rank == 0) as bar:
        shown = bar.add_task(task.name, total=sum(map(len, own)), completed=done * size)
        for group in own:
            missing = _missing(group, configurations, samples)
            if missing:
                samples.append(_samples(task, group, missing, skip_bad))
                bar.advance(shown, len(group))


def _missing(
    group: Sequence[Document], configurations: Sequence[Configuration], samples: SampleFile
) -> list[Configuration]:
    return [each for each in configurations if any((document.id, each.hash) not in samples for document in group)]


def _samples(
    task: Task, group: Sequence[Document], configurations: Sequence[Configuration], skip_bad: bool
) -> Iterator[Sample]:
    """The samples of a group, document by document."""
    try:
        outcomes: Sequence[Sequence[Record]] = task.evaluate_group(group, configurations)
    except InputError as error:
        if len(group) > 1:
            for document in group:  # which one it is
                yield from _samples(task, [document], configurations, skip_bad)
            return
        reason = f"{group[0].where or f'{task.name}, document {group[0].id}'}: {error}"
        if not skip_bad:
            raise InputError(f"{reason} (--skip-bad leaves such documents out and counts them)") from error
        outcomes = [[{"skipped": reason} for _ in configurations]]
    for document, records in zip(group, outcomes, strict=True):
        for configuration, record in zip(configurations, records, strict=True):
            yield {"task": task.name, "document": document.id, "configuration": configuration.hash, **record}


class _Rate(ProgressColumn):
    """Documents per second."""

    def render(self, task: Bar) -> Text:
        """The speed of late, or nothing yet."""
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="dim")
