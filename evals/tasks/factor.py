"""FACTOR (Muhlgay et al., EACL 2024, 2307.06908): does a model prefer a true completion to its false variants?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.tasks.likelihood import Likelihood, likelihoods
from decoding.rows import Row, documents, rows_of

__all__ = ["METRICS", "PREFIXES", "Completions", "Factor", "load"]

METRICS = ("acc", "acc/token", "acc raw", "acc/token raw")

# The columns' own spelling.
PREFIXES = {"full": "full_prefix", "truncated": "turncated_prefixes"}


@dataclass(frozen=True)
class Completions:
    """One document of FACTOR.

    Attributes:
        id: the row's number from 1.
        prefix: a text up to the end of a sentence.
        completion: its true next sentence.
        contradictions: false variants of it, at least one.
        where: file and row that it comes from, for messages.
    """

    id: str
    prefix: str
    completion: str
    contradictions: tuple[str, ...]
    where: str = field(default="", compare=False)

    @property
    def prompt_and_texts(self) -> tuple[str, list[str]]:
        """The prompt, and its continuations: the true completion first.

        A space at the end of the prefix is moved to the completions, as tokenizers expect it and as in the authors'
        script.
        """
        texts = [text.lstrip(" ") for text in (self.completion, *self.contradictions)]
        if self.prefix.endswith(" "):
            return self.prefix[:-1], [f" {text}" for text in texts]
        return self.prefix, texts


def load(source: str, prefix: str | None = None, skip_bad: bool = False) -> tuple[list[Completions], list[str]]:
    """FACTOR's documents, and one line for each that was left out.

    Args:
        source: such as ``news_factor.csv``: a file, or a hub name.
        prefix: "full" or "truncated", which of the two columns of prefixes; None is "full" for a source with news in
            its name and "truncated" for others, as in DoLa's script.
        skip_bad: leave bad rows out instead of raising.

    Raises:
        InputError: no such data, or a bad row without ``skip_bad``, named by file, row and column.
        OptionError: another ``prefix``.
    """
    if prefix not in (None, *PREFIXES):
        raise OptionError(f"prefix={prefix!r}: must be {' or '.join(PREFIXES)}")
    column = PREFIXES[prefix or ("full" if "news" in Path(source).name.lower() else "truncated")]

    def document(row: Row) -> Completions:
        others = [name for name in row.fields if name.startswith("contradiction")] or ["contradiction_0"]
        texts = [row.text(name) for name in (column, "completion", *others)]
        return Completions(str(row.number), texts[0], texts[1], tuple(texts[2:]), row.where)

    return documents(rows_of(source), document, skip_bad)


class Factor(Task):
    """FACTOR accuracy.

    Metrics: ``acc``, 1 where the true completion's summed log-score is at least as high as that of every false one (as
    DoLa reports it); ``acc/token``, the same of the mean over its tokens (as the authors' script); ``raw``, of a
    strategy's scores without the log-softmax (as in DoLa's script); ``cut``, 1 where the prefix lost
    its beginning because it did not fit into the model's context.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        completions: see :func:`load`.
        left_out: why documents were left out when the data were read.
    """

    name = "factor"

    def __init__(
        self, model: Any, tokenizer: Any, completions: Sequence[Completions], *, left_out: Sequence[str] = ()
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.completions = completions
        self.skipped = left_out
        texts = [[item.prefix, item.completion, *item.contradictions] for item in completions]
        self.settings = {"data": digest(texts)}

    @property
    def figures(self) -> Sequence[str]:
        """The metrics to show."""
        return METRICS[:3]

    def documents(self) -> Sequence[Document]:
        """One document a row."""
        return [Document(item.id, item, item.where) for item in self.completions]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One record a configuration.

        Raises:
            InputError: a completion as long as the model's context.
        """
        prompt, texts = document.content.prompt_and_texts
        scored = likelihoods(configurations, self.model, self.tokenizer, prompt, texts)
        return [_record(scores, cut) for scores, cut in scored]


def _record(scores: Sequence[Likelihood], cut: int) -> Record:
    true, *false = (score.figures() for score in scores)
    right = {f"acc{kind}": float(all(true[kind] >= figures[kind] for figures in false)) for kind in true}
    return {
        "metrics": {**right, "cut": float(cut > 0)},
        "normalized": [score.normalized for score in scores],
        "raw": [score.raw for score in scores],
        "tokens": [score.tokens for score in scores],
        "cut_tokens": cut,
    }
