"""The request for a weighted sum of readers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from decoding.errors import OptionError, shown
from decoding.kernels.contrast.weighted import FORMS
from decoding.kernels.truncation import MASKS
from decoding.parameters import require_choice
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import MaskedRequest
from decoding.strategies.contrast.strengths import (
    STRENGTHS,
    is_of_position,
    require_diverging,
    strongest_other,
)
from decoding.strategies.contrast.terms_text import require_role, role_of_term, terms_in_text

__all__ = ["WeightedContrastRequest"]

READERS = ("expert", "amateur", "second prompt")
EXPECTED = "must be text such as '1.5*expert - 0.5*amateur'"


@dataclass(frozen=True)
class WeightedContrastRequest(MaskedRequest):
    """A weighted contrast; see :class:`decoding.WeightedContrast`.

    Args:
        terms: readers with weights, as text: "expert" (or "self"), "amateur", which is the engine's, and one second
            prompt, "instead:TEXT" or "last-token".
        form: "logits" or "log_probs".
        alpha: α in [0, 1]; None lets every token pass.
        mask: "top-n-sigma" or "p-less", in place of α; None for α.
        plausible: the role of the reader whose plausibility counts, the anchor: "expert", or "reader" and its number
            among the terms, from 1.
        weight_by: the strength at each token: "jsd" or "entropy"; None for 1.
        when: where the strength is not 0: a condition on what is measured at the token itself, such as
            "confidence < 0.5"; None for everywhere.
    """

    alpha: float | None = 0.1  # type: ignore[assignment]
    terms: str = field(default="", metadata={"example": "1.5*expert - 0.5*amateur"})
    form: str = "logits"
    mask: str | None = None
    plausible: str = READERS[0]
    weight_by: str | None = None
    when: str | None = None
    name: ClassVar[str] = "weighted-contrast"
    second_field: ClassVar[str] = "terms"
    text_fields: ClassVar[frozenset[str]] = frozenset({"terms", "mask", "plausible", "weight_by", "when"})

    def __post_init__(self) -> None:
        if self.alpha is not None:
            super().__post_init__()
        if not isinstance(self.terms, str):
            raise OptionError(f"terms={shown(self.terms)}: {EXPECTED}")
        require_choice("form", self.form, FORMS)
        readers = [reader for reader, _, _ in self._read]
        twice = next((reader for reader in readers if readers.count(reader) > 1), None)
        if twice is not None:
            raise OptionError(f"terms: {twice!r} is there twice; give each reader one weight")
        if not all(math.isfinite(weight) for weight in self.weights.values()):
            raise OptionError(f"terms={shown(self.terms)}: a weight is too large; must be a finite number")
        if self.mask is not None:
            require_choice("mask", self.mask, tuple(MASKS))
        require_role("plausible", self.plausible, tuple(self._readers))
        if self.weight_by is not None:
            require_choice("weight_by", self.weight_by, STRENGTHS)
        if self.when is not None and not is_of_position(self.when):
            raise OptionError(
                f"when={shown(self.when)}: must be a condition on the token itself, such as 'confidence < 0.5', "
                "'entropy > 2' or 'divergence > 0.1': rows of a batch know no numbers and no measures of earlier tokens"
            )
        require_diverging(self.weight_by, self.when, self.weights, self.anchor)

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether a token may be implausible."""
        return self.alpha is not None or self.mask is not None

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each reader that is read, the expert first, 0 where it is no term."""
        return {READERS[0]: 0.0, **{reader: weight for reader, _, weight in self._read}}

    @property
    def anchor(self) -> str:
        """The reader whose plausibility counts."""
        return self._readers[self.plausible]

    @property
    def other(self) -> str:
        """The reader that a divergence is from."""
        return strongest_other(self.weights, self.anchor) or READERS[0]

    @property
    def second(self) -> str | None:
        """The text of the second prompt; None for the last token of the request's own."""
        return next((prompt for _, prompt, _ in self._read if prompt is not None), None)

    @property
    def needs_amateur(self) -> bool:  # type: ignore[override]
        """Whether a term is the amateur."""
        return READERS[1] in self.weights

    @property
    def reads_second_prompt(self) -> bool:  # type: ignore[override]
        """Whether a term has a prompt."""
        return READERS[2] in self.weights

    @property
    def kind(self) -> Hashable:
        """Rows of the same weights, strength, anchor and mask are computed together; α may be of each row."""
        weights, masks_by_alpha = tuple(self.weights.items()), self.mask is None and self.alpha is not None
        return type(self), weights, self.form, self.anchor, self.weight_by, self.when, self.mask, masks_by_alpha

    def followers(self, engine: EngineReaders) -> int:
        """One, where there is a second prompt or the amateur is an adapter."""
        return max(super().followers(engine), int(self.reads_second_prompt))

    def on(self, engine: EngineReaders) -> WeightedContrastRequest:
        """The request.

        Raises:
            OptionError: the engine has no such reader, or not both of them in one request.
        """
        super().on(engine)
        if self.reads_second_prompt:
            engine.check_second_prompts(self.name)
            if self.needs_amateur and engine.adapter:
                raise OptionError(
                    f"{self.name}: terms={shown(self.terms)}: with an adapter as amateur a request has no second "
                    "prompt beside it; leave one of them out"
                )
        return self

    @cached_property
    def _read(self) -> list[tuple[str, str | None, float]]:
        """Of each term the reader, the text of a second prompt, and the weight."""
        return [(*reader_of(text), weight) for text, weight in terms_in_text(self.terms, EXPECTED)]

    @cached_property
    def _readers(self) -> dict[str, str]:
        """The readers by their roles."""
        of_terms = {
            READERS[0] if reader == READERS[0] else role_of_term(number): reader
            for number, (reader, _, _) in enumerate(self._read, 1)
        }
        return {READERS[0]: READERS[0], **of_terms}


def reader_of(text: str) -> tuple[str, str | None]:
    """The reader that a term names, and the text of a second prompt.

    Raises:
        OptionError: an engine has no such reader.
    """
    name, colon, prompt = text.partition(":")
    name, prompt = name.strip(), prompt.strip(" ")
    if not colon and name in ("expert", "self"):
        return READERS[0], None
    if not colon and name == "amateur":
        return READERS[1], None
    if (not colon and name == "last-token") or (name == "instead" and prompt):
        return READERS[2], prompt or None
    raise OptionError(
        f"terms: {shown(text)} is no reader here; must be expert, amateur (the engine's), instead:TEXT or last-token"
    )
