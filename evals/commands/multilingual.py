"""``decoding eval multilingual``: strategies side by side on generation tasks, language by language."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoding.cli.options import (
    GenerationOptions,
    codes_of,
    complete_model,
    complete_strategy,
    expanded,
    known_strategies,
    whole_numbers_of,
)
from decoding.cli.output import as_json, console, writable, write_files
from decoding.errors import OptionError, nearest
from decoding.evals.engine.options import EvaluationOptions
from decoding.evals.tasks.multilingual.languages import LANGUAGES, language
from decoding.strategies.generation_options import EVALUATIONS_REFUSE, check_apply, options_from_text

if TYPE_CHECKING:
    from decoding.evals.engine.configurations import Configuration
    from decoding.evals.engine.prepared import Prepared
    from decoding.evals.engine.results import Results

__all__ = ["TASKS", "multilingual_command"]

TASKS = ("open-ended", "translation", "summarization", "code")
DEFAULT_STRATEGIES = ("greedy", "beam", "top-k", "nucleus", "typical", "contrastive-search")


@dataclass(frozen=True)
class MultilingualOptions(EvaluationOptions):
    """The options of an evaluation, with other strategies by default."""

    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PARAMETER=VALUE,...",
            callback=known_strategies,
            autocompletion=complete_strategy,
            help=f"Repeatable; by default {', '.join(DEFAULT_STRATEGIES)}, the last with the paper's k and α.",
        ),
    ] = None


def _known_task(given: str) -> str:
    if given not in TASKS:
        raise OptionError(f"--task {given!r}{nearest(given, TASKS)}")
    return given


@expanded
def multilingual_command(
    *,
    data: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="A folder with a file per language, such as de.jsonl; de=FILE,fr=FILE; or one file."
        ),
    ],
    task: Annotated[
        str, typer.Option(metavar="NAME", callback=_known_task, help=f"One of {', '.join(TASKS)}.")
    ] = "open-ended",
    languages: Annotated[
        str | None, typer.Option(metavar="CODE,...", help=f"Of {' '.join(LANGUAGES)}; by default all that have data.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(metavar="CODE=NAME,...", help="A model for each of these languages; --model does the others."),
    ] = None,
    target: Annotated[str, typer.Option(metavar="CODE", help="Language to translate into.")] = "en",
    prefix_length: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Tokens of a text that are its prompt; by default the data's prefix, else 16."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="By default 64, for translations 128, for code 256.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Examples in the prompt; by default 1, or all of --examples.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Examples for the prompt; by default the first of the data, then left out."),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What repetition counts: whitespace, characters, a tokenizer; by default as the language needs.",
        ),
    ] = None,
    coherence_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_model,
            help="A model that measures the coherence of open-ended texts.",
        ),
    ] = None,
    mauve_model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_model,
            help="A model whose features MAUVE compares open-ended texts by.",
        ),
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run the programs that the model writes, in a sandbox.")
    ] = False,
    weak_isolation: Annotated[
        bool, typer.Option("--weak-isolation", help="Run them also where the kernel cannot isolate them.")
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="Programs per problem, of strategies that sample.")
    ] = 1,
    k: Annotated[str, typer.Option("--k", metavar="N,...", help="The k of pass@k.")] = "1",
    timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds that a program may run.")] = 5.0,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Prompts per batch, which a killed run loses.")
    ] = 8,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML file with samples side by side.")
    ] = None,
    generation_config: GenerationOptions = None,
    options: MultilingualOptions,
) -> None:
    """Generate in many languages with several strategies: continuations, translations, summaries, programs.

    Example: decoding eval multilingual --data wit/ --languages de,ar --output results --report report.html
    """
    if task == "code" and not allow_code_execution:
        raise OptionError("--task code runs what a model writes: say --allow-code-execution (docs/multilingual.md)")
    chosen = options_from_text(generation_config or (), EVALUATIONS_REFUSE)
    judges = {"--coherence-model": coherence_model, "--mauve-model": mauve_model}
    for option, name in judges.items():
        if name is not None and task != "open-ended":
            raise OptionError(f"{option}: expected with --task open-ended, which has texts without a right answer")

    from decoding.evals.engine.configurations import described
    from decoding.evals.engine.prepared import candidates_of_options, of_last_rank, prepared
    from decoding.evals.engine.samples import SampleFile
    from decoding.evals.metrics.distribution import require_mauve
    from decoding.evals.sandbox import Limits, isolation
    from decoding.evals.tasks.multilingual import data as data_
    from decoding.evals.tasks.multilingual.options import DEFAULTS, PYTHON, Options, read, task_of, with_defaults
    from decoding.evals.tasks.multilingual.report import Section, html_report, overview, plot, show_table
    from decoding.models import loading

    if mauve_model is not None:
        require_mauve()
    if report is not None:
        writable(report.parent)
    codes = None if languages is None else codes_of("--languages", languages)
    if task == "code":
        sources = {PYTHON.code: data_.Source(Path(data))}
    else:
        sources = data_.sources(data, codes, language(target).code if task == "translation" else None)
    by_language = _models(options.model, models, sources)
    language_of = {code: PYTHON if task == "code" else language(code) for code in sources}
    # Before anything is loaded; a program is asked for in the guidance's own default language.
    candidates = {
        code: [
            (given, specs if task == "code" else [spec.in_language(code) for spec in specs])
            for given, specs in candidates_of_options(
                options, DEFAULT_STRATEGIES, functools.partial(with_defaults, task=task, spoken=language_of[code])
            )
        ]
        for code in sources
    }
    for of_language in candidates.values():
        check_apply(chosen, [spec for _, specs in of_language for spec in specs])
    means = isolation(weak=weak_isolation) if task == "code" else None
    task_options = Options(
        task=task,
        target=target,
        prefix_length=prefix_length,
        max_new_tokens=max_new_tokens or DEFAULTS[task].max_new_tokens,
        shots=shots,
        examples=examples,
        units=units,
        judge=None,
        featurizer=None,
        samples=samples,
        k=list(whole_numbers_of("--k", k, "whole numbers with commas between")),
        limits=Limits(seconds=timeout),
        weak=weak_isolation,
        batch_size=batch_size,
        skip_bad=options.skip_bad,
    )
    documents = {code: read(task_options, source, language_of[code]) for code, source in sources.items()}
    judge, featurizer = (
        None if name is None else (name, *loading.load(name, options.placement.device, options.placement.dtype))
        for name in judges.values()
    )
    task_options = replace(task_options, judge=judge, featurizer=featurizer)
    extra = {"isolation": vars(means)} if means is not None else {}
    for entry, other in (("coherence_model", judge), ("mauve_model", featurizer)):
        if other is not None:
            extra[entry] = described(other[1], other[0], other[2])
    results: list[Results | None] = []
    asked: list[tuple[str, Sequence[Configuration]]] = []
    ready: Prepared | None = None
    with _folder(options.output, options.placement.tp_plan) as folder:
        for code in sources:
            if ready is None or ready.options.model != by_language[code]:
                ready = None  # before the next model takes its memory
                ready = prepared(
                    replace(options, model=by_language[code], output=folder), candidates[code], generates=True
                )
            ready = replace(ready, candidates=candidates[code], runs=asked)
            evaluation = task_of(
                task_options, documents[code], language_of[code], ready.model, ready.tokenizer, ready.texts
            )
            settings = {**evaluation.settings, "language": code}
            results.append(ready.run(evaluation, ready.configurations(settings, generation_config=chosen), extra))
            del evaluation  # which holds the model
        whole = of_last_rank(results, asked, folder, limit=options.limit, seed=options.seed)
        if whole is None:
            return  # another rank ends last, and shows the whole
        sections = []
        for code, result, (name, _) in zip(sources, whole, asked, strict=True):
            with SampleFile(folder, name, wait=True) as kept:
                sections.append(Section(language_of[code], result, list(kept.known.values())))
    shown = overview(task, sections)
    write_files(options.output, {f"multilingual_{task}.json": as_json(shown, indent=2) + "\n"})
    drawing = plot(task, sections)
    if drawing is not None:
        write_files(options.output, {f"multilingual_{task}.svg": drawing})
    if report is not None:
        write_files(report.parent, {report.name: html_report(task, sections, drawing)})
    if options.json:
        print(as_json(shown, indent=2))
        return
    show_table(console(), task, sections)


def _models(model: str, models: str | None, languages: Mapping[str, Any]) -> dict[str, str]:
    """Return the model of each language."""
    by_language = dict.fromkeys(languages, model)
    for pair in (models or "").split(",") if models else ():
        code, equals, name = pair.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"--models {pair!r}: expected CODE=NAME,CODE=NAME")
        if code.strip() not in by_language:
            raise OptionError(f"--models {code.strip()}: is no language of the data{nearest(code, by_language)}")
        by_language[code.strip()] = name.strip()
    return by_language


@contextlib.contextmanager
def _folder(output: Path | None, tp_plan: str | None) -> Iterator[Path]:
    """Open the folder of the samples: that of the results, or one that lasts until the report has been written."""
    if output is not None:
        yield output
        return
    from decoding.evals.engine.task import Shard

    if Shard.of_environment().world > 1 and not tp_plan:
        raise OptionError("several processes share the documents: they need --output DIR to meet in")
    with tempfile.TemporaryDirectory(prefix="multilingual-") as folder:
        yield Path(folder)
