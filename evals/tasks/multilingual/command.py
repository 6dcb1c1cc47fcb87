"""``decoding eval multilingual``: strategies side by side on generation tasks, language by language."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from decoding.cli.options import Device, DeviceMap, Dtype, Json, Model, PrefillChunk, TpPlan
from decoding.cli.output import as_json, console, writable, write_files
from decoding.errors import OptionError, nearest
from decoding.evals.engine.configurations import Configuration, configured, described
from decoding.evals.engine.options import Limit, Output, Prepared, Seed, SkipBad, of_last_rank, prepared
from decoding.evals.engine.results import Results
from decoding.evals.engine.runner import run
from decoding.evals.engine.samples import SampleFile
from decoding.evals.engine.task import Shard
from decoding.evals.metrics.distribution import require_mauve
from decoding.evals.sandbox import Limits, isolation
from decoding.evals.tasks.multilingual import data as data_
from decoding.evals.tasks.multilingual.languages import LANGUAGES, language
from decoding.evals.tasks.multilingual.options import DEFAULTS, PYTHON, Options, read, task_of, with_defaults
from decoding.evals.tasks.multilingual.report import Section, html_report, overview, plot, show_table
from decoding.evals.tasks.multilingual.tasks import TASKS
from decoding.models.loading import load
from decoding.strategies.registry import parse_strategy

__all__ = ["multilingual_command"]

DEFAULT_STRATEGIES = ("greedy", "beam", "top-k", "nucleus", "typical", "contrastive-search")


def multilingual_command(
    data: Annotated[
        str,
        typer.Option(metavar="PATH", help="A folder with a file a language (de.jsonl), de=FILE,fr=FILE, or one file."),
    ],
    task: Annotated[str, typer.Option(metavar="NAME", help=f"One of {', '.join(TASKS)}.")] = "open-ended",
    languages: Annotated[
        str | None, typer.Option(metavar="CODE,...", help=f"Of {' '.join(LANGUAGES)}; by default all that have data.")
    ] = None,
    model: Model = "expert",
    models: Annotated[
        str | None,
        typer.Option(metavar="CODE=NAME,...", help="A model for each of these languages; --model does the others."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:PARAMETER=VALUE,...",
            help=f"Repeatable; by default {', '.join(DEFAULT_STRATEGIES)}, the last with the paper's k and α.",
        ),
    ] = None,
    target: Annotated[str, typer.Option(metavar="CODE", help="Language to translate into.")] = "en",
    prefix_length: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of a text to read; by default the data's prefix, or else 16."),
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
        str | None, typer.Option(metavar="NAME", help="A model that says how coherent open-ended texts are.")
    ] = None,
    mauve_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="A model through which MAUVE looks at open-ended texts.")
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Run the programs that the model writes, in a sandbox.")
    ] = False,
    weak_isolation: Annotated[
        bool, typer.Option("--weak-isolation", help="Run them also where the kernel cannot isolate them.")
    ] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Programs a problem, of strategies that draw.")] = 1,
    k: Annotated[str, typer.Option("--k", metavar="N,...", help="Of pass@k.")] = "1",
    timeout: Annotated[float, typer.Option(min=0.1, metavar="S", help="Seconds that a program has.")] = 5.0,
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Prompts read together where nothing is drawn.")
    ] = 8,
    limit: Limit = None,
    seed: Seed = 0,
    skip_bad: SkipBad = False,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    prefill_chunk: PrefillChunk = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write an HTML file with samples side by side.")
    ] = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """Generate in many languages with several strategies: continuations, translations, summaries, programs.

    Example: decoding eval multilingual --data wit/ --languages de,ar --output results --report report.html
    """
    if task not in TASKS:
        raise OptionError(f"--task {task!r}{nearest(task, TASKS)}")
    if task == "code" and not allow_code_execution:
        raise OptionError("--task code runs what a model writes: say --allow-code-execution (docs/multilingual.md)")
    judges = {"--coherence-model": coherence_model, "--mauve-model": mauve_model}
    for option, name in judges.items():
        if name is not None and task != "open-ended":
            raise OptionError(f"{option}: accepted with --task open-ended, which has texts without a right answer")
    if mauve_model is not None:
        require_mauve()
    if report is not None:
        writable(report.parent)
    codes = None if languages is None else [code.strip() for code in languages.split(",")]
    if task == "code":
        found = {PYTHON.code: data_.Source(Path(data))}
    else:
        found = data_.sources(data, codes, language(target).code if task == "translation" else None)
    by_language = _models(model, models, found)
    spoken = {code: PYTHON if task == "code" else language(code) for code in found}
    given = strategy or DEFAULT_STRATEGIES
    specs = {code: [with_defaults(spec, task, each) for spec in given] for code, each in spoken.items()}
    for spec in itertools.chain(*specs.values()):
        parse_strategy(spec)  # before anything is loaded
    means = isolation(weak=weak_isolation) if task == "code" else None
    options = Options(
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
        k=_numbers(k),
        limits=Limits(seconds=timeout),
        weak=weak_isolation,
        batch_size=batch_size,
        skip_bad=skip_bad,
    )
    documents = {code: read(options, source, spoken[code]) for code, source in found.items()}
    judge, featurizer = ((name, *load(name, device, dtype)) if name is not None else None for name in judges.values())
    options = replace(options, judge=judge, featurizer=featurizer)
    extra = {"isolation": vars(means)} if means is not None else {}
    if featurizer is not None:
        extra["mauve_model"] = described(featurizer[1], featurizer[0])
    ended: list[Results | None] = []
    asked: list[tuple[str, list[Configuration]]] = []
    ready: Prepared | None = None
    with _folder(output, tp_plan) as folder:
        for code in found:
            if ready is None or ready.name != by_language[code]:
                ready = None  # before the next model takes its memory
                ready = prepared(
                    by_language[code],
                    specs[code],
                    device,
                    dtype,
                    folder,
                    device_map=device_map,
                    tp_plan=tp_plan,
                    prefill_chunk=prefill_chunk,
                )
            made = task_of(options, documents[code], spoken[code], ready.model, ready.tokenizer)
            choices, about = [parse_strategy(spec) for spec in specs[code]], {**made.settings, "language": code}
            configurations = configured(choices, ready.model, ready.tokenizer, ready.name, task=about, seed=seed)
            asked.append((made.name, configurations))
            ended.append(
                run(made, configurations, output=folder, limit=limit, seed=seed, skip_bad=skip_bad, extra=extra)
            )
            del made  # which holds the model
        whole = of_last_rank(ended, asked, folder, limit=limit, seed=seed)
        if whole is None:
            return  # another rank ends last, and shows the whole
        sections = []
        for code, results, (name, _) in zip(found, whole, asked, strict=True):
            with SampleFile(folder, name, wait=True) as kept:
                sections.append(Section(spoken[code], results, list(kept.known.values())))
    shown = overview(task, sections)
    write_files(output, {f"multilingual_{task}.json": as_json(shown, indent=2) + "\n"})
    drawing = plot(task, sections)
    if drawing is not None:
        write_files(output, {f"multilingual_{task}.svg": drawing})
    if report is not None:
        write_files(report.parent, {report.name: html_report(task, sections, drawing)})
    if json:
        print(as_json(shown, indent=2))
        return
    show_table(console(), task, sections)


def _models(model: str, models: str | None, languages: Mapping[str, Any]) -> dict[str, str]:
    """Which model each language has."""
    by_language = dict.fromkeys(languages, model)
    for pair in (models or "").split(",") if models else ():
        code, equals, name = pair.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"--models {pair!r}: accepted is CODE=NAME,CODE=NAME")
        if code.strip() not in by_language:
            raise OptionError(f"--models {code.strip()}: is no language of the data{nearest(code, by_language)}")
        by_language[code.strip()] = name.strip()
    return by_language


def _numbers(given: str) -> list[int]:
    try:
        return [int(each) for each in given.split(",")]
    except ValueError:
        raise OptionError(f"--k {given!r}: accepted are whole numbers with commas between") from None


@contextlib.contextmanager
def _folder(output: Path | None, tp_plan: str | None) -> Iterator[Path]:
    """Where samples are kept: for good, or until the report has been written."""
    if output is not None:
        yield output
        return
    if Shard.of_environment().world > 1 and not tp_plan:
        raise OptionError("several processes share the documents: they need --output DIR to meet in")
    with tempfile.TemporaryDirectory(prefix="multilingual-") as folder:
        yield Path(folder)
