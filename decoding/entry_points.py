"""Objects by name, this library's and those of other packages, imported when they are asked for."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from decoding.errors import DecodingWarning, OptionError, one_line

__all__ = ["EntryPointTable", "package_of"]

Value = TypeVar("Value")


class EntryPointTable(Mapping[str, Value]):
    """Objects by name: this library's, then those that other packages offer by entry points of a group.

    The group is read when a name is sought that this library does not have. An object is imported when it is first
    asked for. An entry point whose name is taken is left out with a warning.

    Args:
        group: of the entry points, as ``decoding.strategies``.
        kind: what the objects are, in messages, as ``strategy``.
        built_in: ``"module:attribute"`` of each name of this library.
    """

    def __init__(self, group: str, kind: str, built_in: Mapping[str, str]) -> None:
        self._group, self._kind, self._built_in = group, kind, dict(built_in)
        self._imported: dict[str, Value] = {}

    @cached_property
    def _of_packages(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        # By package, so that which of two has a name does not depend on the order of files on the disk.
        for point in sorted(entry_points(group=self._group), key=package_of):
            if problem := self._problem(point, points):
                warnings.warn(
                    f"{self._kind} {point.name} of package {package_of(point)} is left out: {problem}",
                    DecodingWarning,
                    stacklevel=2,
                )
            elif point.name not in self._built_in:
                points.setdefault(point.name, point)
        return points

    def _problem(self, point: EntryPoint, before: Mapping[str, EntryPoint]) -> str:
        """Return why an entry point is left out, after those before it; empty where it is not."""
        if self._built_in.get(point.name, point.value) != point.value:
            return "the name is taken by this library"
        if point.name in before and before[point.name].value != point.value:
            return f"the name is taken by package {package_of(before[point.name])}"
        return ""

    @property
    def locations(self) -> dict[str, str]:
        """``"module:attribute"`` of every name."""
        return self._built_in | {name: point.value for name, point in self._of_packages.items()}

    def __getitem__(self, name: str) -> Value:
        """Import the object of a name.

        Raises:
            KeyError: an unknown name.
            OptionError: another package's object that cannot be imported.
        """
        if name not in self._imported:
            if name in self._built_in:
                self._imported[name] = EntryPoint(name, self._built_in[name], self._group).load()
            else:
                self._imported[name] = self._load(self._of_packages[name])
        return self._imported[name]

    def _load(self, point: EntryPoint) -> Value:
        try:
            value: Value = point.load()
        except Exception as error:  # any that a module of another package raises
            raise OptionError(
                f"{self._source(point)} cannot be imported ({type(error).__name__}: {one_line(error)})"
            ) from error
        return value

    def _source(self, point: EntryPoint) -> str:
        return f"{self._kind} {point.name} of package {package_of(point)}: {point.value}"

    def __contains__(self, name: object) -> bool:
        """Find a name without an import."""
        return name in self._built_in or name in self._of_packages

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names without an import."""
        return iter(self.locations)

    def __len__(self) -> int:
        """Count the names."""
        return len(self.locations)


def package_of(point: EntryPoint) -> str:
    """Return the name of the package that an entry point comes from."""
    return "(unknown)" if point.dist is None else point.dist.name
