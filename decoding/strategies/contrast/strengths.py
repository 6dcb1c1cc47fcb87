"""The strength of a weighted contrast at each position: what it is measured by, and the gates that close it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.errors import OptionError, shown
from decoding.kernels.contrast import divergence, entropy

__all__ = [
    "STRENGTHS",
    "Gate",
    "QuantileGate",
    "Strength",
    "is_of_position",
    "measured",
    "of_positions",
    "quantile_gate",
    "require_diverging",
    "require_gate",
    "require_strength",
    "strength_of",
    "strongest_other",
    "tokens_of_gate",
]

Strength = str | Callable[[Mapping[str, Tensor]], Tensor]
Gate = str | Callable[[Mapping[str, Tensor], Tensor], Tensor]

STRENGTHS = ("jsd", "entropy")
GATE = re.compile(r"first\s+(\d+)|(confidence|divergence|entropy)\s*([<>])\s*(quantile\s+)?(\d*\.?\d+)")


@dataclass(frozen=True)
class QuantileGate:
    """A gate that compares the measure of a position with those of the row's own earlier new tokens in the call.

    The quantile of n measures is theirs at place q·(n - 1) in order, between two of them in proportion. It is closed
    where there are fewer than 1/q earlier measures, or 1/(1 - q) of a q above a half: no share so small can be told
    among fewer.

    Attributes:
        measure: "confidence", "entropy" or "divergence".
        is_below: True where the gate is open below the quantile, False where above it.
        quantile: q, between 0 and 1.
    """

    measure: str
    is_below: bool
    quantile: float

    @property
    def least(self) -> int:
        """The number of earlier measures from which on it may be open."""
        return math.ceil(1 / min(self.quantile, 1 - self.quantile) - 1e-6)  # 1 / (1 - 0.8) is more than 5

    def is_open(self, measures: Tensor) -> Tensor:
        """(...) True where the gate is open.

        Args:
            measures: (..., n) those of a row's new tokens so far, the last that of the position; NaN where there is
                none.
        """
        earlier, here = measures[..., :-1], measures[..., -1]
        if earlier.shape[-1] < self.least:
            return torch.zeros_like(here, dtype=torch.bool)
        counts = earlier.shape[-1] - earlier.isnan().sum(-1)
        last = (counts - 1).clamp(min=0)[..., None]
        place = self.quantile * last.float()
        below = place.long()
        ordered = earlier.sort(-1).values  # NaN comes last
        low, high = ordered.gather(-1, below), ordered.gather(-1, (below + 1).minimum(last))
        limit = low.lerp(high, place - below)[..., 0]
        return (here < limit if self.is_below else here > limit) & (counts >= self.least)


def require_strength(name: str, value: Any) -> None:
    """Raise OptionError unless a strength is None, "jsd", "entropy" or a function."""
    if value is not None and value not in STRENGTHS and not callable(value):
        raise OptionError(
            f"{name}={shown(value)}: must be jsd (the divergence of the anchor from the other reader), entropy (of the "
            "anchor), or a function from the readers' logits by role to a number for each position"
        )


def require_gate(name: str, value: Any) -> None:
    """Raise OptionError unless a gate is None, a condition such as "first 2" or "confidence < 0.5", or a function."""
    if value is not None and not callable(value) and not (isinstance(value, str) and GATE.fullmatch(value.strip())):
        raise OptionError(
            f"{name}={shown(value)}: must be a condition such as 'first 2' (new tokens), 'confidence < 0.5' (largest "
            "probability of the anchor), 'entropy > 2' (of the anchor, in nats), 'divergence > 0.1' (of the anchor "
            "from the other reader, 0 to 1) or 'confidence < quantile 0.2' (of the row's earlier new tokens), or a "
            "function from the readers' logits by role and the numbers of new tokens to a bool for each position"
        )
    gate = quantile_gate(value)
    if gate is not None and not 0 < gate.quantile < 1:
        raise OptionError(f"{name}={shown(value)}: the quantile must be a number above 0 and below 1")


def require_diverging(by: Any, when: Any, weights: Mapping[str, float], anchor: str) -> None:
    """Raise OptionError where a strength or a gate is a divergence from another reader, and there is none.

    Args:
        by: see :func:`require_strength`.
        when: see :func:`require_gate`.
        weights: of the readers by role.
        anchor: role of the anchor.
    """
    diverges = by == "jsd" or (isinstance(when, str) and when.strip().startswith("divergence"))
    if diverges and strongest_other(weights, anchor) is None:
        raise OptionError("terms: a divergence needs a reader beside the anchor with a weight other than 0")


def tokens_of_gate(when: Any) -> int | None:
    """The n of the gate "first n"; None for other gates."""
    match = GATE.fullmatch(when.strip()) if isinstance(when, str) else None
    return None if match is None or match[1] is None else int(match[1])


def quantile_gate(when: Any) -> QuantileGate | None:
    """The gate of a condition such as "confidence < quantile 0.2"; None for other gates."""
    match = GATE.fullmatch(when.strip()) if isinstance(when, str) else None
    if match is None or match[4] is None:
        return None
    return QuantileGate(match[2], match[3] == "<", float(match[5]))


def is_of_position(when: Any) -> bool:
    """True of a gate as text that a position's own logits decide: neither "first 2" nor a quantile."""
    match = GATE.fullmatch(when.strip()) if isinstance(when, str) else None
    return match is not None and match[1] is None and match[4] is None


