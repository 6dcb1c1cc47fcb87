"""A weighted contrast of any readers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor

from decoding.kernels.contrast.weighted import FORMS
from decoding.kernels.truncation import MASKS
from decoding.parameters import require_choice, require_range
from decoding.strategies.contrast.amateurs import check_reader, reader_text, second_reader
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.contrast.strengths import (
    Gate,
    QuantileGate,
    Strength,
    measured,
    quantile_gate,
    require_diverging,
    require_gate,
    require_strength,
    strength_of,
    strongest_other,
    tokens_of_gate,
)
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.terms import as_terms, change_readers
from decoding.strategies.contrast.terms_text import require_role
from decoding.strategies.contrast.texts import least_rows
from decoding.strategies.contrast.weighted import WeightedStrategy, readers_with_expert

__all__ = ["WeightedContrast"]


@dataclass(frozen=True)
class WeightedContrast(WeightedStrategy):
    """The formula of the family: Σ w·s over readers, under the plausibility of one of them.

    The score of a token is Σ w·s, where s are logits or log-probabilities, over tokens with p >= α·max p of one reader,
    the anchor. With a strength f, a number for each position, it is s_anchor + f·(Σ w·s - s_anchor): 0 is the anchor
    alone. The other contrasts of this library that have no lower layers are this formula with names.

    Args:
        terms: readers with their weights, a sequence of (reader, weight) or (reader, weight, role). A reader is
            "expert", the generating model on the prompt as it is, or whatever
            :class:`decoding.ContrastiveDecoding` takes as an amateur: a model, an adapter, ``Prompt``, ``OtherPrompt``,
            ``LastToken``, ``Self``. As text: "1.5*expert - 0.5*instead:TEXT".
        form: "logits", or "log_probs", each a log-softmax.
        alpha: α in [0, 1]; None lets every token pass.
        mask: what is plausible in place of α: "top-n-sigma", s >= max s - n·σ over the anchor's logits with n 1
            (2411.07641); or "p-less", p >= Σ p² (2509.23234). None for α.
        plausible: the role of the anchor. Without a role of its own a reader's is "reader" and its number in ``terms``,
            from 1.
        weight_by: the strength of each position: "jsd", the Jensen-Shannon divergence (0 to 1) of the anchor from the
            reader beside it with the largest weight; "entropy", of the anchor, in nats; or a function from the readers'
            logits by role, (..., vocab) each, to (...). None is 1 everywhere.
        when: where the strength is not 0: "first 2" (new tokens), "confidence < 0.5" (the anchor's largest
            probability), "entropy > 2", "divergence > 0.1", or a function from the logits by role and the number of new
            tokens (...) before each position to a bool (...). "confidence < quantile 0.2" compares with the measures at
            the row's own earlier new tokens in the call: it is closed where there are fewer than 1/0.2 of them (of a
            quantile q above a half, 1/(1 - q)). None is everywhere.
        tokenizer: the model's; for prompts given as text.
        placement: of a ``Prompt``'s text, see :class:`decoding.ContrastiveDecoding`.

    Raises:
        OptionError: a value out of range, or a role that no reader has.
        ModelError: a reader of other tokens, or one that cannot be loaded (when a call begins).

    Example:
        >>> strategy = WeightedContrast([("expert", 1.5), (Self(skip_layers=[10, 11]), -0.5)], alpha=0.1)
        >>> decoding.generate(model, **inputs, strategy=strategy)
    """

    terms: Any = field(metadata={"example": "1.5*expert - 0.5*self:skip_layers=1", "names_models": change_readers})
    form: Literal["logits", "log_probs"] = "logits"
    alpha: float | None = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    mask: Literal["top-n-sigma", "p-less"] | None = None
    plausible: str = EXPERT
    weight_by: Any = None
    when: Any = None
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = None
    name: ClassVar[str] = "weighted-contrast"

    def __post_init__(self) -> None:
        super().__post_init__()
        terms = as_terms(self.terms)
        object.__setattr__(self, "terms", terms)
        for term in terms.terms:
            check_reader(term.reader, term.role)
        require_choice("form", self.form, FORMS)
        if self.alpha is not None:
            require_range("alpha", self.alpha, 0.0, 1.0)
        if self.mask is not None:
            require_choice("mask", self.mask, tuple(MASKS))
        require_placement(self.placement)
        roles = list(dict.fromkeys([EXPERT, *(term.role for term in terms.terms)]))
        require_role("plausible", self.plausible, roles)
        strength: Strength | None = self.weight_by
        gate: Gate | None = self.when
        require_strength("weight_by", strength)
        require_gate("when", gate)
        require_diverging(strength, gate, self.weights(), self.plausible)

    @property
    def anchor(self) -> str:  # type: ignore[override]
        """The reader whose plausibility counts."""
        return self.plausible

    @property
    def score_form(self) -> str:
        """The form."""
        return self.form

    @property
    def plausibility_alpha(self) -> float | None:
        """α."""
        return self.alpha

    @property
    def plausibility_mask(self) -> Callable[[Tensor], Tensor] | None:
        """The mask."""
        return None if self.mask is None else MASKS[self.mask]

    @property
    def has_strength(self) -> bool:
        """True where the weights depend on the position."""
        return self.weight_by is not None or self.when is not None

    @property
    def contrasted_tokens(self) -> int | None:
        """The n of ``when="first n"``, unless a function measures weights at all tokens."""
        return None if callable(self.weight_by) else tokens_of_gate(self.when)

    @property
    def lasting_roles(self) -> frozenset[str]:
        """The expert, whose cache a call returns, and the anchor."""
        return frozenset({EXPERT, self.anchor})

    def check(self, model: Any) -> None:
        """Raise where a reader cannot be loaded or does not fit the model; loads those that are given by name."""
        self.readers(model, least_rows(*(reader_text(term.reader) for term in self.terms.terms)))

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert, and the other readers in the order of the terms."""
        return readers_with_expert(
            [
                second_reader(term.reader, model, rows, self.tokenizer, placement=self.placement, role=term.role)
                for term in self.terms.terms
                if term.role != EXPERT
            ]
        )

    def weights(self) -> Mapping[str, float]:
        """The weights of the terms; 0 of an expert that is none of them."""
        return {EXPERT: 0.0, **{term.role: term.weight for term in self.terms.terms}}

    def strength(self, logits: Mapping[str, Tensor], new_tokens: Tensor) -> Tensor | None:
        """What ``weight_by`` and ``when`` say."""
        return strength_of(self.weight_by, self.when, logits, self.plausible, self._other, new_tokens)

    @property
    def measured_roles(self) -> frozenset[str]:
        """The readers whose measure a gate compares with a quantile: the anchor, and of a divergence the other too."""
        gate = quantile_gate(self.when)
        if gate is None:
            return frozenset()
        return frozenset({self.plausible, self._other} if gate.measure == "divergence" else {self.plausible})

    def measure(self, logits: Mapping[str, ReaderLogits]) -> Tensor:
        """What the gate compares."""
        finals = dict(zip(*self._summed(logits), strict=True))
        return measured(self._quantile_gate.measure, finals, self.plausible, self._other)

    def after(self, measures: Tensor) -> WeightedContrast:
        """The contrast whose gate knows what was measured before."""
        is_open = self._quantile_gate.is_open(measures)
        known = copy.copy(self)  # whose fields are checked already: every step makes one
        object.__setattr__(known, "when", lambda logits, _: is_open.to(logits[self.plausible].device))
        return known

    @property
    def _quantile_gate(self) -> QuantileGate:
        gate = quantile_gate(self.when)
        assert gate is not None
        return gate

    @property
    def _other(self) -> str:
        """The reader that a divergence is from."""
        return strongest_other(self.weights(), self.plausible) or EXPERT
