"""The report: one HTML file without any others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

from decoding.evals.engine.pages import as_svg, html_page
from decoding.evals.isotropy import plots
from decoding.evals.isotropy.heat_map import colour_scale, heat_map_svg
from decoding.evals.isotropy.results import Interval, Isotropy, Layer
from decoding.evals.isotropy.verdicts import published, verdict
from decoding.versions import versions

__all__ = ["html_report"]

STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fafaf8; color: #1d1f21; line-height: 1.5; overflow-wrap: anywhere;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.8rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .4rem; } p { max-width: 46rem; margin: .4rem 0; } .lead { color: #50555a; }
.card, figure { background: #fff; border: 1px solid #e3e3df; border-radius: 10px; margin: .8rem 0;
  padding: 1rem 1.25rem; }
.headroom { display: inline-block; border-radius: 99px; padding: .05rem .7rem; font-size: .85rem; margin-left: .5rem; }
.ample { background: #d9f0df; } .some { background: #fbf0d0; } .little { background: #f6d5d0; }
.unknown { background: #e8e8e8; }
figure > svg { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption { color: #50555a; font-size: .9rem; margin-top: .7rem; max-width: 52rem; }
.maps, .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr)); gap: .8rem; }
.maps figure, .cards .card { margin: 0; } .scale { width: 260px; }
.heat text, .scale text { font-size: 11px; }
.text { color: #333; font-size: .9rem; max-height: 4.6em; overflow: hidden; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .28rem .7rem; border-bottom: 1px solid #ececE8; white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; white-space: normal; overflow-wrap: normal; } .name { text-align: left; }
details { margin: .6rem 0; } summary { cursor: pointer; }
"""

COMPARISON = (
    "The longer the bar, the more the states of a text's tokens differ. Green: models like these work with contrastive "
    "search without training. Red: the two published models that do not. Whiskers are 95% intervals over texts; dotted "
    "lines are published values."
)
LAYERS = (
    "A mean cosine near 1 means that all states point the same way. Centring subtracts the mean state, standardising "
    "gives all dimensions the same variance: the similarity that then remains is due to no offset and no single "
    "dimension. IsoScore is 1 where all directions are used equally and 0 where only one is; effective dimensions "
    "count how many share the variance; the intrinsic dimension is the number of dimensions of a point's neighbourhood."
)
SPECTRUM = (
    "The share of the variance in each direction, the largest first. A flat line is isotropic; a steep one means that "
    "few directions have nearly all of the variance."
)
ROGUE = (
    "The largest contributions of single dimensions to the mean cosine between tokens of different texts; the number "
    "in a bar is the dimension. One long bar means that a single dimension makes states similar."
)


def html_report(results: Sequence[Isotropy]) -> str:
    """The report of one or more analyses, as HTML.

    Raises:
        OptionError: matplotlib is not installed.
    """
    body = [
        "<h1>Isotropy of hidden states</h1>",
        '<p class="lead">Contrastive search prefers, among likely tokens, the one least like everything before it in '
        "the model's last layer. That works only where the states of different tokens differ. This report says how far "
        "they do.</p>",
        "<h2>Verdict</h2>",
        *_verdicts(results),
        *_figures(results),
        "<h2>All figures</h2>",
        *(_table(result) for result in results),
        "<h2>How it was measured</h2>",
        _method(results),
    ]
    title = escape(", ".join(dict.fromkeys(result.model for result in results)))
    return html_page(f"Isotropy: {title}", STYLE, body)


def _verdicts(results: Sequence[Isotropy]) -> list[str]:
    cards = f'<div class="cards">{"".join(_card(result) for result in results)}</div>'
    if len(results) == 1:
        return [cards]
    opened = " open" if len(results) <= 4 else ""
    return [_overview(results), f"<details{opened}><summary>In words</summary>{cards}</details>"]


def _figures(results: Sequence[Isotropy]) -> list[str]:
    last = [result for result in results if result.last is not None and result.last.isotropy is not None]
    figures = []
    if last:
        figures.append(_figure("Isotropy of the last layer", plots.plot_comparison(last), COMPARISON))
    if any(len(result.layers) > 1 for result in results):
        figures.append(_figure("Layer by layer", plots.plot_layers(results), LAYERS))
    return [
        *figures,
        *_heat_maps(results),
        _figure("Spectrum of the last layer read", plots.plot_spectrum(results), SPECTRUM),
        _figure("Rogue dimensions of the last layer read", plots.plot_rogue(results), ROGUE),
    ]


def _name(result: Isotropy) -> str:
    return f"{escape(result.model)} on <bdi>{escape(result.data)}</bdi>"


