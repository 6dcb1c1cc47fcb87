"""Strategies by name: those of this library, the baselines of transformers, and those of other packages.

The names need no model code: a strategy's class is imported when it is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decoding.errors import OptionError, nearest
from decoding.strategies.parameters_text import as_results, as_text, from_text, parameter_types
from decoding.strategies.registration import StrategyRegistry

__all__ = [
    "NOT_EXPLAINED",
    "STRATEGIES",
    "StrategySpec",
    "candidates_of",
    "example_of",
    "exportable_strategies",
    "inline_parameters",
    "parameters_of",
    "parse_strategy",
    "register",
    "scorable_strategies",
    "strategy_name",
]

_BASELINES = "decoding.strategies.baselines"

# A new strategy is one line here: its fields are its parameters.
STRATEGIES = StrategyRegistry(
    {
        "contrastive-search": "decoding.strategies.contrastive_search.strategy:ContrastiveSearch",
        "adaptive-contrastive-search": "decoding.strategies.contrastive_search.adaptive:AdaptiveContrastiveSearch",
        "contrastive-decoding": "decoding.strategies.contrastive_decoding:ContrastiveDecoding",
        "dola": "decoding.strategies.dola:DoLa",
        "context-aware": "decoding.strategies.context_aware:ContextAware",
        "lol": "decoding.strategies.lol:LOL",
        "sled": "decoding.strategies.sled:SLED",
        "deco": "decoding.strategies.deco:DeCo",
        "weighted-contrast": "decoding.strategies.weighted_contrast:WeightedContrast",
        "guidance": "decoding.strategies.guidance:Guidance",
        "adaptive-context": "decoding.strategies.adaptive_context:AdaptiveContext",
        "documents": "decoding.strategies.documents:Documents",
        "proxy-tuning": "decoding.strategies.proxy_tuning:ProxyTuning",
        "safe-decoding": "decoding.strategies.safe_decoding:SafeDecoding",
        "skipped-layers": "decoding.strategies.degraded_selves:SkippedLayers",
        "masked-heads": "decoding.strategies.degraded_selves:MaskedHeads",
        "expert-contrast": "decoding.strategies.degraded_selves:ExpertContrast",
        "image-contrast": "decoding.strategies.image_contrast:ImageContrast",
        "audio-contrast": "decoding.strategies.audio_contrast:AudioContrast",
        "source-contrast": "decoding.strategies.source_contrast:SourceContrast",
        "fsd": "decoding.strategies.fsd:FSD",
        "top-n-sigma": "decoding.strategies.truncation_samplers:TopNSigma",
        "p-less": "decoding.strategies.truncation_samplers:PLess",
        "greedy": f"{_BASELINES}:Greedy",
        "sampling": f"{_BASELINES}:Sampling",
        "top-k": f"{_BASELINES}:TopK",
        "nucleus": f"{_BASELINES}:Nucleus",
        "typical": f"{_BASELINES}:Typical",
        "beam": f"{_BASELINES}:Beam",
    }
)

register = STRATEGIES.register

NOT_EXPLAINED = ("beam",)
"""Strategies that do not choose token after token, so that :func:`decoding.explain` has nothing to explain."""


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
        """Every parameter and its value, those left at their default included.

        Left out are those of fields with ``metadata={"added_later": True}`` that have their default: samples of
        evaluations are kept under hashes of these, and must be found again.
        """
        later = {
            field.name: field.default
            for field in dataclasses.fields(self.strategy)
            if field.metadata.get("added_later", False)
        }
        values = {name: getattr(self.strategy, name) for name in parameter_types(type(self.strategy))}
        return {name: value for name, value in values.items() if name not in later or value != later[name]}

    @property
    def recorded(self) -> dict[str, Any]:
        """The parameters as results and other files that are not read again have them; see :func:`as_results`."""
        return {name: as_results(value) for name, value in self.parameters.items()}

    @property
    def label(self) -> str:
        """Name and parameters, as in ``contrastive-search(penalty_alpha=0.6, top_k=4)``; not those that are off."""
        inside = ", ".join(f"{name}={as_text(value)}" for name, value in self._given.items())
        return f"{self.name}({inside})" if inside else self.name

    @property
    def spec(self) -> str:
        """The text that :func:`parse_strategy` reads, as in ``contrastive-search:top_k=6``; defaults are left out."""
        default = {field.name: field.default for field in dataclasses.fields(self.strategy)}
        changed = {name: value for name, value in self._given.items() if value != default[name]}
        inside = ",".join(f"{name}={as_text(value)}" for name, value in changed.items())
        return f"{self.name}:{inside}" if inside else self.name

    @property
    def _given(self) -> dict[str, Any]:
        """The parameters but for those that are None, as they are by default."""
        off = {field.name for field in dataclasses.fields(self.strategy) if field.default is None}
        return {name: value for name, value in self.parameters.items() if value is not None or name not in off}

    def with_tokenizer(self, tokenizer: Any) -> StrategySpec:
        """The spec with the tokenizer of the model, which strategies that have texts need."""
        return dataclasses.replace(self, strategy=self.strategy.with_tokenizer(tokenizer))

    def in_language(self, language: str) -> StrategySpec:
        """The spec with texts in a language, where its guidance is in several.

        Raises:
            OptionError: there is no guidance in this language.
        """
        guidance = getattr(self.strategy, "guidance", None)
        if guidance != "default" and not isinstance(guidance, Mapping):
            return self
        return dataclasses.replace(self, strategy=dataclasses.replace(self.strategy, language=language))

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
    if not isinstance(spec, str):
        raise OptionError(f"strategy={spec!r}: must be a name, perhaps with parameters, such as dola:alpha=0.2")
    name = strategy_name(spec)
    texts = inline_parameters(spec) | dict(settings or {})
    types = parameter_types(STRATEGIES[name])
    values = {}
    for parameter, text in texts.items():
        if parameter not in types:
            if not types:
                raise OptionError(f"{name} has no parameter {parameter!r}: it takes none")
            raise OptionError(f"{name} has no parameter {parameter!r}{nearest(parameter, types)}")
        values[parameter] = from_text(parameter, text.strip(" "), types[parameter])  # a text may end its line
    for parameter, example in _required(STRATEGIES[name]).items():
        if parameter not in values:
            instance = f": for instance {name}:{parameter}={example}" if example else ""
            raise OptionError(f"{name} needs {parameter}{instance}")
    return StrategySpec(name, STRATEGIES[name](**values))


def example_of(name: str) -> str:
    """A spec of a strategy with an example of each parameter that it needs.

    Examples stand in the fields: ``amateur: Any = field(metadata={"example": "amateur"})``.

    Raises:
        KeyError: an unknown strategy.
    """
    inline = ",".join(f"{parameter}={example}" for parameter, example in _required(STRATEGIES[name]).items())
    return f"{name}:{inline}" if inline else name


def candidates_of(spec: str) -> list[str]:
    """The strategies that a strategy with alternatives stands for, as text that :func:`parse_strategy` reads.

    ``|`` stands between the values of a parameter: ``dola:layers=low|high,alpha=0.1`` is two strategies. A parameter
    that is not given has the values of its field, ``metadata={"grid": (0.25, 0.5)}``, or else its default. A field with
    ``"grid_with": "guidance"`` has them where ``guidance`` is given. The combinations come in the order of the fields,
    those of the last field first.

    Raises:
        OptionError: an unknown strategy, or text that is no parameter.

    Example:
        >>> candidates_of("dola:layers=low|high,final_norm=true")
        ['dola:layers=low,final_norm=true', 'dola:layers=high,final_norm=true']
    """
    name = strategy_name(spec)
    values = {parameter: text.split("|") for parameter, text in inline_parameters(spec).items()}
    for field in dataclasses.fields(STRATEGIES[name]):
        needed = field.metadata.get("grid_with")
        if field.name not in values and "grid" in field.metadata and (needed is None or needed in values):
            values[field.name] = [as_text(value) for value in field.metadata["grid"]]
    order = [field.name for field in dataclasses.fields(STRATEGIES[name])]
    names = sorted(values, key=lambda parameter: order.index(parameter) if parameter in order else len(order))
    combinations = itertools.product(*(values[parameter] for parameter in names))
    return [
        f"{name}:{','.join(map('='.join, zip(names, combination, strict=True)))}" if names else name
        for combination in combinations
    ]


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


def inline_parameters(spec: str) -> dict[str, str]:
    """The parameters in a strategy's spec, as text: of ``dola:layers=8,10,alpha=0.2`` its layers and its alpha.

    Raises:
        OptionError: something that is no parameter.
    """
    parameters: dict[str, str] = {}
    name = None
    for part in spec.partition(":")[2].split(","):
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


def _required(strategy_class: type[Any]) -> dict[str, str]:
    """The parameters without a default, and an example of each."""
    return {
        field.name: field.metadata.get("example", "")
        for field in dataclasses.fields(strategy_class)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
