"""The contract of an evaluation task: documents in, records out."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration

__all__ = ["Document", "GroupTask", "Record", "Shard", "Task"]

Record = dict[str, Any]
"""The result of one document under one configuration: JSON-able, finite numbers only.

``metrics`` maps names to numbers, the same names on every document; their means over the documents are the task's
figures. Everything else that it holds (scores, texts) is kept in the samples file.
"""


@dataclass(frozen=True)
class Document:
    """One document of a task.

    Attributes:
        id: its name in the samples file: unique within the task, and the same from run to run.
        content: the data that the task evaluates.
        where: file and row that it comes from, for messages; "" for none.
    """

    id: str
    content: Any
    where: str = ""


class Task(ABC):
    """Documents and their evaluation. A subclass holds the model and whatever else it needs.

    Attributes:
        name: of the task, in files and tables; letters, digits, ``-`` and ``_``.
        settings: JSON-able; the task's settings that change its numbers (prompt style, data, ...). Shown in the
            results; give the same to :func:`decoding.evals.engine.configurations.configured`.
        skipped: why documents were left out when the data were read (``--skip-bad``); counted in the results.
        model: the model under evaluation, where the processes of torchrun may hold parts of it.
        group_size: number of documents that :meth:`evaluate_group` is given at a time, and that are written together.
        criterion: the metrics by which ``decoding tune`` chooses, unless told otherwise; by default the first of
            ``figures``.
        validation_ids: of documents that are there for choices, where the data say which; none where they do not.
        chance: what guessing gives, by metric; metrics without such a figure are left out.
        corpus_resamples: number of resamples for the intervals of :meth:`corpus_metrics`; 0 for no intervals.
    """

    name: str
    model: Any = None
    settings: Mapping[str, Any] = {}
    skipped: Sequence[str] = ()
    group_size: int = 1
    criterion: Sequence[str] = ()
    validation_ids: Sequence[str] = ()
    chance: Mapping[str, float] = {}
    corpus_resamples: int = 0

    @property
    def figures(self) -> Sequence[str]:
        """The metrics of its table."""
        return ()

    def bounds(self, documents: Sequence[Document]) -> Mapping[str, float]:
        """Values of metrics that ``decoding tune`` asks of what it chooses on these documents, unless told others."""
        return {}

    @abstractmethod
    def documents(self) -> Sequence[Document]:
        """All documents, in a fixed order; ``--limit`` takes the first ones."""

    @abstractmethod
    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One record for each configuration, in their order. What they have in common may be computed once.

        A record may depend on the document and the configuration alone. Where tokens are sampled, seed with
        ``configuration.seed(document.id)``.

        Raises:
            InputError: this document cannot be evaluated (an answer longer than the context, ...): named and fatal,
                or counted with ``--skip-bad``.
        """

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """The records of several documents; override it where several are faster together (:class:`GroupTask`)."""
        return [self.evaluate(document, configurations) for document in documents]

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """Figures of one configuration that are no mean over documents. A resample holds some records several times."""
        return {}

    def corpus_metrics_once(self, records: Sequence[Record]) -> Mapping[str, float]:
        """More such figures, which cost too much to be resampled and have no interval."""
        return {}


class GroupTask(Task):
    """A task that evaluates several documents together."""

    @abstractmethod
    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """The records of several documents, one a configuration; see :meth:`Task.evaluate`."""

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """The records of a group of one document."""
        return self.evaluate_group([document], configurations)[0]


@dataclass(frozen=True)
class Shard:
    """The part of the documents that this process evaluates: that of rank 0 to world - 1."""

    rank: int = 0
    world: int = 1

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> Shard:
        """The shard of torchrun (``RANK``, ``WORLD_SIZE``) or srun (``SLURM_PROCID``, ``SLURM_NTASKS``); else all.

        A batch script of Slurm has the latter two as well, but is one process: only srun's have ``SLURM_STEP_ID``.

        Raises:
            OptionError: the variables are no ranks.
        """
        for rank, world, mark in (("RANK", "WORLD_SIZE", "RANK"), ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_ID")):
            if all(environment.get(name) for name in (rank, world, mark)):
                variables = f"{rank}={environment[rank]}, {world}={environment[world]}"
                try:
                    shard = cls(int(environment[rank]), int(environment[world]))
                except ValueError:
                    shard = cls(0, 0)
                if not 0 <= shard.rank < shard.world:
                    raise OptionError(f"{variables} in the environment: ranks must be from 0 to {world} - 1")
                return shard
        return cls()
