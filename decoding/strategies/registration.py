"""The registry of strategies: their names and, imported when they are asked for, their classes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from decoding.entry_points import EntryPointTable
from decoding.errors import OptionError, shown

__all__ = ["StrategyRegistry"]

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
NO_STRATEGY = "must be a dataclass derived from decoding.Strategy"
NOT_A_NAME = "a name must be lower-case words with hyphens between them"

Class = TypeVar("Class", bound=type)


class StrategyRegistry(EntryPointTable[type[Any]]):
    """Strategy classes by name: the built-in ones, those of other packages, and those that :meth:`register` is given.

    Args:
        built_in: ``"module:Class"`` of each name.
    """

    def __init__(self, built_in: Mapping[str, str]) -> None:
        super().__init__("decoding.strategies", "strategy", built_in)
        self._registered: dict[str, type[Any]] = {}

    @property
    def locations(self) -> dict[str, str]:
        """``"module:Class"`` of every name."""
        return super().locations | {name: _location(registered) for name, registered in self._registered.items()}

    def __contains__(self, name: object) -> bool:
        """Find a name without an import."""
        return name in self._registered or super().__contains__(name)

    def __getitem__(self, name: str) -> type[Any]:
        """Import a strategy's class.

        Raises:
            KeyError: an unknown name.
            OptionError: another package's strategy that cannot be imported, or is no strategy.
        """
        return self._registered[name] if name in self._registered else super().__getitem__(name)

    def _problem(self, point: EntryPoint, before: Mapping[str, EntryPoint]) -> str:
        return super()._problem(point, before) if NAME.fullmatch(point.name) else NOT_A_NAME

    def _load(self, point: EntryPoint) -> type[Any]:
        strategy_class = super()._load(point)
        _check_class(self._source(point), point.name, strategy_class)
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
            if not isinstance(name, str):
                raise OptionError(f"strategy {shown(name)}: {NOT_A_NAME}")
            if not isinstance(strategy_class, type):
                raise OptionError(f"strategy {name}: {shown(strategy_class)} {NO_STRATEGY}")
            location = _location(strategy_class)
            if not NAME.fullmatch(name):
                raise OptionError(f"strategy {name!r}: {NOT_A_NAME}")
            if self.locations.get(name, location) != location or name in self._built_in:
                raise OptionError(f"strategy {name}: the name is taken by {self.locations[name]}")
            _check_class(f"strategy {name}: {location}", name, strategy_class)
            self._registered[name] = strategy_class
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
        if name in self._built_in or name in self._registered or name not in self._of_packages:
            return None
        package = self._of_packages[name].dist
        return None if package is None else f"{package.name}>={package.version}"


def _check_class(source: str, name: str, strategy_class: Any) -> None:
    """Give a strategy class its name where it has none.

    Raises:
        OptionError: it is no strategy, or has another name.
    """
    from decoding.generation.strategy import Strategy

    is_class = isinstance(strategy_class, type) and dataclasses.is_dataclass(strategy_class)
    if not is_class or not issubclass(strategy_class, Strategy):
        raise OptionError(f"{source} {NO_STRATEGY}")
    if inspect.isabstract(strategy_class):
        raise OptionError(f"{source} lacks {', '.join(sorted(strategy_class.__abstractmethods__))}, which it must have")
    own_name = vars(strategy_class).get("name", name)
    if own_name != name:
        raise OptionError(f"{source} has the name {own_name!r}; it must be {name!r}")
    strategy_class.name = name


def _location(strategy_class: type[Any]) -> str:
    return f"{strategy_class.__module__}:{strategy_class.__qualname__}"
