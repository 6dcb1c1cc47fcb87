"""``decoding isotropy``: whether a model's hidden states suit contrastive search."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, replace
from typing import Annotated

import typer

from decoding.cli.options import Json, Output, ParallelPlacement, complete_model, expanded, whole_numbers_of
from decoding.cli.output import as_json, console, progress, writable, write_files
from decoding.errors import DecodingWarning, OptionError
from decoding.evals.isotropy.settings import PAPER, Settings

__all__ = ["isotropy_command"]

DEFAULT = Settings()


@expanded
def isotropy_command(
    *,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_model,
            help="A built-in or fetched model, a model folder, a .gguf file, or a name on the hub; repeatable; by "
            "default expert.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Texts, one a line, or a table; repeatable, or de=FILE,fr=FILE; by default the built-in stories.",
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of a table that holds the text; by default text.")
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="all|last|N,N", help="0 is the embeddings, -1 the last layer, which the head reads.")
    ] = "all",
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's measure: last layer, first 2000 texts, 256 tokens of each.")
    ] = False,
    max_length: Annotated[
        int, typer.Option(min=2, metavar="N", help="Tokens of a text; longer ones are cut.")
    ] = DEFAULT.max_length,
    max_texts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N texts of a file; by default all.")
    ] = None,
    skip_bos: Annotated[
        bool, typer.Option("--skip-bos", help="Leave out the first token of every text, the attention sink.")
    ] = False,
    skip_special: Annotated[bool, typer.Option("--skip-special", help="Leave out all special tokens.")] = False,
    sample_tokens: Annotated[
        int, typer.Option(min=2, metavar="N", help="Size of the sample for the measures that need one.")
    ] = DEFAULT.sample_tokens,
    zeta: Annotated[
        float, typer.Option(min=0, max=1, metavar="X", help="ζ of IsoScore*, the weight of the larger sample.")
    ] = DEFAULT.zeta,
    batch_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a forward pass.")
    ] = DEFAULT.batch_tokens,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Seed of the sample and of the bootstrap.")
    ] = DEFAULT.seed,
    placement: ParallelPlacement,
    json: Json = False,
    output: Output = None,
) -> None:
    """Measure how isotropic a model's hidden states are, and say whether contrastive search can work with them.

    With --output, a results file and a report to open in a browser.

    Example: decoding isotropy --model expert --model amateur --data stories --output isotropy
    """
    began = time.time()
    settings = Settings(
        layers=_layers(layers), max_length=max_length, max_texts=max_texts, batch_tokens=batch_tokens,
        skip_bos=skip_bos, skip_special=skip_special, sample_tokens=sample_tokens, zeta=zeta, seed=seed,
    )  # fmt: skip
    if paper:
        settings = _paper(settings)
    names = list(model or ["expert"])
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise OptionError(f"--model {twice}: given twice; expected models that differ")

    from decoding.evals.engine.pages import can_plot
    from decoding.evals.engine.results import write_results
    from decoding.evals.isotropy.analysis import analyse_each
    from decoding.evals.isotropy.plots import MISSING
    from decoding.evals.isotropy.report import html_report
    from decoding.evals.isotropy.results import Isotropy
    from decoding.evals.isotropy.tables import record, show
    from decoding.evals.isotropy.texts import data_sets
    from decoding.models.devices import is_main_process

    sets = data_sets(data or ["stories"], field)
    writable(output)
    if output is not None and not can_plot():
        warnings.warn(f"no report will be written: {MISSING}", DecodingWarning, stacklevel=1)
    results: list[Isotropy] = []
    with progress() as bar:
        total = sum(min(count, max_texts or count) for _, count in sets.values())
        for name in names:
            loaded, tokenizer = placement.load(name)
            main = is_main_process(loaded)
            task = bar.add_task(f"reading with {name}", total=total, visible=main)
            results += analyse_each(
                loaded, tokenizer, {data_name: texts for data_name, (texts, _) in sets.items()}, settings, name=name,
                report=lambda done, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            del loaded  # before the next one is loaded
    if not main:
        return
    written = write_results(record(results, paper), output, began)
    if output is not None and can_plot():
        write_files(output, {"isotropy.html": html_report(results)})
    if json:
        print(as_json(written, indent=1))
        return
    out = console()
    show(out, results)
    if output is not None:
        out.print(f"\nwritten: {output}", markup=False, soft_wrap=True)


def _layers(given: str) -> tuple[int, ...] | None:
    if given == "all":
        return None
    if given == "last":
        return (-1,)
    return whole_numbers_of("--layers", given, "all, last, or numbers such as 0,4,-1")


def _paper(settings: Settings) -> Settings:
    """Return the paper's settings, with those of ``settings`` that its measure does not depend on."""
    free = {name: getattr(settings, name) for name in ("batch_tokens", "sample_tokens", "zeta", "seed")}
    chosen = replace(PAPER, **free)
    for name, default in asdict(DEFAULT).items():
        given = getattr(settings, name)
        if given not in (default, getattr(chosen, name)):
            raise OptionError(f"--paper fixes {name.replace('_', '-')}: leave out --{name.replace('_', '-')}")
    return chosen
