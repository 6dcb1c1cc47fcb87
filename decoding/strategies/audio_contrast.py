"""A contrast of a speech recogniser with itself on worse sound (Whisper-CD)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from decoding.errors import OptionError, shown
from decoding.kernels.contrast import weighted_contrast
from decoding.parameters import require_count, require_number, require_range
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.input_changes import NoisyAudio, ShiftedAudio, SilentAudio
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["AudioContrast"]

NEGATIVES = ("noise", "silence", "shift")


@dataclass(frozen=True)
class AudioContrast(ContrastStrategy):
    """Contrastive decoding of speech (Whisper-CD): what is heard, against what is written for noise or silence.

    The score is (1 + β)·log p - β·τ·log mean exp(log p_n / τ) over the negatives n, over tokens with p >= α·max p. The
    negatives are the same sound with white noise, silence, and the sound shifted in time. The paper's abstract alone
    could be had (Whisper-CD): the three negatives, β 1, τ 1, 10 dB and 7 s are its; ours are the mean in place of the
    sum (a constant of the row), the plausibility mask, and that noise is added to log-mel features as power. All
    readers go through one forward pass a token.

    Args:
        negatives: one or several of "noise", "silence", "shift".
        beta: β >= 0.
        temperature: τ > 0.
        alpha: α in [0, 1].
        snr: signal-to-noise ratio of the noise, in dB.
        shift: seconds, at least 0.
        seed: of the noise, which is the same for all rows.

    Raises:
        OptionError: a value out of range, or an unknown negative.
        InputError: a call without sound (when it begins).

    Example:
        >>> inputs = processor(waveform, sampling_rate=16000, return_tensors="pt")
        >>> decoding.generate(whisper, **inputs, strategy=AudioContrast(), max_new_tokens=64)
    """

    negatives: str | Sequence[str] = NEGATIVES
    beta: float = field(default=1.0, metadata={"grid": (0.5, 1.0)})
    temperature: float = 1.0
    alpha: float = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    snr: float = 10.0
    shift: float = 7.0
    seed: int = 0
    name: ClassVar[str] = "audio-contrast"
    scorable: ClassVar[bool] = False  # under it text alone has no score, see decoding.score_batch
    media: ClassVar[Literal["image", "audio"] | None] = "audio"
    plausibility_roles: ClassVar[frozenset[str]] = frozenset({EXPERT})

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.negatives
        names = [name.strip() for name in given.replace(";", ",").split(",")] if isinstance(given, str) else given
        known = isinstance(names, (list, tuple)) and names and all(name in NEGATIVES for name in names)
        if not known or len(set(names)) < len(names):
            raise OptionError(f"negatives={shown(given)}: must be one or several of {', '.join(NEGATIVES)}")
        object.__setattr__(self, "negatives", tuple(names))
        require_number("beta", self.beta, 0.0)
        require_number("temperature", self.temperature, 0.0, open_=True)
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_range("snr", self.snr, -100.0, 100.0)
        require_number("shift", self.shift, 0.0)
        require_count("seed", self.seed, 0)

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model on the sound, and on each negative."""
        changes = {
            "noise": NoisyAudio(self.snr, self.seed), "silence": SilentAudio(), "shift": ShiftedAudio(self.shift)
        }  # fmt: skip
        return [Reader(EXPERT), *(Reader(name, change=changes[name]) for name in self.negatives)]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The log-probabilities of the sound, against the mean of those of the negatives."""
        final = logits[EXPERT].final
        negative, expert = self._mean(logits), final.float().log_softmax(-1)
        return Contrast(
            lambda alpha: weighted_contrast([expert, negative], [1 + self.beta, -self.beta], alpha=alpha),
            lambda: final,
            self.alpha,
        )

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """1 + β of the sound, and -β of the mean of the negatives."""
        weights = {EXPERT: ReaderWeights(1 + self.beta)}
        return ContrastParts(weights, {"mean of the negatives": (self._mean(logits), -self.beta)})

    def _mean(self, logits: Mapping[str, ReaderLogits]) -> Tensor:
        """(..., vocab) float32, τ·log mean exp(log p_n / τ)."""
        scaled = [logits[name].final.float().log_softmax(-1) / self.temperature for name in self.negatives]
        return (torch.stack(scaled).logsumexp(0) - math.log(len(scaled))) * self.temperature
