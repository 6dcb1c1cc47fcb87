"""The tables of docs/evidence.md, drawn from what is kept of each part. The text between them is written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decoding.evals.engine.results import corrected
from decoding.strategies.parameters_text import as_text
from decoding.strategies.registry import parse_strategy
from decoding.tools.evidence.parts import PARTS, Column, Part
from decoding.tools.evidence.running import runs_of

__all__ = ["draw"]

PLACE = re.compile(r"(<!-- part: (?P<part>[a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def draw(page: str, results: Path) -> str:
    """Return the page with the tables of the parts that ran.

    Args:
        page: Markdown. Between ``<!-- part: NAME -->`` and ``<!-- end -->`` stands what is drawn.
        results: folder of ``<part>.json``.
    """

    def drawn(match: re.Match[str]) -> str:
        name = match["part"]
        part = PARTS[name]
        runs = runs_of(part, results / f"{name}.json")
        if not runs:
            return f"{match[1]}\nNot run yet: `make evidence PART={name}`.\n\n{match[3]}"
        lines = isotropy_table(runs) if name == "isotropy" else table(part, runs)
        return "\n".join([match[1], *lines, "", *_origin(name, runs), match[3]])

    return PLACE.sub(drawn, page)


def table(part: Part, runs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a part's table: a row for each language and strategy, with intervals and stars.

    Args:
        part: the part.
        runs: what is kept of it; see :func:`decoding.tools.evidence.running.runs_of`.
    """
    results = [(step, found) for step in part.steps if step.command in runs for found in runs[step.command]["results"]]
    names = [column.metric for column in part.columns]
    first = results[0][1]["configurations"][0]["metrics"]
    columns = [column for column in part.columns if column.metric in first]
    languages = {step.language for step in part.steps}, {found["language"] for _, found in results}
    by_language = max(map(len, languages)) > 1
    yield _row(["language"] * by_language + ["strategy", *(column.heading for column in columns)])
    yield _row(["---"] * by_language + ["---", *(["---:"] * len(columns))])
    every = [comparison for _, found in results for comparison in found["comparisons"]]
    tested = iter(corrected({"comparisons": every}, names)["comparisons"])  # for all comparisons of the table
    shown = None
    for step, found in results:
        stars: list[Mapping[str, Any]] = [{}, *(next(tested)["metrics"] for _ in found["comparisons"])]
        begins = found["language"] != shown
        shown = found["language"]
        for index, (row, entry) in enumerate(zip(step.rows, found["configurations"], strict=True)):
            if index == 0 and not begins:  # the command before has it too
                continue
            figures, tests = entry["metrics"], stars[index]
            cells = [_cell(column, figures[column.metric], tests.get(column.metric)) for column in columns]
            language = [shown if index == 0 else ""] if by_language else []
            yield _row([*language, row + _chosen(found, index), *cells])


def isotropy_table(runs: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the table of the last layer's isotropy: a row for each language, a column for each model."""
    (run,) = runs.values()
    by_model: dict[str, dict[str, Mapping[str, float]]] = {}
    for result in run["results"][0]["results"]:
        by_model.setdefault(result["model"], {})[result["data"]] = result["isotropy"]
    models = list(by_model)
    yield _row(["language", *models, "published"])
    yield _row(["---", *["---:"] * len(models), "---:"])
    column = Column("isotropy", "isotropy", digits=2)
    for language in by_model[models[0]]:
        cells = [_cell(column, by_model[name][language], None) for name in models]
        yield _row([language, *cells, PUBLISHED.get(language, "")])


# Su and Collier, "Contrastive Search Is What You Need For Neural Text Generation" (2210.14140): one model a language.
PUBLISHED = {
    "es": ".77", "fr": ".76", "pt": ".77", "th": ".74", "ja": ".72", "ko": ".58", "zh": ".66", "id": ".66", "bn": ".62",
    "hi": ".62", "ar": ".53", "de": ".83", "nl": ".80", "ru": ".67", "it": ".69",
}  # fmt: skip


def _origin(name: str, runs: Mapping[str, Any]) -> Iterator[str]:
    """Yield what stands under a table: how it is made again, and on what it was made."""
    first = next(iter(runs.values()))["results"][0]
    counts = {found["counts"]["evaluated"] for run in runs.values() for found in run["results"] if "counts" in found}
    tuning = first.get("tuning")
    documents = f"{' to '.join(map(str, sorted({min(counts), max(counts)})))} documents" if counts else ""
    if len(counts) > 1:
        documents += " a language"
    if tuning:
        documents += f", values chosen on {tuning['evaluated']} others by {', then '.join(tuning['by'])}"
    versions = ", ".join(
        f"{package} {_listed(found['versions'][package] for run in runs.values() for found in run['results'])}"
        for package in ("transformers", "torch")
    )
    processors = _listed(run["cpu"] for run in runs.values())
    notes = [f"`make evidence PART={name}`", documents, versions, processors, f"[all figures](evidence/{name}.json)"]
    yield "; ".join(filter(None, notes)) + "."
    steps = len(PARTS[name].steps)
    if len(runs) < steps:
        yield f"{len(runs)} of its {steps} commands have been run; the same command goes on."
    changed = _changed(runs)
    if changed:
        yield f"Its commands read different weights of {_listed(changed)}; with `ANEW=1` all are run with the same."
    yield ""


def _listed(values: Iterable[str]) -> str:
    """Each value once, in order."""
    return " and ".join(dict.fromkeys(values))


def _changed(runs: Mapping[str, Any]) -> list[str]:
    """The models and adapters, by name, whose weights are not the same in all of a part's results that tell them."""
    weights: dict[str, list[Any]] = {}
    for found in (found for run in runs.values() for found in run["results"]):
        if "name" in found.get("model", ()):
            weights.setdefault(found["model"]["name"], []).append(found["model"])
        for entry in found.get("configurations", ()):
            for reader, identity in entry.get("others", {}).items():
                name = Path(str(entry["parameters"].get(reader, reader))).name
                weights.setdefault(name, []).append(identity)
    return [f"`{name}`" for name, found in weights.items() if any(other != found[0] for other in found)]


def _chosen(results: Mapping[str, Any], index: int) -> str:
    """The values that were chosen for a strategy, in brackets."""
    if "tuning" not in results:
        return ""
    strategy = results["tuning"]["strategies"][index]
    if len(strategy["tried"]) == 1:
        return ""
    tried = [parse_strategy(entry["strategy"]).parameters for entry in strategy["tried"]]
    chosen = parse_strategy(strategy["chosen"]).parameters
    varied = [name for name in chosen if any(parameters.get(name) != chosen[name] for parameters in tried)]
    return f" ({', '.join(f'{name} {as_text(chosen[name])}' for name in varied)})"


def _cell(column: Column, figure: Mapping[str, Any], difference: Mapping[str, Any] | None) -> str:
    shown = f"{column.scale * figure['value']:.{column.digits}f}"
    if figure["low"] is not None:
        ends = (f"{column.scale * figure[end]:.{column.digits}f}" for end in ("low", "high"))
        shown += f" ({'-'.join(ends)})" if figure["low"] >= 0 else f" ({' to '.join(ends)})"
    p = 1.0 if difference is None else difference["p_holm"]
    return shown + (r" \*\*" if p < 0.01 else r" \*" if p < 0.05 else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
