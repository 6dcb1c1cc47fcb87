"""Second readers that have weights of their own, among the parameters of a strategy: what names files in settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from decoding.strategies.contrast.prompt import Prompt
from decoding.strategies.contrast.reader_kinds import LastToken, OtherPrompt, Self, as_kind

__all__ = ["change_named_readers", "named_readers"]

OWN_WEIGHTS = (Prompt, OtherPrompt, LastToken, Self)  # kinds of readers with the generating model's


def change_named_readers(
    strategy_class: type[Any], parameters: Mapping[str, Any], change: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """The parameters of a strategy, with other readers in place of those with weights of their own.

    A parameter that may be such a reader says so in its field: ``metadata={"names_models": True}``; one that holds
    several has there a function that changes all of them, as :func:`decoding.strategies.contrast.terms.change_readers`.

    Args:
        strategy_class: of the strategy.
        parameters: some of its parameters, as it or as a file has them.
        change: from the reader's place, such as "amateur" or "terms-2", and the reader (a name, a folder or a model) to
            the reader that the parameter is to have.

    Raises:
        OptionError: a parameter that is no reader.
    """
    changed = dict(parameters)
    for field in dataclasses.fields(strategy_class):
        given = parameters.get(field.name)
        change_all = field.metadata.get("names_models")
        if given is None or not change_all:
            continue

        def change_one(reader: Any, place: str = field.name) -> Any:
            return reader if isinstance(as_kind(reader), OWN_WEIGHTS) else change(place, reader)

        changed[field.name] = change_all(field.name, given, change_one) if callable(change_all) else change_one(given)
    return changed


def named_readers(strategy_class: type[Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The readers with weights of their own, by their place; see :func:`change_named_readers`."""
    readers: dict[str, Any] = {}

    def keep(place: str, reader: Any) -> Any:
        readers[place] = reader
        return reader

    change_named_readers(strategy_class, parameters, keep)
    return readers
