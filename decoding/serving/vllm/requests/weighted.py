"""The request for a weighted sum of readers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from decoding.errors import OptionError, shown
from decoding.kernels.contrast.weighted import FORMS
from decoding.parameters import require_choice
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import MaskedRequest
from decoding.strategies.contrast.terms_text import terms_in_text

__all__ = ["WeightedContrastRequest"]

READERS = ("expert", "amateur", "second prompt")
EXPECTED = "must be text such as '1.5*expert - 0.5*amateur'"


@dataclass(frozen=True)
class WeightedContrastRequest(MaskedRequest):
    """A weighted contrast with fixed weights, under the plausibility of the model itself; see
    :class:`decoding.WeightedContrast`.

    Args:
        terms: readers with weights, as text: "expert" (or "self"), "amateur", which is the engine's, and one second
            prompt, "instead:TEXT" or "last-token".
        form: "logits" or "log_probs".
        alpha: α in [0, 1]; None lets every token pass.
    """

    alpha: float | None = 0.1  # type: ignore[assignment]
    terms: str = field(default="", metadata={"example": "1.5*expert - 0.5*amateur"})
    form: str = "logits"
    name: ClassVar[str] = "weighted-contrast"
    second_field: ClassVar[str] = "terms"
    text_fields: ClassVar[frozenset[str]] = frozenset({"terms"})

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

    @property
    def masks(self) -> bool:  # type: ignore[override]
        """Whether a token may be implausible."""
        return self.alpha is not None

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each reader that is read, the expert first, 0 where it is no term."""
        return {READERS[0]: 0.0, **{reader: weight for reader, _, weight in self._read}}

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
        """Rows of the same weights are computed together."""
        return type(self), tuple(self.weights.items()), self.form, self.masks

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
