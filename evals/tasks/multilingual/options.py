"""Tasks of the languages, from the options of ``decoding eval multilingual``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoding.errors import OptionError
from decoding.evals.engine.text_generation import TextGenerator
from decoding.evals.metrics.units import units_identity
from decoding.evals.sandbox import Limits
from decoding.evals.tasks.multilingual import data as files
from decoding.evals.tasks.multilingual.languages import Language, language
from decoding.evals.tasks.multilingual.programs import Code
from decoding.evals.tasks.multilingual.tasks import GenerationTask, OpenEnded, Summarization, Translation
from decoding.models.identity import identity

if TYPE_CHECKING:
    from decoding.evals.engine.vllm_texts import VllmTexts

__all__ = ["DEFAULTS", "PYTHON", "LanguageData", "Options", "read", "task_of", "with_defaults"]


@dataclass(frozen=True)
class Defaults:
    """The paper's settings of a task; contrastive search's k for open-ended text is the language's."""

    max_new_tokens: int
    shots: int
    penalty_alpha: float
    top_k: int | None
    stop: tuple[str, ...] = ()


# IWSLT14: k 3, α 0.4, 128 tokens. HumanEval: k 3, α 0.4, and strings that end a function at the top level of a file.
# XSum: k 5, α 0.6. The lengths of summaries and programs are ours.
DEFAULTS = {
    "open-ended": Defaults(64, 0, 0.6, None),
    "translation": Defaults(128, 1, 0.4, 3, ("\n",)),
    "summarization": Defaults(64, 1, 0.6, 5, ("\n",)),
    "code": Defaults(256, 0, 0.4, 3, ("\ndef ", "\nclass ", "\nif ", "\nprint", "\n#", "\nassert ", "\n@", "\n```")),
}
PREFIX_LENGTH = 16  # the paper's, for data without prefixes
PYTHON = Language("python", "python", "Python", "Python", 3)  # of the code task: every task has a language


@dataclass(frozen=True)
class Options:
    """Settings of every language's task; judge and featurizer are name, model and tokenizer."""

    task: str
    target: str
    prefix_length: int | None
    max_new_tokens: int
    shots: int | None
    examples: Path | None
    units: str | None
    judge: tuple[str, Any, Any] | None
    featurizer: tuple[str, Any, Any] | None
    samples: int
    k: Sequence[int]
    limits: Limits
    weak: bool
    batch_size: int
    skip_bad: bool


@dataclass(frozen=True)
class LanguageData:
    """The content of a language's files: documents, examples for the prompt, and why rows were left out."""

    documents: Sequence[Any]
    examples: Sequence[files.Passage]
    skipped: Sequence[str]


def read(options: Options, source: files.Source, spoken: Language) -> LanguageData:
    """The documents of one language.

    Raises:
        InputError: a bad row without ``skip_bad``, or none that is left.
        OptionError: as many examples as there are rows.
    """
    if options.task == "code":
        problems, bad = files.problems(source.file, options.skip_bad)
        return LanguageData(problems, [], bad)
    if options.task == "open-ended":
        passages, bad = files.passages(source, options.skip_bad)
        return LanguageData(passages, [], bad)

    def pairs(source: files.Source, skip_bad: bool) -> tuple[list[files.Passage], list[str]]:
        if options.task == "summarization":
            return files.articles(source.file, skip_bad)
        return files.translations(source, spoken.code, options.target, skip_bad)

    rows, bad = pairs(source, options.skip_bad)
    if options.examples is not None:
        return LanguageData(rows, pairs(files.Source(options.examples), False)[0][: options.shots], bad)
    # The data's first rows are examples, and then no documents.
    shots = DEFAULTS[options.task].shots if options.shots is None else options.shots
    if shots >= len(rows):
        raise OptionError(f"--shots {shots}: {source.file} has {len(rows)} rows, of which none would be left")
    return LanguageData(rows[shots:], rows[:shots], bad)


def task_of(
    options: Options,
    data: LanguageData,
    spoken: Language,
    model: Any,
    tokenizer: Any,
    engine: VllmTexts | None = None,
) -> GenerationTask:
    """The task of one language, whose texts the model generates, or an engine in place of it."""
    name = options.task if spoken is PYTHON else f"{options.task}-{spoken.code}"
    generator = TextGenerator(model, tokenizer, options.max_new_tokens, DEFAULTS[options.task].stop, engine)
    common: dict[str, Any] = {"skipped": data.skipped, "batch_size": options.batch_size}
    settings: dict[str, Any] = {}
    if options.task == "code":
        return Code(
            name, generator, data.documents, settings, samples=options.samples, k=options.k, limits=options.limits,
            weak=options.weak, **common,
        )  # fmt: skip
    if options.task == "open-ended":
        unsplit = any(not passage.text for passage in data.documents)
        length, units = options.prefix_length or (PREFIX_LENGTH if unsplit else None), options.units or spoken.units
        settings = {"prefix_length": length, "units": units_identity(units)}
        if options.judge is not None:
            settings["judge"] = identity(*options.judge[1:])  # its name is no part of what was evaluated
        judge, featurizer = (named and named[1:] for named in (options.judge, options.featurizer))
        return OpenEnded(
            name, generator, data.documents, settings, prefix_length=length, units=units, judge=judge,
            featurizer=featurizer, **common,
        )  # fmt: skip
    common["examples"] = data.examples
    if options.task == "translation":
        target = language(options.target)
        settings = {"from": spoken.code, "to": target.code, "tokenize": target.bleu}
        return Translation(name, generator, data.documents, settings, languages=(spoken, target), **common)
    rouge_units = options.units or (None if spoken.code == "en" else spoken.units)
    return Summarization(
        name,
        generator,
        data.documents,
        {"units": rouge_units and units_identity(rouge_units)},
        units=rouge_units,
        **common,
    )


def with_defaults(spec: str, task: str, spoken: Language) -> str:
    """Contrastive search with the paper's k and α, unless the command line has others."""
    name, _, inline = spec.partition(":")
    if name.strip().lower().replace("_", "-") != "contrastive-search":
        return spec
    top_k = DEFAULTS[task].top_k or spoken.top_k
    return ",".join(filter(None, [f"{name}:penalty_alpha={DEFAULTS[task].penalty_alpha},top_k={top_k}", inline]))
