"""Changed inputs beside the text: noised, blank or no images, noisy, silent or shifted sound, another source sentence.

Each is an :class:`decoding.strategies.contrast.reader_inputs.InputChange`. What is drawn at random is drawn anew for
each image or row from one seed, so that a row's inputs do not depend on its batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError
from decoding.models.text_config import placeholder_tokens
from decoding.strategies.contrast.reader_inputs import CallInputs

__all__ = [
    "BlankImages",
    "GivenInputs",
    "NoImages",
    "NoisedImages",
    "NoisyAudio",
    "OtherLanguage",
    "OtherSource",
    "ShiftedAudio",
    "SilentAudio",
]

STEPS = 1000  # of the diffusion schedule
ALMOST_ZERO = 1e-6  # Idefics takes an image of zeros for padding
SAMPLING_RATE = 16_000  # samples a second, of the waveforms that speech models take
FRAME_RATE = 100  # log-mel frames a second: Whisper's hop is 160 samples
# Whisper's features are (log10(power) + 4) / 4, log10 of at least 1e-10.
MEL_OFFSET, MEL_SCALE, MEL_SILENCE = 4.0, 4.0, 1e-10


class SameInputs:
    """Base of changes: none."""

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        """Return the inputs as they are."""
        return dict(given)

    def prompt(self, tokens: list[int], model: Any) -> list[int]:
        """Return the tokens as they are."""
        return tokens


@dataclass(frozen=True, eq=False)
class GivenInputs(SameInputs):
    """Inputs that a caller gives a reader in place of the expert's.

    Attributes:
        named: by name; None leaves an input out.
    """

    named: Mapping[str, Any]

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        """Put the given ones in place, repeated where a prompt has several rows."""
        changed = {**given, **given.repeated(self.named)}
        return {name: value for name, value in changed.items() if value is not None}


class _Images(SameInputs):
    """Base of changes of every image."""

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        names = [name for name, value in given.items() if name.startswith("pixel_values") and isinstance(value, Tensor)]
        if not names:
            raise InputError(
                "the prompt has no image (pixel_values) that could be changed: give generate() the processor's output, "
                "or take a contrast of texts"
            )
        changed = dict(given)
        for name in names:
            changed[name] = torch.cat([self.changed(image) for image in _images(name, given)])
        return changed

    def changed(self, image: Tensor) -> Tensor:
        raise NotImplementedError


def _images(name: str, given: CallInputs) -> Sequence[Tensor]:
    """The parts of pixel values that are one image each, along the first dimension."""
    values = given[name]
    kind = "video" if "video" in name else "image"
    grid = given.get(f"{kind}_grid_thw")
    if isinstance(grid, Tensor) and int(grid.prod(-1).sum()) == len(values):
        return values.split(grid.prod(-1).tolist())  # patches of one image after another
    return values.split(1)


@dataclass(frozen=True)
class NoisedImages(_Images):
    """Images after a number of steps of a diffusion's forward process, of 1000, as visual contrastive decoding has it.

    x_t = √ᾱ_t·x + √(1 - ᾱ_t)·ε on the processor's pixel values, with β from 1e-5 to 5e-3 along a sigmoid. Source: Leng
    et al., 2311.16922, eq. 2, and its code's schedule.
    """

    step: int = 500
    seed: int = 0

    def changed(self, image: Tensor) -> Tensor:
        """Return one image, noised."""
        betas = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
        kept = float((1 - betas).cumprod(0)[min(self.step, STEPS - 1)])
        noise = _noise(image, self.seed)
        return (math.sqrt(kept) * image.float() + math.sqrt(1 - kept) * noise).to(image.dtype)


@dataclass(frozen=True)
class BlankImages(_Images):
    """Images of one colour, the mean of the processor's normalisation."""

    def changed(self, image: Tensor) -> Tensor:
        """Return an image of ``ALMOST_ZERO``."""
        return torch.full_like(image, ALMOST_ZERO)


@dataclass(frozen=True)
class NoImages(SameInputs):
    """The prompt without what stands for images in it."""

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        """Leave out what is not text."""
        return {}

    def prompt(self, tokens: list[int], model: Any) -> list[int]:
        """Leave out the tokens that stand for images."""
        placeholders = placeholder_tokens(model)
        return [token for token in tokens if token not in placeholders]


