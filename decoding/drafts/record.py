"""A record of what became of the drafts of a call. Nothing here needs model code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from decoding.errors import OptionError, shown

__all__ = ["DraftRecord", "require_record"]


@dataclass
class DraftRecord:
    """What became of the drafts of a call of :func:`decoding.generate`, which fills it.

    Attributes:
        rows: for each row, by the position of a new token (counted in the row as ``generate`` returns it), the draft
            that was checked there and whether it was accepted. Drafts after one that was rejected were not checked.

    Example:
        >>> record = decoding.DraftRecord()
        >>> sequences = decoding.generate(model, **inputs, strategy=strategy, drafts="amateur", draft_record=record)
        >>> explanations = decoding.explain(model, sequences, strategy, draft_record=record, **inputs)
    """

    rows: list[dict[int, tuple[int, bool]]] = field(default_factory=list)

    def begin(self, rows: int) -> None:
        """Forget an earlier call, and begin one of so many rows."""
        self.rows = [{} for _ in range(rows)]

    def add(self, row: int, position: int, drafts: Sequence[int], chosen: Sequence[int]) -> None:
        """Note drafts that were checked from a position on, and the tokens that were chosen there."""
        for offset, (draft, token) in enumerate(zip(drafts, chosen, strict=False)):
            self.rows[row][position + offset] = draft, draft == token


def require_record(value: object) -> None:
    """Raise OptionError unless a value is None or a record."""
    if value is not None and not isinstance(value, DraftRecord):
        raise OptionError(f"draft_record={shown(value)}: must be a decoding.DraftRecord(), which the call fills")
