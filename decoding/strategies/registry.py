"""Strategies by name: those of this library, the baselines of transformers, and those of other packages.

The names need no model code: a strategy's class is imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any

from decoding.errors import OptionError, nearest, one_line
from decoding.strategies.parameters_text import as_text, from_text, parameter_types

__all__ = [
    "ENTRY_POINTS",
    "STRATEGIES",
    "StrategyRegistry",
    "StrategySpec",
    "exportable_strategies",
    "parameters_of",
    "parse_strategy",
    "scorable_strategies",
    "strategy_name",
]

ENTRY_POINTS = "decoding.strategies"  # the group in which other packages name theirs

_BASELINES = "decoding.strategies.baselines"


class StrategyRegistry(Mapping[str, type[Any]]):
    """Strategy classes by name, each imported when it is first asked for.

    Args:
        locations: ``"module:Class"`` of each name. Strategies of other packages follow them, from the entry points of
            the group ``decoding.strategies``; a name that is taken stays what it is.
    """

    def __init__(self, locations: Mapping[str, str]) -> None:
        self._locations = dict(locations)
        self._classes: dict[str, type[Any]] = {}

    @cached_property
    def _entry_points(self) -> dict[str, str]:
        points = metadata.entry_points(group=ENTRY_POINTS)
        return {point.name: point.value for point in points if point.name not in self._locations}

    @property
    def locations(self) -> dict[str, str]:
        """``"module:Class"`` of every name."""
        return self._locations | self._entry_points

    def __getitem__(self, name: str) -> type[Any]:
        """Import a strategy's class.

        Raises:
            KeyError: an unknown name.
            OptionError: another package's strategy that cannot be imported.
        """
        if name not in self._classes:
            location = self.locations[name]
            module, _, attribute = location.partition(":")
            try:
                self._classes[name] = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                if name in self._locations:
                    raise
                raise OptionError(f"strategy {name}: {location} cannot be imported ({one_line(error)})") from error
        return self._classes[name]

    def name_of(self, strategy_class: type[Any]) -> str | None:
        """Return the name of a class, by the module that defines it; None where it has none."""
        own = f"{strategy_class.__module__}:{strategy_class.__qualname__}"
        for name, location in self.locations.items():
            if location == own or self._classes.get(name) is strategy_class:
                return name
        return None

    def __contains__(self, name: object) -> bool:
        """Find a name without an import."""
        return name in self._locations or name in self._entry_points

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names without an import."""
        return iter(self.locations)

    def __len__(self) -> int:
        """Count the names."""
        return len(self.locations)


# A new strategy is one line here: its fields are its parameters.
STRATEGIES = StrategyRegistry(
    {
        "contrastive-search": "decoding.strategies.contrastive_search.strategy:ContrastiveSearch",
        "contrastive-decoding": "decoding.strategies.contrastive_decoding:ContrastiveDecoding",
        "dola": "decoding.strategies.dola:DoLa",
        "context-aware": "decoding.strategies.context_aware:ContextAware",
        "lol": "decoding.strategies.lol:LOL",
        "greedy": f"{_BASELINES}:Greedy",
        "sampling": f"{_BASELINES}:Sampling",
        "top-k": f"{_BASELINES}:TopK",
        "nucleus": f"{_BASELINES}:Nucleus",
        "typical": f"{_BASELINES}:Typical",
        "beam": f"{_BASELINES}:Beam",
    }
)


def exportable_strategies() -> list[str]:
    """Names of the strategies that a model folder may hold; transformers' own need no code to be a model's own."""
    return [name for name, location in STRATEGIES.locations.items() if not location.startswith(f"{_BASELINES}:")]


def scorable_strategies() -> list[str]:
    """Names of the strategies under which texts can be scored; those of other packages that cannot be imported are left
    out.
    """
    names = []
    for name in STRATEGIES:
        with contextlib.suppress(OptionError):
            if STRATEGIES[name].scorable:
                names.append(name)
    return names


