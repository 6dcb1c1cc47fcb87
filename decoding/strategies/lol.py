"""LOL: multi-layer fusion contrastive decoding with truthfulness refocusing (2408.08769)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from decoding.errors import OptionError, nearest, shown
from decoding.kernels.contrast import FUSIONS, entropy, multi_layer_contrast, refocused
from decoding.models.layer_numbers import require_layers
from decoding.models.layers import exits_of, matching_exits
from decoding.parameters import plain_numbers, require_choice, require_flag, require_number, require_range
from decoding.strategies.contrast.amateurs import (
    check_reader,
    cut_to_shared,
    padded_to,
    reader_text,
    second_reader,
    text_reader,
)
from decoding.strategies.contrast.base import Contrast, ContrastStrategy
from decoding.strategies.contrast.parts import ContrastParts, ReaderWeights
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.texts import least_rows, texts_of
from decoding.strategies.lol_guidance import GUIDANCE

__all__ = ["LOL"]

GUIDED = "guided expert"  # the role of the expert after the guidance


@dataclass(frozen=True)
class LOL(ContrastStrategy):
    """LOL: the contrast of expert and amateur at the final layer, fused with their contrasts at lower layers.

    With e = log p(· | x) of the expert, g the same after a guidance text, a of the amateur, and e_L, a_L at the exit
    from lower layer L:

    - refocused expert: r = log-softmax((1 + γ)·g - γ·e) with guidance, r = e without;
    - contrasts: F = r - λ·a at the end, F'_L = e_L - λ'·a_L at each lower layer;
    - static fusion: F + ω·mean over L of F'_L; entropy fusion: Σ w·F over the end and all L, w the softmax over
      these of -entropy of the expert's distribution there (r at the end);
    - only tokens with r >= log α + max r.

    Source: "Lower Layer Matters: Alleviating Hallucination via Multi-Layer Fusion Contrastive Decoding with
    Truthfulness Refocusing", 2408.08769. The two contrasts with λ and λ' are the first version's equations; the rest is
    ours where the paper could not be obtained: how layers are chosen and fused, how guidance is combined (as
    context-aware decoding does), which distribution plausibility is taken from, the final norm at lower layers, and
    every default.

    All readers with the expert's weights (the guided expert, a LoRA amateur) go through one forward pass a token.

    Args:
        amateur: as in :class:`decoding.ContrastiveDecoding`; best the model itself, made to hallucinate with
            ``decoding induce``.
        lower_layers: each as how many layers it has read (an int), or as a share of the depth (a float between 0 and
            1). An amateur of another depth exits at the same shares of its own.
        guidance: put before the prompt of a second reader, the guided expert, or into a chat as its system message:
            text, token ids, a sequence of one of these a row, a mapping from languages to texts, or "default" for
            ``GUIDANCE``. None does not refocus.
        amateur_weight: λ >= 0.
        lower_amateur_weight: λ' >= 0.
        fusion_weight: ω >= 0, of static fusion; 0 leaves the lower layers out.
        fusion: "static" or "entropy".
        refocus_weight: γ >= 0.
        alpha: α in [0, 1].
        final_norm: whether lower layers pass the final norm before the head.
        language: key of the guidance, where that is a mapping or "default".
        tokenizer: for guidance or an amateur's prompt given as text.
        placement: of guidance and of an amateur's prompt: "system" makes them the system message of a chat, "prefix"
            puts them before the whole prompt. None is "system" where a prompt begins as the tokenizer's chat template
            does, and "prefix" where not.

    Raises:
        OptionError: a value out of range, a layer that the model does not have, or guidance as text without a
            tokenizer.
        ModelError: an amateur of other tokens, or a model whose lower layers cannot be read (when a call begins).

    Example:
        >>> strategy = LOL("hallucinating", lower_layers=[0.5, 0.75], guidance="default", tokenizer=tokenizer)
        >>> decoding.generate(model, **question, strategy=strategy)
    """

    amateur: Any = field(metadata={"example": "amateur", "names_models": True})
    lower_layers: Sequence[int | float] = field(
        metadata={"example": "0.5,0.75", "grid": ((0.5,), (0.75,), (0.5, 0.75))}
    )
    guidance: Any = None
    amateur_weight: float = field(default=1.0, metadata={"grid": (0.5, 1.0)})
    lower_amateur_weight: float = 1.0
    fusion_weight: float = field(default=0.5, metadata={"grid": (0.25, 0.5, 1.0)})
    fusion: Literal["static", "entropy"] = "static"
    refocus_weight: float = field(default=0.5, metadata={"grid": (0.25, 0.5, 1.0), "grid_with": "guidance"})
    alpha: float = 0.1
    final_norm: bool = True
    language: str = "en"
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = field(default=None, metadata={"added_later": True})
    name: ClassVar[str] = "lol"
    plausibility_roles: ClassVar[frozenset[str]] = frozenset({EXPERT, GUIDED})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reader(self.amateur)
        require_range("alpha", self.alpha, 0.0, 1.0)
        for name in ("amateur_weight", "lower_amateur_weight", "fusion_weight", "refocus_weight"):
            require_number(name, getattr(self, name), 0.0)
        require_choice("fusion", self.fusion, FUSIONS)
        require_flag("final_norm", self.final_norm)
        if not isinstance(self.language, str) or not self.language.strip():
            raise OptionError(f"language={shown(self.language)}: must be a language of the guidance, such as en")
        require_placement(self.placement)
        layers = plain_numbers(self.lower_layers)
        layers = [layers] if isinstance(layers, (int, float)) else layers
        require_layers("lower_layers", layers)
        object.__setattr__(self, "lower_layers", tuple(layers))
        self._check_guidance()

    @property
    def tokenwise(self) -> bool:  # type: ignore[override]
        """True of static fusion; entropy fusion weighs layers by the logits of all tokens."""
        return self.fusion == "static"

    @property
    def exit_norm(self) -> bool:  # type: ignore[override]
        """True where lower layers pass the final norm."""
        return bool(self.final_norm)

    def check(self, model: Any) -> None:
        """Raise where layers, amateur or guidance do not fit the model."""
        self.readers(model, least_rows(self._guidance_text(), reader_text(self.amateur)))

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert, the expert after the guidance where there is one, and the amateur."""
        fused = self.lower_layers and (self.fusion == "entropy" or self.fusion_weight > 0)
        exits = exits_of(model, self.lower_layers)
        exits = exits if fused else ()
        amateur = second_reader(self.amateur, model, rows, self.tokenizer, placement=self.placement)
        amateur_exits = exits if amateur.model is None else matching_exits(model, exits, amateur.model)
        readers = [Reader(EXPERT, exits=exits)]
        text = self._guidance_text()
        if text is not None:
            readers.append(text_reader(GUIDED, text, self.tokenizer, rows, "guidance", self.placement))
        return [*readers, Reader(**{**vars(amateur), "exits": amateur_exits})]

    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The fused contrast."""
        vocab = logits[EXPERT].final.shape[-1]
        expert, amateur, guided, lower, lower_amateur = self._contrasted(logits)

        def score_fn(alpha: float | None) -> Tensor:
            scores = multi_layer_contrast(
                expert, amateur, guided, lower, lower_amateur,
                amateur_weight=self.amateur_weight, lower_amateur_weight=self.lower_amateur_weight,
                fusion_weight=self.fusion_weight, fusion=self.fusion, refocus_weight=self.refocus_weight, alpha=alpha,
            )  # fmt: skip
            return padded_to(scores, vocab)

        return Contrast(score_fn, lambda: padded_to(refocused(expert, guided, self.refocus_weight), vocab), self.alpha)

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """The weight of each reader at the final layer and at each lower one: of F and F'_L, times what the reader
        counts there.
        """
        expert, _, guided, lower, _ = self._contrasted(logits)
        of_final: float | Tensor = 1.0
        of_lower = None  # (layers, ...)
        if lower is not None and self.fusion == "entropy":
            own = [refocused(expert, guided, self.refocus_weight), *lower]
            fused = (-torch.stack([entropy(layer) for layer in own])).softmax(0)
            of_final, of_lower = fused[0], fused[1:]
        elif lower is not None:
            of_lower = torch.full(lower.shape[:-1], self.fusion_weight / len(lower), device=lower.device)
        lower_amateur = None if of_lower is None else -self.lower_amateur_weight * of_lower
        weights = {EXPERT: ReaderWeights(of_final, of_lower)}
        if guided is not None:
            weights[EXPERT] = ReaderWeights(-self.refocus_weight * of_final, of_lower)
            weights[GUIDED] = ReaderWeights((1 + self.refocus_weight) * of_final)
        weights["amateur"] = ReaderWeights(-self.amateur_weight * of_final, lower_amateur)
        return ContrastParts(weights)

    def _contrasted(
        self, logits: Mapping[str, ReaderLogits]
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """The logits of expert, amateur and guided expert, and of expert and amateur at the lower layers, of the tokens
        that all have.
        """
        expert, amateur = cut_to_shared(logits[EXPERT].final, logits["amateur"].final)
        guided = lower = lower_amateur = None
        if GUIDED in logits:
            guided = logits[GUIDED].final[..., : expert.shape[-1]].to(expert.device)
        exits, amateur_exits = logits[EXPERT].exits, logits["amateur"].exits
        if exits is not None and amateur_exits is not None:
            lower, lower_amateur = cut_to_shared(exits, amateur_exits)
        return expert, amateur, guided, lower, lower_amateur

    def _check_guidance(self) -> None:
        in_languages = isinstance(self.guidance, Mapping)
        for language, text in self.guidance.items() if in_languages else [("", self.guidance)]:
            if text is not None or in_languages:
                texts_of(text, f"guidance in language {language!r}" if in_languages else "guidance")
        self._guidance_text()

    def _guidance_text(self) -> Any:
        guidance = self.guidance
        if isinstance(guidance, str) and guidance == "default":
            guidance = GUIDANCE
        if isinstance(guidance, Mapping):
            if self.language not in guidance:
                raise OptionError(
                    f"language={self.language!r}: no guidance in this language{nearest(str(self.language), guidance)}"
                )
            guidance = guidance[self.language]
        return guidance

    def _needs_own_expert(self, readers: Sequence[Reader]) -> bool:
        """False without guidance and lower layers: the final logits are then all that it needs of the expert."""
        return any(reader.role == GUIDED or (reader.role == EXPERT and reader.exits) for reader in readers)
