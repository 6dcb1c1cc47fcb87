"""Rows of one batch that are read in different ways by one copy of a model's weights."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol, TypeVar

from torch.utils.hooks import RemovableHandle

__all__ = ["HookedRows", "JoinedVariants", "RowVariants", "row_slices"]

Kind = TypeVar("Kind")


class RowVariants(Protocol):
    """How the rows of a batch are read: with which LoRA adapter, without which layers.

    Attributes:
        by_slices: True where rows are told apart by slices, which a captured step can hold.
    """

    by_slices: bool

    @property
    def key(self) -> Hashable:
        """Equal for variants whose captured steps are the same."""

    def activated(self) -> AbstractContextManager[None]:
        """Return a context whose forward passes read the rows so."""


class HookedRows(ABC):
    """Base of variants that are hooks on a model's modules, in the thread of :meth:`activated` and there alone.

    Attributes:
        active: of the subclass: the instance whose context a thread is in.
    """

    by_slices: bool = True
    active: ClassVar[ContextVar[Any]]

    @abstractmethod
    def hooked(self) -> Iterator[RemovableHandle]:
        """Put the hooks on, one after the other. Each does nothing where :attr:`is_active` is False."""

    @property
    def is_active(self) -> bool:
        """True in the thread whose forward passes read the rows so."""
        return self.active.get() is self

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Read the rows so in the forward passes of this context.

        The hooks are put on for one pass, which costs about a millisecond for 210 modules.
        """
        handles: list[RemovableHandle] = []
        token = self.active.set(self)
        try:
            for handle in self.hooked():
                handles.append(handle)
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.active.reset(token)


class JoinedVariants:
    """Several variants of the same rows at once."""

    def __init__(self, variants: Sequence[RowVariants]) -> None:
        self.variants = tuple(variants)
        self.by_slices = all(variant.by_slices for variant in variants)

    @property
    def key(self) -> Hashable:
        """The keys of all of them."""
        return tuple(variant.key for variant in self.variants)

    @contextmanager
    def activated(self) -> Iterator[None]:
        """Read the rows as all of them say."""
        with ExitStack() as stack:
            for variant in self.variants:
                stack.enter_context(variant.activated())
            yield


def row_slices(kinds: Sequence[Kind], length: int) -> Iterator[tuple[Kind, slice]]:
    """Find the rows of each kind in a batch whose rows were repeated, or in the tokens of all its rows.

    Args:
        kinds: one a row.
        length: of the batch's first dimension, a multiple of the rows; what belongs to a row is adjacent.

    Yields:
        Each kind, with adjacent places that have it.
    """
    times, start = length // len(kinds), 0
    for kind, group in itertools.groupby(kinds):
        yield kind, slice(start, start := start + times * len(list(group)))
