"""``decoding isotropy``: whether a model's hidden states leave contrastive search room."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from decoding.cli.options import Device, DeviceMap, Dtype, Json, Output, Seed, TpPlan
from decoding.cli.output import as_json, console, progress, writable, write_files
from decoding.errors import DecodingWarning, OptionError
from decoding.evals.engine.pages import can_plot
from decoding.evals.engine.results import write_results
from decoding.evals.isotropy.analysis import analyse_each
from decoding.evals.isotropy.plots import MISSING
from decoding.evals.isotropy.report import html_report
from decoding.evals.isotropy.results import PAPER, Isotropy, Layer, Settings
from decoding.evals.isotropy.texts import data_sets
from decoding.evals.isotropy.verdict import verdict
from decoding.models.devices import is_main_process
from decoding.models.loading import load
from decoding.versions import versions

__all__ = ["isotropy_command", "record", "show"]

DEFAULT = Settings()


def isotropy_command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A built-in model, a model folder, or a name on the hub; repeatable; by default expert.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]FILE",
            help="Texts, one a line, or JSON lines; repeatable, or de=FILE,fr=FILE; by default the built-in stories.",
        ),
    ] = None,
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Field of JSON lines that holds the text; by default text.")
    ] = None,
    layers: Annotated[
        str, typer.Option(metavar="all|last|N,N", help="0 is the embeddings, -1 the last, which the head reads.")
    ] = "all",
    paper: Annotated[
        bool, typer.Option("--paper", help="The paper's measure: last layer, first 2000 texts, 256 tokens of each.")
    ] = False,
    max_length: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens read of a text.")] = DEFAULT.max_length,
    max_texts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Texts read of a file; by default all.")
    ] = None,
    skip_bos: Annotated[
        bool, typer.Option("--skip-bos", help="Leave out each text's first token, the attention sink.")
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
    seed: Seed = DEFAULT.seed,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """Measure how isotropic a model's hidden states are, and say whether that leaves contrastive search room.

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
        raise OptionError(f"--model {twice}: given twice; accepted are models that differ")
    sets = data_sets(data or ["stories"], field)
    writable(output)
    if output is not None and not can_plot():
        warnings.warn(f"no report will be written: {MISSING}", DecodingWarning, stacklevel=1)
    results: list[Isotropy] = []
    with progress() as bar:
        count = sum(min(count, max_texts or count) for _, count in sets.values())
        for name in names:
            loaded, tokenizer = load(name, device, dtype, device_map=device_map, tp_plan=tp_plan)
            first = is_main_process(loaded)
            task = bar.add_task(f"reading with {name}", total=count, visible=first)
            results += analyse_each(
                loaded, tokenizer, {each: texts for each, (texts, _) in sets.items()}, settings, name=name,
                report=lambda done, task=task: bar.update(task, completed=done),  # type: ignore[misc]
            )  # fmt: skip
            del loaded  # before the next one is loaded
    if not first:
        return
    made = write_results(record(results, paper), output, began)
    if output is not None and can_plot():
        write_files(output, {"isotropy.html": html_report(results)})
    if json:
        print(as_json(made, indent=1))
        return
    out = console()
    show(out, results)
    if output is not None:
        out.print(f"\nwritten: {output}", markup=False, soft_wrap=True)


def record(results: list[Isotropy], paper: bool = False) -> dict[str, Any]:
    """What the results file holds."""
    return {
        "task": "isotropy",
        "mode": "paper" if paper else "full",
        "versions": versions(),
        "results": [{**each.as_dict(), "verdict": asdict(verdict(each))} for each in results],
    }


def _layers(given: str) -> tuple[int, ...] | None:
    if given == "all":
        return None
    if given == "last":
        return (-1,)
    try:
        return tuple(int(each) for each in given.split(","))
    except ValueError:
        raise OptionError(f"--layers {given!r}: accepted are all, last, or numbers such as 0,4,-1") from None


def _paper(settings: Settings) -> Settings:
    """The paper's settings, with what does not touch its measure as given."""
    free = {name: getattr(settings, name) for name in ("batch_tokens", "sample_tokens", "zeta", "seed")}
    chosen = replace(PAPER, **free)
    for name, default in asdict(DEFAULT).items():
        given = getattr(settings, name)
        if given not in (default, getattr(chosen, name)):
            raise OptionError(f"--paper fixes {name.replace('_', '-')}: leave out --{name.replace('_', '-')}")
    return chosen


# --- showing ---------------------------------------------------------------------------------------------------------

COLUMNS = (
    "layer", "within\ntext", "within\ncentred", "across\ntexts", "Iso-\nScore", "Iso-\nScore*", "ln min/\nmax Z",
    "eff.\ndims", "1st\nPC %", "TwoNN", "top dim\n(share)",
)  # fmt: skip


def show(out: Console, results: list[Isotropy]) -> None:
    """A table a model and data set, the comparison where there are several, and the verdicts."""
    for result in results:
        _show_layers(out, result)
    if len(results) > 1:
        _show_comparison(out, results)


def _show_layers(out: Console, result: Isotropy) -> None:
    counts = result.counts
    out.print(Text(f"{result.model} on {result.data}", style="bold"), end="")
    out.print(
        f": {counts.texts} texts, {counts.tokens} tokens, {counts.skipped} skipped, {counts.cut} cut", markup=False
    )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for layer in result.layers:
        table.add_row(*_cells(layer))
    out.print(table)
    last = result.last
    if last is not None and last.isotropy is not None:
        value = last.isotropy
        out.print(f"isotropy of the last layer: {value.value:.3f} (95% interval {value.low:.3f} to {value.high:.3f})")
    out.print(Padding(Text(verdict(result).text), (0, 0, 1, 2)))


def _show_comparison(out: Console, results: list[Isotropy]) -> None:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for column in ("model", "data", "isotropy", "room", "α", "k", "certainty"):
        table.add_column(column, justify="right" if column in ("isotropy", "α", "k") else "left")
    for result in results:
        judged = verdict(result)
        isotropy = result.last.isotropy if result.last is not None else None
        figure = "-" if isotropy is None else f"{isotropy.value:.2f}"
        table.add_row(
            Text(result.model, overflow="fold"), Text(result.data), figure, judged.room, str(judged.penalty_alpha),
            str(judged.top_k), judged.certainty,
        )  # fmt: skip
    out.print(table)


def _cells(layer: Layer) -> list[str]:
    within, across, top = layer.within, layer.across, layer.rogue[0] if layer.rogue else None
    return [
        str(layer.layer),
        *(_number(each) for each in (within.raw, within.centred, across.raw, layer.isoscore, layer.isoscore_star)),
        f"{layer.log_partition_score:.1f}",
        f"{layer.participation_ratio:.1f}",
        f"{100 * layer.first_component:.1f}",
        "-" if layer.intrinsic_dimension is None else f"{layer.intrinsic_dimension.value:.1f}",
        "-" if top is None else f"{top.dimension} ({top.share:.0%})",
    ]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
