"""Second readers with the generating model's weights: after another prompt, or with a part of the model taken away.

What a strategy is given as a reader, :func:`decoding.strategies.contrast.amateurs.second_reader` makes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from decoding.errors import OptionError, nearest, shown
from decoding.generation.roles import EXPERT
from decoding.models.degradation import Degradation
from decoding.parameters import plain_number, plain_numbers, require_choice, require_count, require_number
from decoding.strategies.contrast.heads_text import heads_as_text, heads_from_text
from decoding.strategies.contrast.prompt import Prompt
from decoding.strategies.contrast.texts import texts_of

__all__ = ["EXPERT", "Inputs", "LastToken", "OtherPrompt", "Self", "as_kind"]


@dataclass(frozen=True)
class OtherPrompt:
    """The same model after a whole other prompt, in place of the row's own: a negative prompt.

    Args:
        text: text, which is tokenized with the tokenizer's special tokens; token ids; or a sequence of one of these a
            row.

    Raises:
        OptionError: something else, or an empty text.
    """

    text: Any

    def __post_init__(self) -> None:
        texts_of(self.text, "the other prompt")

    def __str__(self) -> str:
        """Write it as a command line would."""
        return f"instead:{self.text}"


class Inputs:
    """The same model on the same prompt with other inputs beside it: other images, other sound, another encoder's text.

    Args:
        named: inputs of the model, by the names that its ``generate`` takes them by, in place of the call's; None
            leaves one out.

    Raises:
        OptionError: nothing is given.

    Example:
        >>> ContrastiveDecoding(Inputs(pixel_values=processor(images=other, return_tensors="pt")["pixel_values"]))
    """

    def __init__(self, **named: Any) -> None:
        if not named:
            raise OptionError("Inputs(): nothing is given that would be another input; give for instance pixel_values")
        self.named = named

    def __repr__(self) -> str:
        """Name the inputs."""
        return f"Inputs({', '.join(f'{name}=...' for name in self.named)})"


@dataclass(frozen=True)
class LastToken:
    """The same model after the prompt's last token alone: what follows without the prompt."""

    def __str__(self) -> str:
        """Write it as a command line would."""
        return "last-token"


@dataclass(frozen=True)
class Self:
    """The same model, degraded: with layers, attention heads, channels or experts taken away, or quantised.

    Its rows go through the forward pass of the others, but for a quantised model, whose weights are a second copy.

    Args:
        skip_layers: decoder layers that change nothing, counted from 0.
        mask_heads: attention heads whose output is zero: a mapping from layers to lists of heads, counted from 0.
        dropout: share of the channels that each layer adds to which is dropped, in [0, 1). They are drawn once a layer.
        seed: of the draw.
        expert_rank: of a mixture of experts, the rank of the only expert that a token is sent to, 1 for the best.
        quantised: "int8" or "int4", linear layers with quantised weights; needs the package optimum-quanto.

    Raises:
        OptionError: a value out of range. A layer, head or expert that the model does not have is one when a call
            begins.

    Example:
        >>> ContrastiveDecoding(Self(skip_layers=range(12, 16)))
    """

    skip_layers: Sequence[int] = ()
    mask_heads: Mapping[int, Sequence[int]] | Sequence[tuple[int, Sequence[int]]] = ()
    dropout: float = 0.0
    seed: int = 0
    expert_rank: int | None = None
    quantised: Literal["int8", "int4"] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain_number(getattr(self, field.name)))
        object.__setattr__(self, "skip_layers", _numbers("skip_layers", self.skip_layers))
        object.__setattr__(self, "mask_heads", _heads(self.mask_heads))
        require_number("dropout", self.dropout, 0.0)
        if self.dropout >= 1:
            raise OptionError(f"dropout={shown(self.dropout)}: must be a number from 0 up to 1, 1 left out")
        require_count("seed", self.seed, 0)
        if self.expert_rank is not None:
            require_count("expert_rank", self.expert_rank, 1, " (the best), or None")
        if self.quantised is not None:
            require_choice("quantised", self.quantised, ("int8", "int4"))
            if self.degradation is not None:
                raise OptionError("quantised: has weights of its own; leave out the other ways to degrade the model")

    @property
    def degradation(self) -> Degradation | None:
        """What is taken from the model; None for nothing."""
        degradation = Degradation(
            tuple(self.skip_layers), tuple((layer, tuple(heads)) for layer, heads in _pairs(self.mask_heads)),
            self.dropout, self.seed if self.dropout else 0, self.expert_rank,
        )  # fmt: skip
        return None if degradation == Degradation() else degradation

    @property
    def heads_text(self) -> str:
        """The masked heads as text, ``5.0+5.3`` (layer.head)."""
        return heads_as_text([(layer, head) for layer, heads in _pairs(self.mask_heads) for head in heads])

    def __str__(self) -> str:
        """Write it as a command line would."""
        parts = {
            "skip_layers": "+".join(map(str, self.skip_layers)), "mask_heads": self.heads_text,
            "dropout": self.dropout or "", "seed": self.seed or "",
            "expert_rank": self.expert_rank or "", "quantised": self.quantised or "",
        }  # fmt: skip
        given = ";".join(f"{name}={value}" for name, value in parts.items() if value != "")
        return f"self:{given}" if given else "self"


