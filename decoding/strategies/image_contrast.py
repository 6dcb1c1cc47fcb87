"""Contrasts of a model of images with itself on a worse image: VCD, ICD of images, no image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from decoding.drafts.options import AMATEUR
from decoding.errors import OptionError
from decoding.parameters import require_count, require_flag, require_number, require_range
from decoding.strategies.contrast.amateurs import text_reader
from decoding.strategies.contrast.input_changes import STEPS, BlankImages, NoImages, NoisedImages
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.texts import check_text, texts_of
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["ImageContrast"]


@dataclass(frozen=True)
class ImageContrast(WeightedStrategy):
    """Visual contrastive decoding: what the image says, against what the model would say anyway.

    The score is (1 + β)·s - β·s' over tokens with s >= log α + max s; s are logits with the image, s' with a worse one:

    - ``noise``: the image after so many of 1000 steps of a diffusion's forward process (VCD; Leng et al., "Mitigating
      Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding", 2311.16922, which has
      500, β 1, α 0.1);
    - ``prompt``: the same image after a confusing text (ICD; Wang et al., "Mitigating Hallucinations in Large
      Vision-Language Models with Instruction Contrastive Decoding", 2403.18715, β 1, α 0.1);
    - ``blank``: an image of one colour, zeros after the processor's normalisation (ours);
    - ``no_image``: the prompt without the image (M3ID and LCD contrast so, with weights that grow along the text).

    Readers with an image of the same size go through one forward pass a token. On POPE, gains of such contrasts were
    found to come from a bias to "yes" and from the plausibility mask (2504.10020): compare with ``beta=0``.

    Args:
        noise: steps of noise, 1 to 1000; None for another worse image. Where nothing is given, 500.
        prompt: text or token ids before the prompt, or a sequence of one of these a row; in a chat, its system message.
        blank: contrast with a blank image.
        no_image: contrast with the text alone.
        alpha: α in [0, 1].
        beta: β >= 0.
        seed: of the noise, which is the same for all images.
        tokenizer: for a prompt given as text.
        placement: of the prompt's text, see :class:`decoding.ContextAware`.

    Raises:
        OptionError: a value out of range, or two worse images.
        InputError: a call without an image (when it begins).

    Example:
        >>> inputs = processor(images=image, text=chat, return_tensors="pt")
        >>> decoding.generate(model, **inputs, strategy=ImageContrast(noise=500), max_new_tokens=64)
    """

    noise: int | None = None
    prompt: Any = None
    blank: bool = False
    no_image: bool = False
    alpha: float = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    beta: float = field(default=1.0, metadata={"grid": (0.5, 1.0)})
    seed: int = 0
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = None
    name: ClassVar[str] = "image-contrast"
    scorable: ClassVar[bool] = False  # under it text alone has no score, see decoding.score_batch
    media: ClassVar[Literal["image", "audio"] | None] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_flag("blank", self.blank)
        require_flag("no_image", self.no_image)
        given = [self.noise is not None, self.prompt is not None, self.blank, self.no_image]
        if sum(given) > 1:
            raise OptionError("noise, prompt, blank and no_image: each is a worse image of its own; give one of them")
        if not any(given):
            object.__setattr__(self, "noise", 500)
        if self.noise is not None:
            require_count("noise", self.noise, 1, " steps", STEPS)
        if self.prompt is not None:
            texts_of(self.prompt, "prompt")
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_number("beta", self.beta, 0.0)
        require_count("seed", self.seed, 0)
        require_placement(self.placement)

    def check(self, model: Any) -> None:
        """Raise OptionError where the prompt is text and there is no tokenizer."""
        if self.prompt is not None:
            check_text(self.prompt, self.tokenizer, "prompt")

    @property
    def plausibility_alpha(self) -> float:
        """α."""
        return self.alpha

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model with the image, and with the worse one."""
        if self.prompt is not None:
            amateur = text_reader(AMATEUR, self.prompt, self.tokenizer, rows, "prompt", self.placement)
        elif self.noise is not None:
            amateur = Reader(AMATEUR, change=NoisedImages(self.noise, self.seed))
        else:
            amateur = Reader(AMATEUR, change=BlankImages() if self.blank else NoImages())
        return [Reader(EXPERT), amateur]

    def weights(self) -> Mapping[str, float]:
        """1 + β and -β."""
        return {EXPERT: 1 + self.beta, AMATEUR: -self.beta}
