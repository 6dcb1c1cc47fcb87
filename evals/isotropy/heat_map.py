"""The cosine heat map of one text as SVG whose labels are text, so that the browser's fonts show every script."""

from __future__ import annotations

from html import escape

from decoding.evals.isotropy.results import HeatMap

__all__ = ["colour", "colour_scale", "heat_map_svg"]

CELL, CHARACTER = 14, 7  # pixels
LONGEST = 12  # characters of a label
ZERO, ONE, MINUS_ONE = (247, 251, 255), (8, 48, 107), (179, 88, 6)


def heat_map_svg(heat_map: HeatMap) -> str:
    """An ``<svg>`` element: dark is similar; a cell shows its pair and cosine when pointed at."""
    count = len(heat_map.tokens)
    labels = [escape(token if len(token) <= LONGEST else token[: LONGEST - 1] + "…") for token in heat_map.tokens]
    margin = 12 + CHARACTER * max(min(len(token), LONGEST) for token in heat_map.tokens)
    size = margin + count * CELL + 2
    parts = [
        f'<svg class="heat" viewBox="0 0 {size} {size}" style="max-width: {1.4 * size:.0f}px" role="img" '
        f'aria-label="cosines between the tokens of one text, layer {heat_map.layer}">'
    ]
    for place, label in enumerate(labels):
        middle = margin + place * CELL + CELL / 2
        parts.append(f'<text x="{margin - 5}" y="{middle + 4}" text-anchor="end">{label}</text>')
        parts.append(f'<text transform="translate({middle + 4} {margin - 5}) rotate(-90)">{label}</text>')
    for row, cosines in enumerate(heat_map.cosines):
        parts.append(f'<g transform="translate({margin} {margin + row * CELL})">')
        for column, cosine in enumerate(cosines):
            parts.append(
                f'<rect x="{column * CELL}" width="{CELL}" height="{CELL}" fill="{colour(cosine)}">'
                f"<title>{labels[row]} × {labels[column]}: {cosine:.2f}</title></rect>"
            )
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def colour_scale() -> str:
    """An ``<svg>`` element: the scale of colours and cosines."""
    cells = "".join(
        f'<rect x="{12 * step}" width="12" height="12" fill="{colour(step / 10 - 1)}"/>' for step in range(21)
    )
    names = "".join(
        f'<text x="{x}" y="25" text-anchor="middle">{text}</text>' for x, text in ((6, "−1"), (126, "0"), (246, "1"))
    )
    return f'<svg class="scale" viewBox="0 0 260 30" role="img" aria-label="colours of cosines">{cells}{names}</svg>'


def colour(cosine: float) -> str:
    """Pale at 0, dark blue at 1, brown at -1."""
    end = ONE if cosine >= 0 else MINUS_ONE
    share = min(1.0, abs(cosine))
    return "#" + "".join(f"{round(low + share * (high - low)):02x}" for low, high in zip(ZERO, end, strict=True))
