"""Strategies by name, for command lines and configuration files: ours and the baselines of transformers."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union

from decoding.errors import OptionError, nearest
from decoding.generation.strategy import Strategy
from decoding.strategies.baselines import Beam, Greedy, Nucleus, Sampling, TopK, Typical
from decoding.strategies.context_aware import ContextAware
from decoding.strategies.contrast.amateurs import Prompt
from decoding.strategies.contrastive_decoding import ContrastiveDecoding
from decoding.strategies.contrastive_search.strategy import ContrastiveSearch
from decoding.strategies.dola import DoLa
from decoding.strategies.lol import LOL

__all__ = ["STRATEGIES", "StrategySpec", "parse_strategy", "parameters_of"]


# A new strategy is one entry here: its fields are its parameters.
STRATEGIES: dict[str, type[Any]] = {
    "contrastive-search": ContrastiveSearch,
    "contrastive-decoding": ContrastiveDecoding,
    "dola": DoLa,
    "context-aware": ContextAware,
    "lol": LOL,
    "greedy": Greedy,
    "sampling": Sampling,
    "top-k": TopK,
    "nucleus": Nucleus,
    "typical": Typical,
    "beam": Beam,
}


@dataclass(frozen=True)
class StrategySpec:
    """A strategy with all its parameters.

    Attributes:
        name: its name in ``STRATEGIES``.
        strategy: the :class:`decoding.Strategy`, or one of the baselines of this module.
    """

    name: str
    strategy: Any

    @property
    def parameters(self) -> dict[str, Any]:
        """Every parameter and its value, those left at their default included."""
        return {name: getattr(self.strategy, name) for name in _parameter_types(type(self.strategy))}

    @property
    def label(self) -> str:
        """Name and parameters, as in ``contrastive-search(penalty_alpha=0.6, top_k=4)``; not those that are off."""
        inside = ", ".join(f"{name}={_shown(value)}" for name, value in self._given.items())
        return f"{self.name}({inside})" if inside else self.name

    @property
    def spec(self) -> str:
        """What :func:`named` makes this choice of, as in ``contrastive-search:penalty_alpha=0.6,top_k=4``."""
        inside = ",".join(f"{name}={_shown(value)}" for name, value in self._given.items())
        return f"{self.name}:{inside}" if inside else self.name

    @property
    def _given(self) -> dict[str, Any]:
        """The parameters but for those that are None, as they are by default."""
        off = {field.name for field in dataclasses.fields(self.strategy) if field.default is None}
        return {name: value for name, value in self.parameters.items() if value is not None or name not in off}

    def with_tokenizer(self, tokenizer: Any) -> StrategySpec:
        """The choice with the tokenizer of the model, which strategies with texts of their own need."""
        if not isinstance(self.strategy, Strategy):
            return self
        return dataclasses.replace(self, strategy=self.strategy.with_tokenizer(tokenizer))

    @property
    def is_stochastic(self) -> bool:
        """Whether tokens are drawn at random."""
        return bool(getattr(self.strategy, "is_stochastic", False))

    def check(self, model: Any) -> None:
        """Raise OptionError where the parameters do not fit the model."""
        if isinstance(self.strategy, Strategy):
            self.strategy.check(model)
        elif isinstance(self.strategy, Sampling):
            vocab = model.config.get_text_config(decoder=True).vocab_size
            if self.strategy.top_k > vocab:
                raise OptionError(
                    f"top_k={self.strategy.top_k}: the model's vocabulary has {vocab} tokens; accepted are 0 to {vocab}"
                )


def parse_strategy(spec: str, settings: Mapping[str, str] | None = None) -> StrategySpec:
    """The strategy that a name, with or without parameters, stands for.

    Args:
        spec: a name of ``STRATEGIES``, perhaps with parameters: ``sampling`` or ``sampling:temperature=0.8,top_p=0.9``.
            In lists, ``;`` does as well as ``,``.
        settings: parameters as strings; they go before those in ``spec``.

    Raises:
        OptionError: an unknown strategy or parameter (with the nearest ones), or a value that is not accepted.

    Example:
        >>> named("contrastive-search", {"top_k": "5"}).label
        'contrastive-search(penalty_alpha=0.6, top_k=5)'
    """
    given, _, inline = spec.partition(":")
    name = _name(given)
    texts = _inline(spec, inline) | dict(settings or {})
    kinds = _parameter_types(STRATEGIES[name])
    values = {}
    for parameter, text in texts.items():
        if parameter not in kinds:
            if not kinds:
                raise OptionError(f"{name} has no parameter {parameter!r}: it takes none")
            raise OptionError(f"{name} has no parameter {parameter!r}{nearest(parameter, kinds)}")
        values[parameter] = _parsed(parameter, text.strip(), kinds[parameter])
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
    return list(_parameter_types(STRATEGIES[_name(spec.partition(":")[0])]))


def _name(given: str) -> str:
    name = given.strip().lower().replace("_", "-")
    if name not in STRATEGIES:
        raise OptionError(f"unknown strategy {given.strip()!r}{nearest(name, STRATEGIES)}")
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
                f"strategy {spec!r}: {part.strip()!r} is no parameter; accepted is name:parameter=value,parameter=value"
            )
    return parameters


# What a parameter without a default may be, for the message that asks for it.
EXAMPLES = {"amateur": "amateur", "lower_layers": "0.5,0.75", "context": "TEXT"}

_KINDS: dict[Any, str] = {
    int: "whole numbers",
    float: "numbers",
    bool: "true or false",
    str: "text",
    Sequence: "numbers with commas between",
}


def _parameter_types(strategy_class: type[Any]) -> dict[str, Any]:
    """The fields that a string can fill, with their types. The others (a tokenizer) have no place on a command line."""
    hints = typing.get_type_hints(strategy_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(strategy_class) if field.repr}


def _parsed(name: str, text: str, hint: Any) -> Any:
    """A value of one of the types of a hint: the first that the text can be."""
    kinds = _kinds(hint)
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        try:
            if kind in (int, float):
                return kind(text)
            if kind is Sequence:
                return tuple(_number(each) for each in text.replace(";", ",").split(","))
        except ValueError:
            continue
        if kind is str:
            return text
    accepted = " or ".join(_KINDS[kind] for kind in kinds if kind in _KINDS)
    raise OptionError(f"{name}={text!r}: accepted are {accepted}{' or none' if type(None) in kinds else ''}")


def _kinds(hint: Any) -> list[Any]:
    """What a hint accepts, text last: of text everything would be one."""
    if hint is Any:
        return [type(None), str]
    origin = typing.get_origin(hint)
    if origin in (Union, types.UnionType):
        kinds = [kind for each in typing.get_args(hint) for kind in _kinds(each)]
    elif origin is Literal:
        kinds = [str]
    else:
        kinds = [origin or hint]
    return sorted(kinds, key=lambda kind: kind is str)


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _shown(value: Any) -> str:
    """A value as a command line would give it; of a model, its name."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value))
    if isinstance(value, Prompt):
        return f"prompt:{value.text}"
    if hasattr(value, "get_output_embeddings"):
        return str(getattr(value, "name_or_path", "") or type(value).__name__)
    return str(value)
