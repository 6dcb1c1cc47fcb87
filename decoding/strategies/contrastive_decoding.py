"""Contrastive decoding: an expert against an amateur (Li et al., ACL 2023; O'Brien and Lewis, 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from decoding.errors import OptionError, shown
from decoding.kernels.contrast.weighted import FORMS
from decoding.parameters import require_choice, require_number, require_range
from decoding.strategies.contrast.amateurs import (
    check_reader,
    reader_text,
    second_reader,
)
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.system_messages import Placement, require_placement
from decoding.strategies.contrast.texts import least_rows
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["ContrastiveDecoding"]

CONTEXTS = ("full", "last_token")


@dataclass(frozen=True)
class ContrastiveDecoding(WeightedStrategy):
    """Contrastive decoding: the tokens that the expert prefers more than the amateur, among its plausible ones.

    With ``form="logits"`` the score is (1 + β)·s_e - β·s_a where s_e >= log α + max s_e (O'Brien and Lewis,
    "Contrastive Decoding Improves Reasoning in Large Language Models", 2309.09117). With ``form="log_probs"`` it is
    log p_e - β·log p_a(τ) where p_e >= α·max p_e (Li et al., "Contrastive Decoding: Open-ended Text Generation as
    Optimization", 2210.15097, whose β is 1). s are logits, τ the amateur's temperature.

    Args:
        amateur: the weaker reader: a transformers model; a folder, hub name or built-in name; the name of a LoRA
            adapter on the model, or the folder of one; ``decoding.Prompt(text)``, the same model after a misleading
            prompt; or ``decoding.Self(skip_layers=[...])``, the same model degraded.
        alpha: α in [0, 1].
        beta: β >= 0.
        form: "logits" or "log_probs".
        amateur_temperature: τ > 0 of the amateur; for ``form="log_probs"``. Li et al. use 0.5 for GPT-2, 1 for OPT.
        amateur_context: "full", or "last_token" to let the amateur read the prompt's last token only, as Li et al. do.
        tokenizer: the expert's; compared with the amateur's where that is loaded by name, and needed for a prompt given
            as text.
        placement: of a ``Prompt``'s text: "system" makes it the system message of a chat, "prefix" puts it before the
            whole prompt. None is "system" where a prompt begins as the tokenizer's chat template does, and "prefix"
            where not.

    Raises:
        OptionError: a value out of range, or an empty name or text.
        ModelError: an amateur of other tokens, or one that cannot be loaded (when a call begins).

    Example:
        >>> decoding.generate(expert, **inputs, strategy=ContrastiveDecoding(amateur), max_new_tokens=64)
    """

    amateur: Any = field(metadata={"example": "amateur", "names_models": True})
    alpha: float = field(default=0.1, metadata={"grid": (0.0, 0.1)})
    beta: float = field(default=0.5, metadata={"grid": (0.25, 0.5, 1.0)})
    form: Literal["logits", "log_probs"] = "logits"
    amateur_temperature: float = 1.0
    amateur_context: Literal["full", "last_token"] = "full"
    tokenizer: Any = field(default=None, repr=False, compare=False)
    placement: Placement | None = field(default=None, metadata={"added_later": True})
    name: ClassVar[str] = "contrastive-decoding"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_reader(self.amateur)
        require_range("alpha", self.alpha, 0.0, 1.0)
        require_number("beta", self.beta, 0.0)
        require_choice("form", self.form, FORMS)
        require_choice("amateur_context", self.amateur_context, CONTEXTS)
        require_number("amateur_temperature", self.amateur_temperature, 0.0, open_=True)
        require_placement(self.placement)
        if self.placement == "system" and self.amateur_context == "last_token":
            raise OptionError(
                "placement='system': with amateur_context='last_token' the amateur reads no chat to have a system "
                "message in; leave one of them out"
            )
        if self.form == "logits" and self.amateur_temperature != 1:
            raise OptionError(
                f"amateur_temperature={shown(self.amateur_temperature)}: must be 1 with form='logits', where β alone "
                "weighs the amateur; form='log_probs' has a temperature"
            )

    def check(self, model: Any) -> None:
        """Raise where the amateur cannot be loaded or does not fit the model; loads it where it is given by name."""
        self.readers(model, least_rows(reader_text(self.amateur)))

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The expert and the amateur."""
        from_last_token = self.amateur_context == "last_token"
        amateur = second_reader(self.amateur, model, rows, self.tokenizer, from_last_token, self.placement)
        return [Reader(EXPERT), amateur]

    def weights(self) -> Mapping[str, float]:
        """1 + β and -β of logits; 1 and -β of log-probabilities."""
        return {EXPERT: 1 + self.beta if self.form == "logits" else 1.0, "amateur": -self.beta}

    @property
    def score_form(self) -> str:
        """The form."""
        return self.form

    @property
    def plausibility_alpha(self) -> float:
        """α."""
        return self.alpha

    @property
    def temperatures(self) -> Mapping[str, float]:
        """τ of the amateur."""
        return {"amateur": self.amateur_temperature}

    def _needs_own_expert(self, readers: Sequence[Reader]) -> bool:
        """False: the expert's final logits are all it needs, and a processor is given those."""
        return False
