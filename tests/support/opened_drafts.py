"""The drafts that calls read: their tokens alone do not tell, since they are the same without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from decoding.drafts.opening import open_proposer
from decoding.drafts.options import DraftOptions

__all__ = ["opened_drafts"]


@contextmanager
def opened_drafts() -> Iterator[list[DraftOptions]]:
    """A list that is given the options of each call in the block that reads drafts."""
    opened: list[DraftOptions] = []

    def spy(options: DraftOptions, *arguments: object, **named: object) -> object:
        opened.append(options)
        return open_proposer(options, *arguments, **named)  # type: ignore[arg-type]

    with mock.patch("decoding.generation.strategy.open_proposer", spy):
        yield opened
