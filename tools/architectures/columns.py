"""The columns of the table: functions of a new model that return the cells of one or more columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from decoding.tools.architectures.early_exits import early_exits
from decoding.tools.architectures.results import Cell
from decoding.tools.architectures.search import contrastive_search

__all__ = ["CHECKS", "COLUMNS"]

CHECKS: tuple[Callable[[Any], dict[str, Cell]], ...] = (contrastive_search, early_exits)
COLUMNS = ("contrastive search", "left padding", "early exits")  # in the table's order
