"""Runs of evaluations: documents divided among ranks, samples kept one by one, resumed after any end.

A task has the documents and evaluates one; everything else is here. See docs/evaluation.md.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Task as Bar
from rich.text import Text

from decoding.cli.output import progress
from decoding.errors import DecodingWarning, InputError, OptionError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.results import Results, results_of, write_results
from decoding.evals.engine.samples import Sample, SampleFile
from decoding.evals.engine.task import Document, Record, Shard, Task
from decoding.models.devices import is_main_process, is_tensor_parallel

__all__ = ["on_progress", "run"]

PATIENCE = 1800  # seconds that a rank waits for another's next sample, where it needs all

on_progress: ContextVar[Callable[[str, int, int], None] | None] = ContextVar("on_progress", default=None)
"""A function that is called instead of a progress bar after each group: task, documents done, all of this process."""


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
    everywhere: bool = False,
) -> Results | None:
    """Evaluate configurations on the documents of a task, as far as the samples in ``output`` do not have them yet.

    Args:
        task: documents and their evaluation.
        configurations: at least one; the others are compared with the first.
        output: folder of the samples file and the results file; None keeps everything in memory.
        limit: evaluate the first so many documents only.
        seed: of the bootstrap.
        skip_bad: count documents that cannot be evaluated instead of stopping at the first.
        shard: the part of this process; by default that of torchrun or srun. Processes that share one model
            evaluate every document together, and the first of them writes.
        extra: further entries of the results file (how hyper-parameters were chosen, ...).
        everywhere: every rank needs the results, and waits until the others have done their part.

    Returns:
        The results; None on ranks that did not end last: the last one reads all samples and writes the results.

    Raises:
        InputError: a document that cannot be evaluated, or none at all.
        OptionError: ``output`` cannot be written, or the other ranks have written nothing for half an hour.
    """
    began = time.time()
    shard = Shard() if is_tensor_parallel(task.model) else shard or Shard.of_environment()
    writes = is_main_process(task.model)
    documents = list(task.documents())[:limit]
    _check(task, documents, configurations)
    if shard.world > 1 and output is None:
        raise OptionError(f"{shard.world} processes share the documents: they need --output DIR to meet in")

    def results(known: Mapping[tuple[str, str], Sample]) -> Results:
        return results_of(task, documents, configurations, known, limit=limit, seed=seed, extra=extra or {})

    with SampleFile(output, task.name, shard.rank, shard.world, reads_only=not writes) as samples:
        idle = shard.rank > 0 and not _missing(documents, configurations, samples)
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
        if idle:  # all was done before: the first rank, which finds the same, says so
            samples.remove()
    if shard.world == 1:
        complete = results(samples.known) if writes or everywhere else None
        return write_results(complete, output, began) if writes and complete is not None else complete
    assert output is not None
    if not idle:
        with SampleFile(output, task.name, wait=True) as whole:
            # Unless another rank has seen to it, or will.
            if samples.path.exists() and not _missing(documents, configurations, whole):
                order = {document.id: index for index, document in enumerate(documents)}
                columns = {configuration.hash: index for index, configuration in enumerate(configurations)}
                whole.merge(
                    lambda sample: (
                        order.get(sample["document"], len(order)),
                        columns.get(sample["configuration"], 0),
                    )
                )
                return write_results(results(whole.known), output, began)
    if not everywhere:
        return None
    _wait(task, documents, configurations, samples)
    return results(samples.known)


def _wait(
    task: Task, documents: Sequence[Document], configurations: Sequence[Configuration], samples: SampleFile
) -> None:
    """Wait until the other ranks have evaluated the rest.

    Raises:
        OptionError: nothing new has come for ``PATIENCE`` seconds.
    """
    since, known = time.monotonic(), len(samples.known)
    while _missing(documents, configurations, samples):
        if time.monotonic() - since > PATIENCE:
            left = [document for document in documents if _missing([document], configurations, samples)]
            raise OptionError(
                f"{task.name}: waited {PATIENCE // 60} minutes for the other ranks, which have yet to evaluate "
                f"{len(left)} of {len(documents)} documents; run the same command again to go on"
            )
        time.sleep(0.2)
        samples.read()
        if len(samples.known) > known:
            since, known = time.monotonic(), len(samples.known)


def _check(task: Task, documents: Sequence[Document], configurations: Sequence[Configuration]) -> None:
    if not documents:
        raise InputError(f"{task.name}: there is no document to evaluate")
    ids = [document.id for document in documents]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{task.name}: two documents have the id {twice!r}; ids must differ")
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
    # Groups are made of all documents, whatever is done already and however many ranks there are: a document is in the
    # same batch in every run, so that its numbers are the same to the last bit.
    size = task.group_size
    groups = [documents[start : start + size] for start in range(0, len(documents), size)]
    groups = groups[shard.rank :: shard.world]
    done = sum(len(group) for group in groups if not _missing(group, configurations, samples))
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn(),
    )  # fmt: skip
    report = on_progress.get() or (lambda *_: None)
    total, shown = sum(map(len, groups)), shard.rank == 0 and is_main_process(task.model) and on_progress.get() is None
    with progress(*columns, shown=shown) as bar:
        line = bar.add_task(task.name, total=total, completed=done)
        report(task.name, done, total)
        for group in groups:
            missing = _missing(group, configurations, samples)
            if missing:
                samples.append(_samples(task, group, missing, skip_bad))
                done += len(group)
                bar.update(line, completed=done)
                report(task.name, done, total)


def _missing(
    group: Sequence[Document], configurations: Sequence[Configuration], samples: SampleFile
) -> list[Configuration]:
    return [
        configuration
        for configuration in configurations
        if any((document.id, configuration.hash) not in samples for document in group)
    ]


def _samples(
    task: Task, group: Sequence[Document], configurations: Sequence[Configuration], skip_bad: bool
) -> Iterator[Sample]:
    """The samples of a group, document by document."""
    try:
        outcomes: Sequence[Sequence[Record]] = task.evaluate_group(group, configurations)
    except InputError as error:
        if len(group) > 1:
            for document in group:  # one by one, to find the bad one
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
        """The latest speed, or nothing yet."""
        return Text(f"{task.speed:.2f}/s" if task.speed else "", style="dim")
