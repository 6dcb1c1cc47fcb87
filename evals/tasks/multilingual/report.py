"""Results of the generation tasks: a table, a plot, and an HTML file with samples side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from decoding.evals.engine.pages import COLOURS, as_svg, can_plot, figure_style, html_page
from decoding.evals.engine.results import Results
from decoding.evals.engine.samples import Sample
from decoding.evals.engine.statistics import CONFIDENCE
from decoding.evals.engine.tables import show_tuning
from decoding.evals.tasks.multilingual.languages import Language
from decoding.evals.tasks.multilingual.tasks import TASKS

__all__ = ["Section", "html_report", "overview", "plot", "show_table"]

SAMPLES_SHOWN = 5  # documents a language


@dataclass(frozen=True)
class Section:
    """One language of a task.

    Attributes:
        language: of the texts.
        results: of its evaluation.
        samples: the whole content of its samples file.
    """

    language: Language
    results: Results
    samples: Sequence[Sample]

    @property
    def names(self) -> list[str]:
        """The strategies' names, with parameters where two have the same."""
        entries = self.results["configurations"]
        names = [entry["strategy"] for entry in entries]
        return [entry["label"] if names.count(entry["strategy"]) > 1 else entry["strategy"] for entry in entries]

    def documents(self) -> Iterator[list[Sample]]:
        """The first documents, each with the sample of every strategy."""
        hashes = [entry["configuration"] for entry in self.results["configurations"]]
        by_key = {(sample["document"], sample["configuration"]): sample for sample in self.samples}
        for document in sorted({sample["document"] for sample in self.samples})[:SAMPLES_SHOWN]:
            row = [by_key[document, name] for name in hashes if (document, name) in by_key]
            if len(row) == len(hashes) and not any("skipped" in sample for sample in row):
                yield row


def columns(task: str, sections: Sequence[Section]) -> list[str]:
    """The figures of a task: its main ones, then all others."""
    names = list(sections[0].results["configurations"][0]["metrics"])
    return [name for name in TASKS[task] if name in names] + [name for name in names if name not in TASKS[task]]


def overview(task: str, sections: Sequence[Section]) -> dict[str, Any]:
    """All figures of a task in one JSON-able object."""
    return {
        "task": task,
        "languages": {
            section.language.code: {
                "model": section.results["model"],
                "counts": section.results["counts"],
                **({"tuning": section.results["tuning"]} if "tuning" in section.results else {}),
                "strategies": {entry["label"]: entry["metrics"] for entry in section.results["configurations"]},
            }
            for section in sections
        },
    }


