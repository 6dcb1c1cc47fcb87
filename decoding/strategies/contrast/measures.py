"""What a strategy has measured at the new tokens of one call, which its scores at later tokens depend on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["MeasureHistory"]


class MeasureHistory:
    """The measures of one call: each row's own, at the tokens that were chosen, and at the place that is looked at."""

    def __init__(self) -> None:
        # (batch, n) at tokens that were chosen; NaN fills up rows that have fewer.
        self._chosen: Tensor | None = None
        self._looked: list[Tensor] = []  # (batch,) each, at the places of the last pass as far as they were looked at

    @property
    def measures(self) -> Tensor:
        """(batch, n) float32, the measures so far, the last that of the place looked at; NaN where there is none."""
        looked = torch.stack(self._looked, dim=-1)
        return looked if self._chosen is None else torch.cat([self._chosen, looked], dim=-1)

    def look(self, measure: Tensor, place: int = 0) -> None:
        """Note what is measured (batch,) at a place of the last pass, after those before it."""
        self._looked[place:] = [measure]

    def accept(self, places: Sequence[int] | None = None) -> None:
        """Note that tokens were chosen at the first ``places[i]`` places of row i; None is at all looked at."""
        if places is None:
            self._chosen = self.measures
        elif max(places) > 0:
            measures = self.measures
            looked = torch.arange(len(self._looked), device=measures.device)
            unread = looked >= torch.tensor(places, device=measures.device)[:, None]
            measures[:, -len(looked) :].masked_fill_(unread, torch.nan)
            self._chosen = measures
        self._looked = []

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        if self._chosen is not None:
            self._chosen = self._chosen[rows.to(self._chosen.device)]
        self._looked = [measure[rows.to(measure.device)] for measure in self._looked]
