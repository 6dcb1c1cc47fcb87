"""The baselines: decoding methods of transformers itself, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from decoding.errors import OptionError
from decoding.models.text_config import vocab_size
from decoding.parameters import require_count, require_number, require_range, store_plain_numbers

__all__ = ["Baseline", "Beam", "Greedy", "Nucleus", "Sampling", "TopK", "Typical"]


class Baseline:
    """Base of the baselines; like a :class:`decoding.Strategy` where transformers' own ``generate`` decodes."""

    name: ClassVar[str]
    is_stochastic: ClassVar[bool] = False
    scorable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        store_plain_numbers(self)

    def with_tokenizer(self, tokenizer: Any) -> Baseline:
        """Return the baseline as it is: it has no texts."""
        return self

    def check(self, model: Any) -> None:
        """Raise OptionError where the parameters do not fit the model."""


@dataclass(frozen=True)
class Greedy(Baseline):
    """The most probable token at each step. Texts are scored by the model's own log-probabilities."""

    name: ClassVar[str] = "greedy"
    scorable: ClassVar[bool] = True


@dataclass(frozen=True)
class Sampling(Baseline):
    """Ancestral sampling from the warped distribution.

    Args:
        temperature: above 0.
        top_k: keep the k most probable tokens; 0 keeps all.
        top_p: in (0, 1], keep the smallest set of tokens with this probability; 1 keeps all.
        typical_p: in (0, 1], keep the tokens whose information content is closest to the entropy, up to this
            probability (Meister et al. 2023); 1 keeps all.
    """

    name: ClassVar[str] = "sampling"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95
    typical_p: float = 1.0
    is_stochastic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number("temperature", self.temperature, 0.0, open_=True)
        require_count("top_k", self.top_k, 0, " (0 keeps every token)")
        for name in ("top_p", "typical_p"):
            require_range(name, getattr(self, name), 0.0, 1.0)
            if getattr(self, name) == 0:
                raise OptionError(f"{name}=0: must be a number above 0 up to 1")

    def check(self, model: Any) -> None:
        """Raise OptionError where top_k is above the size of the model's vocabulary."""
        vocab = vocab_size(model)
        if self.top_k > vocab:
            raise OptionError(f"top_k={self.top_k}: must be 0 to {vocab}, the size of the model's vocabulary")


@dataclass(frozen=True)
class TopK(Sampling):
    """Sampling from the k most probable tokens (Fan et al. 2018)."""

    name: ClassVar[str] = "top-k"
    top_k: int = field(default=50, metadata={"grid": (10, 50)})
    top_p: float = 1.0


@dataclass(frozen=True)
class Nucleus(Sampling):
    """Sampling from the smallest set of tokens with probability top_p (Holtzman et al. 2020)."""

    name: ClassVar[str] = "nucleus"
    top_p: float = field(default=0.95, metadata={"grid": (0.9, 0.95)})


@dataclass(frozen=True)
class Typical(Sampling):
    """Locally typical sampling (Meister et al. 2023)."""

    name: ClassVar[str] = "typical"
    top_p: float = 1.0
    typical_p: float = field(default=0.95, metadata={"grid": (0.2, 0.95)})


@dataclass(frozen=True)
class Beam(Baseline):
    """Beam search.

    Args:
        num_beams: at least 2.
    """

    name: ClassVar[str] = "beam"
    num_beams: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("num_beams", self.num_beams, 2)