def show_table(out: Console, task: str, sections: Sequence[Section]) -> None:
    """Print one row a language and strategy."""
    for section in sections:
        if "tuning" in section.results:
            out.print(Text(section.language.name, style="bold"))
            show_tuning(out, section.results["tuning"])
    names = columns(task, sections)
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("language")
    table.add_column("strategy", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for section in sections:
        for index, (strategy, entry) in enumerate(zip(section.names, section.results["configurations"], strict=True)):
            cells = [_figure(name, entry["metrics"][name]["value"]) for name in names]
            table.add_row(section.language.name if index == 0 else "", Text(strategy), *cells)
    out.print(table)
    skipped = sum(section.results["counts"]["skipped"] for section in sections)
    documents = sum(section.results["counts"]["evaluated"] for section in sections)
    out.print(
        _plural(documents, "document") + (f", {skipped} skipped" if skipped else ""), style="dim", highlight=False
    )


def plot(task: str, sections: Sequence[Section]) -> str | None:
    """The main figure of each language and strategy with its interval, as ``<svg>``; None without matplotlib."""
    if not can_plot():
        return None
    from matplotlib.figure import Figure

    main, scale = columns(task, sections)[0], _scale(columns(task, sections)[0])
    strategies = list(dict.fromkeys(name for section in sections for name in section.names))
    with figure_style():
        figure = Figure(figsize=(max(6.0, 1.5 + 0.16 * len(sections) * len(strategies)), 3.4))
        axes = figure.subplots()
        for index, strategy in enumerate(strategies):
            for place, section in enumerate(sections):
                if strategy not in section.names:
                    continue
                entry = section.results["configurations"][section.names.index(strategy)]["metrics"][main]
                x = place + (index - (len(strategies) - 1) / 2) * 0.8 / len(strategies)
                colour, value = COLOURS[index % len(COLOURS)], scale * entry["value"]
                label = strategy if place == 0 else None
                axes.plot([x], [value], "o", color=colour, markersize=4, label=label)
                if entry["low"] is not None:
                    axes.plot([x, x], [scale * entry["low"], scale * entry["high"]], color=colour, linewidth=1.5)
        axes.set_xticks(range(len(sections)), [section.language.name for section in sections], rotation=35, ha="right")
        axes.set_title(f"{main} ({CONFIDENCE:.0%} intervals)")
        axes.grid(axis="x", visible=False)
        axes.legend(fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return as_svg(figure)


# --- HTML ------------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fafaf8; color: #1d1f21; line-height: 1.6; overflow-wrap: anywhere;
  font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "Noto Sans Arabic", "Noto Sans Thai",
  "Noto Sans Devanagari", "Noto Sans Bengali", "DejaVu Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; } h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; }
h2 small { color: #50555a; font-weight: 400; } p { max-width: 46rem; margin: .4rem 0; } .lead { color: #50555a; }
nav a { margin-inline-end: .8rem; } figure { margin: 1rem 0; overflow-x: auto; } figure > svg { max-width: 100%; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .7rem; border-bottom: 1px solid #e3e3df; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; } td small { color: #50555a; }
.document { background: #fff; border: 1px solid #e3e3df; border-radius: 10px; margin: 1rem 0; padding: .8rem 1.1rem; }
.prompt, .text { max-width: none; }
.prompt { font-weight: 600; margin: 0 0 .6rem; white-space: pre-wrap; max-height: 14em; overflow-y: auto; }
.texts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(260px, 100%), 1fr)); gap: .8rem;
  align-items: start; }
.texts > div { border-inline-start: 3px solid #d8d8d2; padding-inline-start: .7rem; min-width: 0; }
.texts h3 { font-size: .8rem; font-weight: 600; color: #50555a; margin: 0 0 .2rem; }
.text { white-space: pre-wrap; margin: 0; } .code .text, .code .prompt { font-family: monospace; font-size: .82rem;
  line-height: 1.4; overflow-x: auto; overflow-wrap: normal; white-space: pre; } .none { color: #8a8f94; }
.texts > .reference { border-color: #009e73; } .reference .text { max-height: 16em; overflow-y: auto; }
"""


def html_report(task: str, sections: Sequence[Section], drawing: str | None) -> str:
    """The report of a task, as one HTML file that loads and runs nothing.

    Args:
        task: its name.
        sections: its languages.
        drawing: the plot, as ``<svg>``.
    """
    links = "".join(f'<a href="#{section.language.code}">{escape(section.language.name)}</a>' for section in sections)
    models = sorted({str(section.results["model"].get("name")) for section in sections})
    body = [
        f"<h1>{escape(task)}</h1>",
        f'<p class="lead">Strategies side by side on the same prompts. {_plural(len(sections), "language")}, '
        f"{_plural(sum(section.results['counts']['evaluated'] for section in sections), 'document')}; "
        f"{'models' if len(models) > 1 else 'model'}: {escape(', '.join(models))}.</p>",
        f"<nav>{links}</nav>" if len(sections) > 1 else "",
        f"<figure>{drawing}</figure>" if drawing is not None else "",
        *(part for section in sections for part in _section(task, section)),
    ]
    return html_page(escape(task), STYLE, body)


def _section(task: str, section: Section) -> Iterator[str]:
    spoken = section.language
    native = (
        "" if spoken.own_name == spoken.name else f' <small lang="{spoken.code}" dir="auto">{spoken.own_name}</small>'
    )
    yield f'<h2 id="{spoken.code}">{escape(spoken.name)}{native}</h2>'
    yield _table(task, section)
    # A translation is in another language than its source; code is in none.
    source = "" if task == "code" else f' lang="{spoken.code}"'
    code = section.results["task_settings"].get("to")
    target = source if code is None else f' lang="{escape(code)}"'
    for row in section.documents():
        cards = [
            _card(name, sample["text"], target, _outcome(sample))
            for name, sample in zip(section.names, row, strict=True)
        ]
        if row[0]["reference"].strip():
            cards.append(_card("reference", row[0]["reference"], target, "", "reference"))
        kind = " code" if task == "code" else ""
        yield (
            f'<div class="document{kind}"><p class="prompt"{source} dir="auto">{escape(row[0]["prefix"])}</p>'
            f'<div class="texts">{"".join(cards)}</div></div>'
        )


def _card(name: str, text: str, attributes: str, note: str, kind: str = "") -> str:
    shown = escape(text.strip("\n")) if text.strip() else '<span class="none">(nothing)</span>'
    classes = f' class="{kind}"' if kind else ""
    return f'<div{classes}><h3>{escape(name)}{note}</h3><p class="text"{attributes} dir="auto">{shown}</p></div>'


def _outcome(sample: Sample) -> str:
    return f" · {escape(sample['outcomes'][0])}" if "outcomes" in sample else ""


def _table(task: str, section: Section) -> str:
    names = columns(task, [section])
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for entry in section.results["configurations"]:
        cells = []
        for name in names:
            figure = entry["metrics"][name]
            interval = ""
            if figure["low"] is not None:
                interval = f"<br><small>{_figure(name, figure['low'])} to {_figure(name, figure['high'])}</small>"
            cells.append(f"<td>{_figure(name, figure['value'])}{interval}</td>")
        rows.append(f"<tr><td>{escape(entry['label'])}</td>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><tr><th>strategy</th>{head}</tr>{"".join(rows)}</table></div>'


def _figure(name: str, value: float) -> str:
    return f"{_scale(name) * value:.2f}"


def _scale(name: str) -> int:
    return 100 if name.startswith("pass@") else 1  # kept as shares, for McNemar's test


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
