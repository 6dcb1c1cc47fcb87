"""Placeholders in the parameters of strategies, which a task fills from each of its documents.

``context-aware:context={context}`` reads another context with every document. A placeholder may stand in any parameter
that holds text, alone or inside other text: the texts of amateurs, terms and lists are searched too. A strategy knows
nothing of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from decoding.evals.engine.configurations import Configuration
from decoding.strategies.parameters_text import parameter_types
from decoding.strategies.registry import StrategySpec

__all__ = ["filled", "placeholders_of"]

Values = Mapping[str, str | Sequence[str]]

PLACEHOLDER = re.compile(r"\{(\w+)\}")
BETWEEN = "\n\n"  # several texts inside other text


def placeholders_of(spec: StrategySpec, known: Collection[str]) -> set[str]:
    """The placeholders of these names that a strategy's parameters hold.

    Args:
        spec: the strategy.
        known: names, without braces; other text in braces is text.
    """
    return {name for value in _parameters(spec).values() for name in _named(value)} & set(known)


def filled(configuration: Configuration, values: Values) -> Configuration:
    """The configuration with the values in place of its strategy's placeholders; its hash stays.

    Args:
        configuration: of the strategy with placeholders.
        values: by name. Several texts that are the whole of a parameter, or of an item of a list, are that many items;
            inside other text a blank line is put between them.

    Raises:
        OptionError: the strategy refuses a value.

    Example:
        >>> filled(configuration, {"context": "Lima lies in Peru.", "documents": ["Lima lies in Peru."]}).spec.label
        'context-aware(context=Lima lies in Peru., alpha=0.5)'
    """
    old = _parameters(configuration.spec)
    new = {name: _filled(value, values) for name, value in old.items()}
    changed = {name: value for name, value in new.items() if value is not old[name]}
    if not changed:
        return configuration
    spec = configuration.spec
    strategy = dataclasses.replace(spec.strategy, **changed)
    return dataclasses.replace(configuration, spec=dataclasses.replace(spec, strategy=strategy))


def _parameters(spec: StrategySpec) -> dict[str, Any]:
    return {name: getattr(spec.strategy, name) for name in parameter_types(type(spec.strategy))}


def _named(value: Any) -> list[str]:
    if isinstance(value, str):
        return PLACEHOLDER.findall(value)
    return [name for part in _parts(value) for name in _named(part)]


def _parts(value: Any) -> list[Any]:
    """What a value is made of, where that may be text."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, (tuple, list)):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value) if field.init]
    return []


def _filled(value: Any, values: Values) -> Any:
    """The value with its placeholders filled; the same object where there are none."""
    if not any(name in values for name in _named(value)):
        return value
    if isinstance(value, str):
        whole = PLACEHOLDER.fullmatch(value)
        if whole and not isinstance(values[whole[1]], str):
            return tuple(values[whole[1]])
        return PLACEHOLDER.sub(lambda match: _text(values.get(match[1], match[0])), value)
    if isinstance(value, Mapping):
        return {key: _filled(item, values) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items: list[Any] = []
        for item in value:
            new = _filled(item, values)
            items += new if isinstance(item, str) and isinstance(new, tuple) else [new]
        return tuple(items)
    fields = {
        field.name: _filled(getattr(value, field.name), values) for field in dataclasses.fields(value) if field.init
    }
    return dataclasses.replace(value, **fields)


def _text(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else BETWEEN.join(text.strip("\n") for text in value)