@dataclass(frozen=True)
class StrategySpec:
    """A strategy with all its parameters.

    Attributes:
        name: its name in ``STRATEGIES``.
        strategy: the :class:`decoding.Strategy`, or a :class:`decoding.strategies.baselines.Baseline`.
    """

    name: str
    strategy: Any

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter and its value, those left at their default included."""
        return {name: getattr(self.strategy, name) for name in parameter_types(type(self.strategy))}

    @property
    def label(self) -> str:
        """Name and parameters, as in ``contrastive-search(penalty_alpha=0.6, top_k=4)``; not those that are off."""
        inside = ", ".join(f"{name}={as_text(value)}" for name, value in self._given.items())
        return f"{self.name}({inside})" if inside else self.name

    @property
    def spec(self) -> str:
        """The text that :func:`parse_strategy` reads, as in ``contrastive-search:penalty_alpha=0.6,top_k=4``."""
        inside = ",".join(f"{name}={as_text(value)}" for name, value in self._given.items())
        return f"{self.name}:{inside}" if inside else self.name

    @property
    def _given(self) -> dict[str, Any]:
        """The parameters but for those that are None, as they are by default."""
        off = {field.name for field in dataclasses.fields(self.strategy) if field.default is None}
        return {name: value for name, value in self.parameters.items() if value is not None or name not in off}

    def with_tokenizer(self, tokenizer: Any) -> StrategySpec:
        """The spec with the tokenizer of the model, which strategies that have texts need."""
        return dataclasses.replace(self, strategy=self.strategy.with_tokenizer(tokenizer))

    @property
    def is_stochastic(self) -> bool:
        """True where tokens are drawn at random."""
        return bool(getattr(self.strategy, "is_stochastic", False))

    def check(self, model: Any) -> None:
        """Raise OptionError where the parameters do not fit the model."""
        self.strategy.check(model)


def parse_strategy(spec: str, settings: Mapping[str, str] | None = None) -> StrategySpec:
    """Make a strategy from its name, with or without parameters.

    Args:
        spec: a name of ``STRATEGIES``, perhaps with parameters: ``sampling`` or ``sampling:temperature=0.8,top_p=0.9``.
            In lists, ``;`` does as well as ``,``.
        settings: parameters as strings; they have priority over those in ``spec``.

    Raises:
        OptionError: an unknown strategy or parameter (with the nearest ones), or a value out of range.

    Example:
        >>> parse_strategy("contrastive-search", {"top_k": "5"}).label
        'contrastive-search(penalty_alpha=0.6, top_k=5)'
    """
    inline = spec.partition(":")[2]
    name = strategy_name(spec)
    texts = _inline(spec, inline) | dict(settings or {})
    types = parameter_types(STRATEGIES[name])
    values = {}
    for parameter, text in texts.items():
        if parameter not in types:
            if not types:
                raise OptionError(f"{name} has no parameter {parameter!r}: it takes none")
            raise OptionError(f"{name} has no parameter {parameter!r}{nearest(parameter, types)}")
        values[parameter] = from_text(parameter, text.strip(), types[parameter])
    strategy_class = STRATEGIES[name]
    for field in dataclasses.fields(strategy_class):
        if field.name not in values and field.default is dataclasses.MISSING:
            raise OptionError(f"{name} needs {field.name}: for instance {name}:{field.name}={EXAMPLES[field.name]}")
    return StrategySpec(name, strategy_class(**values))


def parameters_of(spec: str) -> list[str]:
    """The names of the parameters that a strategy takes.

    Raises:
        OptionError: an unknown strategy.
    """
    return list(parameter_types(STRATEGIES[strategy_name(spec)]))


def strategy_name(spec: str) -> str:
    """Return the name in a strategy with or without parameters, as ``STRATEGIES`` has it; imports no model code.

    Raises:
        OptionError: an unknown strategy.
    """
    given = spec.partition(":")[0].strip()
    name = given.lower().replace("_", "-")
    if name not in STRATEGIES:
        raise OptionError(f"unknown strategy {given!r}{nearest(name, STRATEGIES)}")
    return name


def _inline(spec: str, inline: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    name = None
    for part in inline.split(","):
        before, equals, value = part.partition("=")
        if equals:
            name = before.strip()
            parameters[name] = value
        elif name is not None:
            parameters[name] += f",{part}"  # a list goes on, or a text with a comma in it
        elif part.strip():
            raise OptionError(
                f"strategy {spec!r}: {part.strip()!r} is no parameter; expected name:parameter=value,parameter=value"
            )
    return parameters


# What a parameter without a default may be, for the message that asks for it.
EXAMPLES = {"amateur": "amateur", "lower_layers": "0.5,0.75", "context": "TEXT"}
