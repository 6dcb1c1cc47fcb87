"""What a request may ask for: a strategy with its parameters, checked before it enters the batch."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from decoding.errors import DecodingError, OptionError, nearest, shown
from decoding.kernels.contrast import FUSIONS
from decoding.kernels.contrast.weighted import FORMS
from decoding.kernels.layer_divergence import KINDS
from decoding.models.layer_numbers import dola_layers, layer_numbers, require_layers
from decoding.parameters import (
    plain_numbers,
    require_choice,
    require_count,
    require_flag,
    require_number,
    require_range,
)
from decoding.serving.vllm.readers import EngineReaders

__all__ = [
    "GROUP",
    "PARAMETERS",
    "REQUESTS",
    "STRATEGY",
    "ContextAwareRequest",
    "ContrastiveDecodingRequest",
    "ContrastiveSearchRequest",
    "DoLaRequest",
    "GuidanceRequest",
    "LOLRequest",
    "PlainRequest",
    "Request",
    "SecondPromptRequest",
    "requested",
]

STRATEGY = "strategy"  # the key that names it
PLAIN = "none"  # the model's own logits
# The key that tells the sampler's processor which group a request belongs to, and its place in it.
GROUP = "_group"
# What vLLM itself puts beside a request's fields.
VLLMS_OWN = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")


@dataclass(frozen=True)
class Request(ABC):
    """A strategy's parameters, of one request. Fields have the names, defaults and ranges of the strategy's class."""

    name: ClassVar[str]
    needs_amateur: ClassVar[bool] = False
    masks: ClassVar[bool] = False  # implausible tokens, by a field alpha

    @property
    @abstractmethod
    def kind(self) -> Hashable:
        """What rows must have in common to be computed in one launch."""

    def followers(self, engine: EngineReaders) -> int:
        """The number of further readings that the request has in each step, each of them a request beside it."""
        return int(self.needs_amateur and engine.adapter)

    def on(self, engine: EngineReaders) -> Request:
        """The request with its layers as numbers of this engine's model.

        Raises:
            OptionError: the engine has no such reader.
        """
        if self.needs_amateur and engine.amateur is None:
            raise OptionError(
                f'{self.name}: this engine has no amateur; start it with one ("amateur": a model\'s folder or name)'
            )
        return self


@dataclass(frozen=True)
class MaskedRequest(Request):
    """A request with plausibility's α in [0, 1]."""

    alpha: float = 0.1
    masks: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_range("alpha", self.alpha, 0.0, 1.0)


@dataclass(frozen=True)
class DoLaRequest(MaskedRequest):
    """DoLa; see :class:`decoding.DoLa`. Each row chooses its own layer."""

    layers: str | Sequence[int] = "high"
    divergence: str = "dola"
    final_norm: bool = False
    name: ClassVar[str] = "dola"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("divergence", self.divergence, KINDS)
        object.__setattr__(self, "final_norm", flag("final_norm", self.final_norm))
        if isinstance(self.layers, str) and self.layers in ("low", "high"):
            return
        layers = as_list(self.layers)
        whole = isinstance(layers, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in layers)
        if not whole or not layers:
            raise OptionError(f"layers={shown(self.layers)}: must be low, high, or layer numbers such as [8, 10, 12]")
        object.__setattr__(self, "layers", tuple(sorted(set(layers))))

    @property
    def kind(self) -> Hashable:
        """Divergences of both kinds, and exits with and without the norm, are computed apart."""
        return type(self), self.divergence, self.final_norm

    def on(self, engine: EngineReaders) -> DoLaRequest:
        """The request with numbers of layers."""
        if isinstance(self.layers, str):
            layers = dola_layers(self.layers, engine.depth, engine.tied)
            if not layers:
                raise OptionError(f"layers={self.layers!r}: none of the model's {engine.depth} layers; give numbers")
        else:
            layers = tuple(self.layers)
        engine.check_layers("layers", self.layers, layers)
        return dataclasses.replace(self, layers=layers)