def _overview(results: Sequence[Isotropy]) -> str:
    rows = []
    for result in results:
        judged = verdict(result)
        isotropy = None if result.last is None else result.last.isotropy
        names = (result.model, f"<bdi>{escape(result.data)}</bdi>")
        rows.append(
            f'<tr><td class="name">{escape(names[0])}</td><td class="name">{names[1]}</td>'
            f"<td>{_interval(isotropy, 2)}</td>"
            f'<td class="name"><span class="headroom {judged.headroom}">{judged.headroom}</span></td>'
            f'<td>{judged.penalty_alpha}</td><td>{judged.top_k}</td><td class="name">{judged.certainty}</td></tr>'
        )
    return (
        '<div class="card wide"><table><thead><tr><th class="name">model</th><th class="name">data</th>'
        '<th>isotropy (95%)</th><th class="name">headroom</th><th>α</th><th>k</th><th class="name">certainty</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _card(result: Isotropy) -> str:
    judged, counts = verdict(result), result.counts
    known = published(result.model)
    lines = [
        f'<h3>{_name(result)}<span class="headroom {judged.headroom}">{judged.headroom} headroom</span></h3>',
        f"<p>{escape(judged.text)}</p>",
        f'<p class="lead">{counts.texts:,} texts, {counts.tokens:,} tokens'
        + (f"; published for a model of this name: {known:.2f}" if known is not None else "")
        + "</p>",
    ]
    return f'<section class="card">{"".join(lines)}</section>'


def _figure(title: str, figure: Any, caption: str) -> str:
    return f"<h2>{title}</h2>\n<figure>{as_svg(figure)}\n<figcaption>{caption}</figcaption></figure>"


def _heat_maps(results: Sequence[Isotropy]) -> list[str]:
    shown = [(result, result.heat_map) for result in results if result.heat_map is not None]
    if not shown:
        return []
    maps = [
        f"<figure><h3>{_name(result)}, layer {heat_map.layer}</h3>"
        f'<p class="text" dir="auto">{escape(heat_map.text)}</p>{heat_map_svg(heat_map)}</figure>'
        for result, heat_map in shown
    ]
    return [
        "<h2>Cosines between the tokens of one text</h2>",
        "<p>Dark is similar. A pale map with a dark diagonal leaves contrastive search headroom; an all-dark one "
        "leaves none. Point at a cell for its cosine. A character of several byte tokens is shown at the first; the "
        "others have a dot.</p>",
        colour_scale(),
        f'<div class="maps">{"".join(maps)}</div>',
    ]


HEADER = (
    "layer", "isotropy", "within: raw", "centred", "standardised", "across: raw", "centred", "standardised", "IsoScore",
    "IsoScore*", "partition score", "effective dimensions", "first component", "intrinsic dimension", "mean length",
    "rogue dimensions",
)  # fmt: skip


def _table(result: Isotropy) -> str:
    header = "".join(f"<th>{name}</th>" for name in HEADER)
    rows = "".join(f"<tr>{_row(layer)}</tr>" for layer in result.layers)
    return (
        f'<details{" open" if len(result.layers) < 6 else ""}><summary>{_name(result)}</summary><div class="wide">'
        f"<table><thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _row(layer: Layer) -> str:
    rogue = ", ".join(f"{top.dimension} ({top.share:.0%})" for top in layer.rogue)
    within, across = layer.within, layer.across
    cells = [
        _interval(layer.isotropy),
        *(_number(value) for value in (within.raw, within.centred, within.standardised)),
        *(_number(value) for value in (across.raw, across.centred, across.standardised)),
        _number(layer.isoscore),
        _number(layer.isoscore_star),
        _number(layer.partition_score) if layer.partition_score > 5e-4 else f"e^{layer.log_partition_score:.0f}",
        f"{layer.participation_ratio:.1f}",
        f"{layer.first_component:.1%}",
        _interval(layer.intrinsic_dimension, 1),
        f"{layer.mean_norm:.4g}",
        rogue or "–",
    ]
    return f'<td class="name">{escape(layer.name)}</td>' + "".join(f"<td>{cell}</td>" for cell in cells)


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(value: Interval | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value.value:.{digits}f} ({value.low:.{digits}f}–{value.high:.{digits}f})"


def _method(results: Sequence[Isotropy]) -> str:
    settings = asdict(results[0].settings)
    rows = [(name.replace("_", " "), "all" if value is None else str(value)) for name, value in settings.items()]
    rows += [(f"version of {name}", value) for name, value in versions().items()]
    models = {result.model: result for result in results}
    rows += [
        (name, f"{result.parameters:,} parameters, {result.depth} layers, {result.dim} wide, {result.dtype}")
        for name, result in models.items()
    ]
    for result in results:
        counts = result.counts
        rows.append(
            (
                f"{result.model} on {result.data}",
                f"{counts.skipped:,} texts skipped, {counts.cut:,} cut; sample of {counts.sample_texts:,} texts, "
                f"{counts.sample_tokens:,} tokens; IsoScore* shrunk towards {result.reference}",
            )
        )
    table = "".join(
        f'<tr><td class="name">{escape(name)}</td><td class="name">{escape(value)}</td></tr>' for name, value in rows
    )
    return (
        "<p>One pass over the texts. Raw cosines, isotropy, spectrum, IsoScore and rogue dimensions are exact over all "
        "tokens. Centred and standardised cosines, the partition score, the intrinsic dimension and the penalties come "
        "from a random sample of whole texts, with means and directions over all tokens.</p>"
        "<details><summary>Settings, versions, counts</summary>"
        f'<div class="wide"><table>{table}</table></div></details>'
    )
