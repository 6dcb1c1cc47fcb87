"""Models and adapters that installed packages bring along, by name: entry points of two groups.

A package offers them in its ``pyproject.toml``:

    [project.entry-points."decoding.models"]
    my-model = "my_package.models:load_it"      # a function of (dtype, **placement) that returns (model, tokenizer)

    [project.entry-points."decoding.adapters"]
    my-amateur = "my_package.models:FOLDER"     # the pathlib.Path of the folder of a LoRA adapter
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, MutableMapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["BUILT_IN", "BUILT_IN_ADAPTERS", "EntryPointTable"]

# This package's own, where its metadata is absent or older than its code: a source tree that was not installed.
OWN_MODULE = "decoding.evals.builtin"

Value = TypeVar("Value")


class EntryPointTable(MutableMapping[str, Value]):
    """Objects by name: those of a group of entry points, and those that are put in.

    The group is read when the table is first used, and an object is imported when it is first asked for.

    Args:
        group: of the entry points.
        own: name of the table in ``decoding.evals.builtin`` that holds this package's own objects, by name.
    """

    def __init__(self, group: str, own: str) -> None:
        self._group = group
        self._own = own

    @cached_property
    def _objects(self) -> dict[str, Value | EntryPoint]:
        entries = entry_points(group=self._group)
        objects: dict[str, Value | EntryPoint] = {entry.name: entry for entry in entries}
        if not any(entry.module == OWN_MODULE for entry in entries):
            try:
                objects.update(getattr(importlib.import_module(OWN_MODULE), self._own))
            except ModuleNotFoundError as error:
                if error.name != OWN_MODULE and error.name != OWN_MODULE.rpartition(".")[0]:
                    raise
        return objects

    def __getitem__(self, name: str) -> Value:
        """The object of a name; whatever importing it raises passes."""
        value = self._objects[name]
        if isinstance(value, EntryPoint):
            value = self._objects[name] = value.load()
        return value

    def __setitem__(self, name: str, value: Value) -> None:
        """Put an object in, before what an entry point has under its name."""
        self._objects[name] = value

    def __delitem__(self, name: str) -> None:
        """Take a name out."""
        del self._objects[name]

    def __iter__(self) -> Iterator[str]:
        """Names, without importing the objects."""
        return iter(self._objects)

    def __contains__(self, name: object) -> bool:
        """True where there is an object of this name; does not import it."""
        return name in self._objects

    def __len__(self) -> int:
        """The number of names."""
        return len(self._objects)


BUILT_IN: EntryPointTable[Callable[..., tuple[Any, Any]]] = EntryPointTable("decoding.models", "MODELS")
BUILT_IN_ADAPTERS: EntryPointTable[Path] = EntryPointTable("decoding.adapters", "ADAPTERS")