def as_kind(value: Any) -> Any:
    """The kind of reader that a text or a stored value stands for; anything else as it is.

    Args:
        value: "prompt:TEXT", "instead:TEXT", "last-token", "self", "self:skip_layers=8-11;dropout=0.2", or a mapping
            with ``text`` or ``instead``, as exported folders have it.

    Raises:
        OptionError: a degraded self that cannot be read.
    """
    if isinstance(value, Mapping) and len(value) == 1:
        for key, kind in (("text", Prompt), ("instead", OtherPrompt)):
            if key in value:
                return kind(value[key])
    if not isinstance(value, str):
        return value
    name, colon, text = value.partition(":")
    name = name.strip()
    if colon and name == "prompt":
        return Prompt(text.strip(" "))  # as of every text, the end of its line stays
    if colon and name == "instead":
        return OtherPrompt(text.strip(" "))
    if value.strip() == "last-token":
        return LastToken()
    return _self_from_text(text if colon else "") if name == "self" else value


def _self_from_text(text: str) -> Self:
    given: dict[str, Any] = {}
    names = [field.name for field in fields(Self)]
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, value = (item.strip() for item in part.partition("="))
        if not equals or name not in names:
            raise OptionError(f"self:{text}: {part!r} is none of its options{nearest(name, names)}")
        try:
            given[name] = _option(name, value)
        except OptionError:  # which says more
            raise
        except ValueError:
            raise OptionError(
                f"self:{text}: {part!r} cannot be read; expected for instance self:skip_layers=8-11, "
                "self:mask_heads=5.0+5.3 (layer.head), self:dropout=0.2 or self:expert_rank=2"
            ) from None
    return Self(**given)


def _option(name: str, text: str) -> Any:
    if name == "skip_layers":
        layers: list[int] = []
        for item in text.split("+"):
            first, dash, last = item.partition("-")
            layers += range(int(first), int(last if dash else first) + 1)
        return layers
    if name == "mask_heads":
        return heads_from_text(text, name)
    if name == "quantised":
        return text
    return float(text) if name == "dropout" else int(text)


def _numbers(name: str, values: Any) -> tuple[int, ...]:
    values = [values] if isinstance(values, int) and not isinstance(values, bool) else values
    plain = plain_numbers(list(values) if isinstance(values, range) else values)
    is_list = isinstance(plain, Sequence) and not isinstance(plain, (str, bytes))
    if not is_list or any(not isinstance(value, int) or isinstance(value, bool) or value < 0 for value in plain):
        raise OptionError(f"{name}={shown(values)}: must be whole numbers from 0, such as [8, 9]")
    return tuple(sorted(set(plain)))


def _heads(given: Any) -> tuple[tuple[int, tuple[int, ...]], ...]:
    try:
        pairs = [(_numbers("mask_heads", layer), _numbers("mask_heads", heads)) for layer, heads in _pairs(given)]
    except (TypeError, ValueError, OptionError):
        pairs = [((), ())]
    if any(len(layer) != 1 or not heads for layer, heads in pairs):
        raise OptionError(
            f"mask_heads={shown(given)}: must be a mapping from layers to lists of heads, such as {{5: [0, 3]}}"
        )
    return tuple(sorted((layer[0], heads) for layer, heads in pairs))


def _pairs(mask_heads: Any) -> list[tuple[Any, Any]]:
    return list(mask_heads.items() if isinstance(mask_heads, Mapping) else mask_heads)
