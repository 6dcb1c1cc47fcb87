"""The registry of strategies: their names and, imported when they are asked for, their classes."""

from __future__ import annotations

import dataclasses
import importlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import metadata
from typing import Any, TypeVar

from decoding.errors import DecodingWarning, OptionError, one_line

__all__ = ["ENTRY_POINTS", "StrategyRegistry"]

ENTRY_POINTS = "decoding.strategies"  # the group in which other packages name their strategies
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

Class = TypeVar("Class", bound=type)


class StrategyRegistry(Mapping[str, type[Any]]):
    """Strategy classes by name, each imported when it is first asked for.

    After the built-in ones come those of other packages: of the entry points of the group ``decoding.strategies``,
    which are read when names are first needed, and those that :meth:`register` is given.

    Args:
        built_in: ``"module:Class"`` of each name.
    """

    def __init__(self, built_in: Mapping[str, str]) -> None:
        self._built_in = dict(built_in)
        self._classes: dict[str, type[Any]] = {}  # that were imported or registered
        self._registered: dict[str, str] = {}  # "module:Class" of each

    @cached_property
    def _entry_points(self) -> dict[str, metadata.EntryPoint]:
        points: dict[str, metadata.EntryPoint] = {}
        # By package, so that which of two has a name does not depend on the order of files on the disk.
        for point in sorted(metadata.entry_points(group=ENTRY_POINTS), key=_package):
            problem = ""
            if not NAME.fullmatch(point.name):
                problem = "a name must be lower-case words with hyphens between them"
            elif point.name in self._built_in:
                problem = "the name is taken by this library"
            elif point.name in points and points[point.name].value != point.value:
                problem = f"the name is taken by package {_package(points[point.name])}"
            if problem:
                warnings.warn(
                    f"strategy {point.name} of package {_package(point)} is left out: {problem}",
                    DecodingWarning,
                    stacklevel=2,
                )
            else:
                points.setdefault(point.name, point)
        return points

    @property
    def locations(self) -> dict[str, str]:
        """``"module:Class"`` of every name."""
        of_packages = {name: point.value for name, point in self._entry_points.items()}
        return self._built_in | of_packages | self._registered

    def __getitem__(self, name: str) -> type[Any]:
        """Import a strategy's class.

        Raises:
            KeyError: an unknown name.
            OptionError: another package's strategy that cannot be imported, or is no strategy.
        """
        if name not in self._classes:
            if name in self._built_in:
                module, _, attribute = self._built_in[name].partition(":")
                self._classes[name] = getattr(importlib.import_module(module), attribute)
            else:
                self._classes[name] = self._load(self._entry_points[name])
        return self._classes[name]

    def _load(self, point: metadata.EntryPoint) -> type[Any]:
        source = f"strategy {point.name} of package {_package(point)}: {point.value}"
        try:
            strategy_class = point.load()
        except Exception as error:  # any that a module of another package raises
            raise OptionError(f"{source} cannot be imported ({type(error).__name__}: {one_line(error)})") from error
        _check_class(source, point.name, strategy_class)
        return strategy_class

    def register(self, name: str, strategy_class: Class | None = None) -> Callable[[Class], Class]:
        """Make a strategy known by its name to every command and to models that are exported with it.

        Called with a class, or as a decorator of one. A class that was registered may be registered again (a notebook's
        cell that is run twice).

        Args:
            name: lower-case words with hyphens between them; becomes the class's ``name`` where it has none of its own.
            strategy_class: a dataclass derived from :class:`decoding.Strategy`; its fields are its parameters.

        Raises:
            OptionError: a name that is taken, or is no such name, or a class that is no strategy.

        Example:
            >>> @decoding.register("momentum")
            ... @dataclass(frozen=True)
            ... class Momentum(decoding.Strategy): ...
        """

        def add(strategy_class: Class) -> Class:
            location = f"{strategy_class.__module__}:{strategy_class.__qualname__}"
            if not NAME.fullmatch(name):
                raise OptionError(f"strategy {name!r}: a name must be lower-case words with hyphens between them")
            if self.locations.get(name, location) != location or name in self._built_in:
                raise OptionError(f"strategy {name}: the name is taken by {self.locations[name]}")
            _check_class(f"strategy {name}: {location}", name, strategy_class)
            self._classes[name], self._registered[name] = strategy_class, location
            return strategy_class

        if strategy_class is not None:
            add(strategy_class)
        return add

    def name_of(self, strategy_class: type[Any]) -> str | None:
        """Return the name under which a class is registered; None where it is not."""
        name: Any = getattr(strategy_class, "name", None)
        return name if name in self and self[name] is strategy_class else None

    def requirement_of(self, name: str) -> str | None:
        """Return the package that a strategy needs beside this one, as ``name>=version``; None where it needs none."""
        if name in self._built_in or name in self._registered or name not in self._entry_points:
            return None
        package = self._entry_points[name].dist
        return None if package is None else f"{package.name}>={package.version}"

    def __contains__(self, name: object) -> bool:
        """Find a name without an import."""
        return name in self._built_in or name in self._registered or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names without an import."""
        return iter(self.locations)

    def __len__(self) -> int:
        """Count the names."""
        return len(self.locations)


def _check_class(source: str, name: str, strategy_class: Any) -> None:
    """Give a strategy class its name where it has none.

    Raises:
        OptionError: it is no strategy, or has another name.
    """
    from decoding.generation.strategy import Strategy

    is_class = isinstance(strategy_class, type) and dataclasses.is_dataclass(strategy_class)
    if not is_class or not issubclass(strategy_class, Strategy):
        raise OptionError(f"{source} must be a dataclass derived from decoding.Strategy")
    own_name = vars(strategy_class).get("name", name)
    if own_name != name:
        raise OptionError(f"{source} has the name {own_name!r}; it must be {name!r}")
    strategy_class.name = name


def _package(point: metadata.EntryPoint) -> str:
    return "(unknown)" if point.dist is None else point.dist.name