def strength_of(
    by: Strength | None, when: Gate | None, logits: Mapping[str, Tensor], anchor: str, other: str, new_tokens: Tensor
) -> Tensor | None:
    """The strength (...) that a measure and a gate give; None where there is neither.

    Args:
        by: see :func:`require_strength`.
        when: see :func:`require_gate`; where it is False, the strength is 0.
        logits: by role (..., vocab).
        anchor: role of the anchor.
        other: role of the reader that the divergence is from.
        new_tokens: (...) the number of tokens between the prompt and each position.
    """
    strength = None
    if by is not None:
        strength = _called(by, logits, anchor) if callable(by) else measured(by, logits, anchor, other)
    if when is not None:
        is_open = when(logits, new_tokens) if callable(when) else _is_open(when, logits, anchor, other, new_tokens)
        is_open = of_positions(is_open, logits[anchor], "what when returned").bool()
        strength = is_open.float() if strength is None else strength * is_open
    return strength


def strongest_other(weights: Mapping[str, float], anchor: str) -> str | None:
    """The role of the reader beside the anchor with the largest weight, whatever its sign; None without another."""
    others = {role: abs(weight) for role, weight in weights.items() if role != anchor and weight != 0}
    return max(others, key=lambda role: others[role]) if others else None


def of_positions(given: Any, logits: Tensor, what: str) -> Tensor:
    """Raise OptionError unless what a function returned is a tensor of one value for each of (..., vocab) logits."""
    if isinstance(given, Tensor) and given.shape == logits.shape[:-1]:
        return given
    kind = f"has shape {tuple(given.shape)}" if isinstance(given, Tensor) else f"is {shown(given)}"
    raise OptionError(f"{what} {kind}; must be a tensor {tuple(logits.shape[:-1])}, a value for each position")


def _called(by: Callable[[Mapping[str, Tensor]], Tensor], logits: Mapping[str, Tensor], anchor: str) -> Tensor:
    strength = of_positions(by(logits), logits[anchor], "what weight_by returned")
    # Readers whose logits are NaN are named elsewhere.
    if not bool(strength.isfinite().all()) and not any(bool(reader.isnan().any()) for reader in logits.values()):
        raise OptionError(
            f"what weight_by returned has {shown(strength[~strength.isfinite()][0].item())}; must be finite"
        )
    return strength


def _is_open(when: str, logits: Mapping[str, Tensor], anchor: str, other: str, new_tokens: Tensor) -> Tensor:
    match = GATE.fullmatch(when.strip())
    assert match is not None
    first, measure, sign, quantile, limit = match.groups()
    if first is not None:
        return new_tokens < int(first)
    if quantile is not None:
        raise OptionError(
            f"when={when!r}: what was measured at earlier tokens is not known here; strategy.after(measures) knows it"
        )
    here = measured(measure, logits, anchor, other)
    return here > float(limit) if sign == ">" else here < float(limit)


def measured(measure: str, logits: Mapping[str, Tensor], anchor: str, other: str) -> Tensor:
    """The measure (...) of each position.

    Args:
        measure: "confidence", the largest probability of the anchor; "entropy", the anchor's, in nats; or "jsd" or
            "divergence", the Jensen-Shannon divergence of the anchor from the other reader, in bits.
        logits: by role (..., vocab).
        anchor: role of the anchor.
        other: role of the other reader.
    """
    if measure == "confidence":
        return logits[anchor].float().softmax(-1).amax(-1)
    if measure == "entropy":
        return entropy(logits[anchor])
    return divergence(logits[anchor], logits[other])