@dataclass(frozen=True)
class ContrastiveDecodingRequest(MaskedRequest):
    """Contrastive decoding over the engine's amateur; see :class:`decoding.ContrastiveDecoding`."""

    beta: float = 0.5
    form: str = "logits"
    amateur_temperature: float = 1.0
    name: ClassVar[str] = "contrastive-decoding"
    needs_amateur: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("beta", self.beta, 0.0)
        require_choice("form", self.form, FORMS)
        require_number("amateur_temperature", self.amateur_temperature, 0.0, open_=True)
        if self.form == "logits" and self.amateur_temperature != 1:
            raise OptionError(
                f"amateur_temperature={shown(self.amateur_temperature)}: must be 1 with form='logits', where β alone "
                "weighs the amateur; form='log_probs' has a temperature"
            )

    @property
    def kind(self) -> Hashable:
        """Logits and log-probabilities are computed apart."""
        return type(self), self.form


@dataclass(frozen=True)
class LOLRequest(MaskedRequest):
    """LOL over the engine's amateur, without guidance; see :class:`decoding.LOL`."""

    lower_layers: Sequence[int | float] | None = None  # must be given
    amateur_weight: float = 1.0
    lower_amateur_weight: float = 1.0
    fusion_weight: float = 0.5
    fusion: str = "static"
    final_norm: bool = True
    name: ClassVar[str] = "lol"
    needs_amateur: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("amateur_weight", "lower_amateur_weight", "fusion_weight"):
            require_number(name, getattr(self, name), 0.0)
        require_choice("fusion", self.fusion, FUSIONS)
        object.__setattr__(self, "final_norm", flag("final_norm", self.final_norm))
        layers = as_list(self.lower_layers)
        require_layers("lower_layers", layers)
        object.__setattr__(self, "lower_layers", tuple(layers))

    @property
    def kind(self) -> Hashable:
        """Both fusions, and exits with and without the norm, are computed apart."""
        return type(self), self.fusion, self.final_norm

    def on(self, engine: EngineReaders) -> LOLRequest:
        """The request with numbers of layers; none where their weight leaves them out."""
        super().on(engine)
        assert self.lower_layers is not None
        fused = self.fusion == "entropy" or self.fusion_weight > 0
        layers = layer_numbers(self.lower_layers, engine.depth) if fused else ()
        engine.check_layers("lower_layers", self.lower_layers, layers)
        return dataclasses.replace(self, lower_layers=layers)


@dataclass(frozen=True)
class SecondPromptRequest(Request):
    """A request that the model reads after another prompt too, beside a second request that takes each step with it."""

    second_field: ClassVar[str]

    @property
    def second(self) -> str | Sequence[int] | None:
        """The other prompt: text, token ids, or None for the last token of the request's own."""
        return getattr(self, self.second_field)

    @property
    def kind(self) -> Hashable:
        """All rows of a class are computed together."""
        return type(self)

    def followers(self, engine: EngineReaders) -> int:
        """One, with the other prompt."""
        return 1

    def on(self, engine: EngineReaders) -> Request:
        """The request.

        Raises:
            OptionError: the engine reads no second prompts.
        """
        if not engine.second_prompts:
            raise OptionError(f'{self.name}: this engine reads no second prompts; start it with "second_prompts": true')
        return self

    def _check_second(self) -> None:
        given = self.second
        if isinstance(given, Sequence) and not isinstance(given, str):
            if not given or not all(isinstance(token, int) and not isinstance(token, bool) for token in given):
                raise OptionError(f"{self.second_field}={shown(given)}: must be text, or at least one token id")
            object.__setattr__(self, self.second_field, tuple(given))
        elif not isinstance(given, str) or not given:
            raise OptionError(f"{self.second_field}={shown(given)}: must be text, or token ids")


@dataclass(frozen=True)
class ContextAwareRequest(SecondPromptRequest):
    """Context-aware decoding of a prompt with a context; see :class:`decoding.ContextAware`.

    Args:
        prompt_without_context: the same prompt without its context, text or token ids.
        alpha: α >= 0.
    """

    prompt_without_context: str | Sequence[int] = ""
    alpha: float = 0.5
    name: ClassVar[str] = "context-aware"
    second_field: ClassVar[str] = "prompt_without_context"

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, 0.0)
        self._check_second()


@dataclass(frozen=True)
class GuidanceRequest(SecondPromptRequest):
    """Classifier-free guidance; see :class:`decoding.Guidance`.

    Args:
        negative: a prompt in place of the request's own, text or token ids; None for the last token of its own.
        scale: γ >= 0.
    """

    negative: str | Sequence[int] | None = None
    scale: float = 1.5
    name: ClassVar[str] = "guidance"
    second_field: ClassVar[str] = "negative"

    def __post_init__(self) -> None:
        require_number("scale", self.scale, 0.0)
        if self.negative is not None:
            self._check_second()


