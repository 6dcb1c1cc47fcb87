"""Figures of analyses, for reports and notebooks. Needs matplotlib, the extra ``report``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from decoding.errors import OptionError
from decoding.evals.engine.pages import COLOURS, can_plot, figure_style
from decoding.evals.isotropy.results import Isotropy, Layer
from decoding.evals.isotropy.verdicts import AMPLE, LITTLE, PUBLISHED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MISSING", "plot_comparison", "plot_layers", "plot_rogue", "plot_spectrum"]

MISSING = "figures need matplotlib: pip install 'contrastive-decoding[report]'"
LINES = ("-", "--", ":", "-.")  # one a model


def plot_comparison(results: Sequence[Isotropy]) -> Figure:
    """Isotropy of the last layer for each model and data set with 95% intervals, and that of published models.

    Raises:
        OptionError: matplotlib is not installed.
    """
    shown = [
        (label, result.last.isotropy) for label, result in _labelled(results) if result.last and result.last.isotropy
    ]
    with _figure(9, 1.6 + 0.34 * len(shown)) as (figure, axes_of):
        axes = axes_of(1, 1)[0]
        axes.axvspan(0, LITTLE, color="#f6d5d0", zorder=0)
        axes.axvspan(LITTLE, AMPLE, color="#fbf0d0", zorder=0)
        axes.axvspan(AMPLE, 1, color="#d9f0df", zorder=0)
        for row, (_, value) in enumerate(shown):
            error = [[value.value - value.low], [value.high - value.value]]
            axes.barh(
                row, value.value, height=0.62, color=COLOURS[0], xerr=error, ecolor="#222222", capsize=3, zorder=2
            )
            inside = value.value > 0.1
            axes.text(
                0.012 if inside else value.high + 0.015, row, f"{value.value:.2f}", va="center", fontweight="bold",
                color="white" if inside else "#222222", zorder=3,
            )  # fmt: skip
        for name in ("gpt2", "gpt2-medium", "gpt2-large", "opt-125m"):
            axes.axvline(PUBLISHED[name], color="#666666", linewidth=0.9, linestyle=":", zorder=1)
            axes.text(PUBLISHED[name], -0.75, name, rotation=35, ha="left", va="bottom", fontsize=8, color="#555555")
        axes.set_yticks(range(len(shown)), [label for label, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.7)
        axes.set_xlim(0, 1)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("isotropy of the last layer: 1 − mean cosine between tokens of a text")
    return figure


def plot_layers(results: Sequence[Isotropy]) -> Figure:
    """Curves over the layers: cosines within and across texts, IsoScore, effective and intrinsic dimension.

    Raises:
        OptionError: matplotlib is not installed.
    """
    one_depth = len({result.depth for result in results}) == 1
    curves: list[tuple[str, Callable[[Layer], float | None]]] = [
        ("mean cosine within a text", lambda layer: layer.within.raw),
        ("within a text, centred", lambda layer: layer.within.centred),
        ("within a text, standardised", lambda layer: layer.within.standardised),
        ("mean cosine across texts", lambda layer: layer.across.raw),
        ("IsoScore", lambda layer: layer.isoscore),
        ("IsoScore*", lambda layer: layer.isoscore_star),
        ("effective dimensions (participation ratio)", lambda layer: layer.participation_ratio),
        ("share of the first component", lambda layer: layer.first_component),
        (
            "intrinsic dimension (TwoNN, 95% band)",
            lambda layer: layer.intrinsic_dimension.value if layer.intrinsic_dimension else None,
        ),
    ]
    with _figure(11, 8.2) as (figure, axes_of):
        panels = axes_of(3, 3)
        for axes, (title, value) in zip(panels, curves, strict=True):
            for (label, result), look in zip(_labelled(results), _looks(results), strict=True):
                points = [(layer, value(layer)) for layer in result.layers]
                at = [layer.layer if one_depth else layer.layer / result.depth for layer, _ in points]
                axes.plot(at, [_or_nan(number) for _, number in points], marker="o", markersize=3, label=label, **look)
                if title.startswith("intrinsic"):
                    bands = [layer.intrinsic_dimension for layer in result.layers]
                    low = [_or_nan(None if band is None else band.low) for band in bands]
                    high = [_or_nan(None if band is None else band.high) for band in bands]
                    axes.fill_between(at, low, high, color=look["color"], alpha=0.15, linewidth=0)
            axes.set_title(title)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
            if one_depth:
                axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in panels[-3:]:
            axes.set_xlabel("layer (0: embeddings)" if one_depth else "share of the depth (0: embeddings)")
        if len(results) > 1:
            handles, labels = panels[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)))
    return figure


def plot_spectrum(results: Sequence[Isotropy]) -> Figure:
    """Share of the variance by rank of the direction, last layer read, on logarithmic axes.

    Raises:
        OptionError: matplotlib is not installed.
    """
    with _figure(9, 4.2) as (figure, axes_of):
        axes = axes_of(1, 1)[0]
        for (label, result), look in zip(_labelled(results), _looks(results), strict=True):
            ranks, shares = zip(*result.layers[-1].spectrum, strict=True)
            axes.loglog(ranks, [max(share, 1e-9) for share in shares], label=label, **look)
        widest = max(result.dim for result in results)
        axes.axhline(1 / widest, color="#888888", linestyle=":", linewidth=1)
        axes.text(1, 1.1 / widest, f"all {widest} directions alike", fontsize=8, color="#555555")
        axes.set_ylim(bottom=max(1e-6, axes.get_ylim()[0]))
        axes.set_xlabel("rank of the direction")
        axes.set_ylabel("share of the variance")
        if len(results) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), ncols=1 + (len(results) > 12), fontsize=9)
    return figure


def plot_rogue(results: Sequence[Isotropy]) -> Figure:
    """Contributions of single dimensions of the last layer read to the mean cosine across texts.

    Raises:
        OptionError: matplotlib is not installed.
    """
    shown = [(label, result.layers[-1]) for label, result in _labelled(results)]
    with _figure(9, 1.3 + 0.42 * len(shown)) as (figure, axes_of):
        axes = axes_of(1, 1)[0]
        longest = max([abs(layer.across.raw or 0.0) for _, layer in shown] + [1e-6])
        for row, (_, layer) in enumerate(shown):
            left = 0.0
            for place, rogue in enumerate(layer.rogue):
                axes.barh(
                    row, rogue.contribution, left=left, height=0.66, color=COLOURS[place % len(COLOURS)],
                    edgecolor="white", alpha=0.85, zorder=2,
                )  # fmt: skip
                if rogue.contribution > 0.035 * longest:
                    axes.text(
                        left + rogue.contribution / 2, row, str(rogue.dimension), ha="center", va="center",
                        color="white", fontsize=8, zorder=3,
                    )  # fmt: skip
                left += rogue.contribution
            axes.plot([layer.across.raw or 0.0], [row], marker="D", color="#222222", markersize=5, zorder=4)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks(range(len(shown)), [label for label, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("added to the mean cosine across texts; ◆ is the mean itself, of all dimensions together")
    return figure


def _labelled(results: Sequence[Isotropy]) -> list[tuple[str, Isotropy]]:
    """Results with labels that tell them apart: model, data, or both."""
    models, data = {result.model for result in results}, {result.data for result in results}
    labels = []
    for result in results:
        model = result.model.rstrip("/").rpartition("/")[2]
        labels.append(
            result.data if len(models) == 1 < len(data) else model if len(data) == 1 else f"{model}, {result.data}"
        )
    return list(zip(labels, results, strict=True))


def _looks(results: Sequence[Isotropy]) -> list[dict[str, Any]]:
    """A colour a data set and a line a model; a colour a model where there is one data set."""
    from matplotlib import colormaps

    models, data = (
        list(dict.fromkeys(result.model for result in results)),
        list(dict.fromkeys(result.data for result in results)),
    )
    names = models if len(data) == 1 else data
    colours = list(COLOURS) if len(names) <= len(COLOURS) else [
        colormaps["turbo"](0.05 + 0.9 * place / (len(names) - 1)) for place in range(len(names))
    ]  # fmt: skip
    return [
        {
            "color": colours[names.index(result.model if len(data) == 1 else result.data)],
            "linestyle": "-" if len(data) == 1 else LINES[models.index(result.model) % len(LINES)],
        }
        for result in results
    ]


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Figure, Callable[[int, int], list[Any]]]]:
    """A new figure (without the global state of pyplot), and a function that divides it into axes."""
    if not can_plot():
        raise OptionError(MISSING)
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure((width, height))
        figure.set_layout_engine("constrained", h_pad=0.12)  # inches: titles keep off the numbers above them

        def axes_of(rows: int, columns: int) -> list[Any]:
            return list(figure.subplots(rows, columns, squeeze=False).flat)

        yield figure, axes_of