class _Audio(SameInputs):
    """Base of changes of waveforms (``input_values``) and Whisper's log-mel features (``input_features``)."""

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        names = [name for name in ("input_features", "input_values") if isinstance(given.get(name), Tensor)]
        if not names:
            raise InputError(
                "the prompt has no sound (input_features or input_values) that could be changed: give generate() the "
                "processor's output, or take a contrast of texts"
            )
        changed = dict(given)
        for name in names:
            change = self.features if name == "input_features" else self.waveform
            changed[name] = torch.stack([change(row.float()).to(row.dtype) for row in given[name]])
        return changed

    def features(self, row: Tensor) -> Tensor:
        raise NotImplementedError

    def waveform(self, row: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class NoisyAudio(_Audio):
    """Sound with white noise at a signal-to-noise ratio.

    To log-mel features the noise is added as power, which is what adding it to the waveform does on average.

    Attributes:
        snr: in dB.
        seed: of the noise.
    """

    snr: float = 10.0
    seed: int = 0

    def features(self, row: Tensor) -> Tensor:
        """Add the noise's power to (mel, frames) features."""
        power = 10 ** (row * MEL_SCALE - MEL_OFFSET)
        draws = _noise(row, self.seed) ** 2  # of a Gaussian, whose square has the mean 1
        return ((power + self._power(power) * draws).clamp_min(MEL_SILENCE).log10() + MEL_OFFSET) / MEL_SCALE

    def waveform(self, row: Tensor) -> Tensor:
        """Add the noise to (samples,)."""
        return row + _noise(row, self.seed) * self._power(row**2).sqrt()

    def _power(self, power: Tensor) -> Tensor:
        return power.mean() / 10 ** (self.snr / 10)


@dataclass(frozen=True)
class SilentAudio(_Audio):
    """Silence of the same length."""

    def features(self, row: Tensor) -> Tensor:
        """Return the features of silence."""
        return torch.full_like(row, (math.log10(MEL_SILENCE) + MEL_OFFSET) / MEL_SCALE)

    def waveform(self, row: Tensor) -> Tensor:
        """Return zeros."""
        return torch.zeros_like(row)


@dataclass(frozen=True)
class ShiftedAudio(_Audio):
    """Sound that begins later, after silence; its end is cut off.

    Attributes:
        seconds: it begins later.
    """

    seconds: float = 7.0

    def features(self, row: Tensor) -> Tensor:
        """Shift the frames."""
        return self._shifted(row, round(self.seconds * FRAME_RATE), SilentAudio().features(row))

    def waveform(self, row: Tensor) -> Tensor:
        """Shift the samples."""
        return self._shifted(row, round(self.seconds * SAMPLING_RATE), torch.zeros_like(row))

    def _shifted(self, row: Tensor, by: int, silence: Tensor) -> Tensor:
        by = min(by, row.shape[-1])
        return torch.cat([silence[..., :by], row[..., : row.shape[-1] - by]], dim=-1)


@dataclass(frozen=True)
class OtherSource(SameInputs):
    """Another text for an encoder.

    Attributes:
        rows: its tokens, one text for all rows or one a row.
        pad: a token behind shorter texts.
    """

    rows: tuple[tuple[int, ...], ...]
    pad: int = field(default=0, compare=False)

    def inputs(self, given: CallInputs, model: Any) -> dict[str, Any]:
        """Put the text in place of the encoder's."""
        source = given.get("input_ids")
        if not isinstance(source, Tensor):
            raise InputError(
                "source: replaces the text of an encoder, and the call has none: it needs an encoder-decoder that "
                "reads text (T5, BART, M2M-100) and its input_ids"
            )
        width = max(map(len, self.rows))
        ids = torch.tensor([[*row, *[self.pad] * (width - len(row))] for row in self.rows], device=source.device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in self.rows], device=source.device)
        changed = {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}
        return {**changed, "input_ids": ids, "attention_mask": mask}


@dataclass(frozen=True)
class OtherLanguage(SameInputs):
    """Another target language: the last token of the decoder's prompt is another.

    Attributes:
        token: of the language.
    """

    token: int

    def prompt(self, tokens: list[int], model: Any) -> list[int]:
        """Replace the last token."""
        if len(tokens) < 2:
            raise InputError(
                "language: replaces the target language in the decoder's prompt, which is its start token alone: give "
                "decoder_input_ids with the language's token last, in place of forced_bos_token_id"
            )
        return [*tokens[:-1], self.token]


def _noise(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, float32, of a tensor's shape and device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=torch.float32, device="cpu").to(like.device)