@dataclass(frozen=True)
class PlainRequest(Request):
    """The model's own logits, on an engine that has a strategy for requests that name none."""

    name: ClassVar[str] = PLAIN

    @property
    def kind(self) -> Hashable:
        """All rows are taken together."""
        return type(self)


@dataclass(frozen=True)
class ContrastiveSearchRequest(Request):
    """Contrastive search; see :class:`decoding.ContrastiveSearch`. The whole text counts as history."""

    penalty_alpha: float = 0.6
    top_k: int = 4
    name: ClassVar[str] = "contrastive-search"

    def __post_init__(self) -> None:
        require_range("penalty_alpha", self.penalty_alpha, 0.0, 1.0)
        require_count("top_k", self.top_k, 1, " to the size of the vocabulary")

    @property
    def kind(self) -> Hashable:
        """All searches are alike."""
        return type(self)

    def followers(self, engine: EngineReaders) -> int:
        """One for each candidate."""
        return self.top_k

    def on(self, engine: EngineReaders) -> Request:
        """The request.

        Raises:
            OptionError: the engine reads fewer candidates.
        """
        if self.top_k > engine.candidates:
            reads = f"at most {engine.candidates} candidates" if engine.candidates else "no candidates"
            raise OptionError(
                f"{self.name}: top_k={self.top_k}: this engine reads {reads} of a request; start it with "
                f'"candidates": {self.top_k}'
            )
        return self


REQUESTS: dict[str, type[Request]] = {
    request.name: request
    for request in (
        DoLaRequest,
        ContrastiveDecodingRequest,
        LOLRequest,
        ContextAwareRequest,
        GuidanceRequest,
        ContrastiveSearchRequest,
    )
}


# The strategies that have a parameter, by its name.
PARAMETERS: dict[str, list[str]] = {}
for _name, _request in REQUESTS.items():
    for _field in dataclasses.fields(_request):
        PARAMETERS.setdefault(_field.name, []).append(_name)


def requested(fields: Mapping[str, Any], engine: EngineReaders) -> Request | None:
    """The strategy that flat fields ask for, such as ``{"strategy": "dola", "alpha": 0.2}``; None where it is "none".

    Args:
        fields: a request's ``vllm_xargs``, or an engine's own strategy. Numbers may be numbers or text, lists lists or
            text with commas.
        engine: the engine's readers.

    Raises:
        OptionError: an unknown name, a parameter out of range, or a reader that the engine does not have.
    """
    given = {key: value for key, value in fields.items() if key != GROUP and key not in VLLMS_OWN}
    name = given.pop(STRATEGY)
    if name == PLAIN:
        if given:
            raise OptionError(f"strategy 'none' has no parameters, got {', '.join(map(str, given))}")
        return None
    if not isinstance(name, str) or name not in REQUESTS:
        raise OptionError(f"strategy={shown(name)}{nearest(str(name), [*REQUESTS, PLAIN])}")
    request_class = REQUESTS[name]
    known = [field.name for field in dataclasses.fields(request_class)]
    for key in given:
        if key not in known:
            raise OptionError(f"{name}: no parameter {key!r}{nearest(str(key), known)}")
    try:
        texts = {getattr(request_class, "second_field", None)}
        values = {key: value if key in texts else as_number(value) for key, value in given.items()}
        return request_class(**values).on(engine)
    except DecodingError as error:
        raise OptionError(f"{name}: {error}" if not str(error).startswith(name) else str(error)) from error


def as_number(value: Any) -> Any:
    """A number given as text as a number; anything else as it is."""
    if not isinstance(value, str):
        return value
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def as_list(value: Any) -> Any:
    """Layers given as text with commas, or as one number, as a list; anything else as it is."""
    if isinstance(value, str):
        value = [as_number(item.strip()) for item in value.replace(";", ",").split(",") if item.strip()]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = [value]
    return plain_numbers(value)


def flag(name: str, value: Any) -> bool:
    """True or False, which the fields of a request have as 1 and 0 or as text too.

    Raises:
        OptionError: anything else.
    """
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    require_flag(name, value)
    return bool(value)
