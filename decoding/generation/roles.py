"""The names of a text's readers that every floor knows. Nothing here needs model code."""

from __future__ import annotations

__all__ = ["EXPERT"]

EXPERT = "expert"  # the generating model on the prompt as it is
