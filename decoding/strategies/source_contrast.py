"""Source- and language-contrastive decoding of translations (Sennrich et al., EACL 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from decoding.errors import ModelError, OptionError, shown
from decoding.models.text_config import text_config, vocab_size
from decoding.parameters import require_number, require_range
from decoding.strategies.contrast.amateurs import row_tokens
from decoding.strategies.contrast.input_changes import OtherLanguage, OtherSource
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.strategies.contrast.texts import check_text, texts_of
from decoding.strategies.contrast.weighted import WeightedStrategy

__all__ = ["SourceContrast"]

SOURCE, LANGUAGE = "other source", "other language"


@dataclass(frozen=True)
class SourceContrast(WeightedStrategy):
    """Contrastive decoding of translations: likely for this source, unlikely for another one and in another language.

    The score is log p(y | x, l) - λ_s·log p(y | x', l) - λ_l·log p(y | x, l'): x' is another source sentence, l'
    another target language. Source: Sennrich, Vamvas and Mohammadshahi, "Mitigating Hallucinations and Off-target
    Machine Translation with Source-Contrastive and Language-Contrastive Decoding", 2309.07098, with λ_s 0.7 and λ_l
    0.1, and beam search, for which this strategy's logits processor serves. There x' is a random sentence of the test
    set.

    Args:
        source: x': text, token ids, or a sequence of one of these a row; None for no other source.
        language: l': the token of a target language, as text or id, which replaces the last token of the decoder's
            prompt (``decoder_input_ids``; :func:`decoding.generate` makes it of ``forced_bos_token_id``); None for no
            other language.
        source_weight: λ_s >= 0.
        language_weight: λ_l >= 0.
        alpha: α in [0, 1], for a plausibility mask of p(y | x, l), which the paper does not have; None for none.
        tokenizer: for a source or a language given as text.

    Raises:
        OptionError: a value out of range, or neither source nor language.
        ModelError: a decoder-only model (when a call begins).
        InputError: a call whose encoder's text is not known, or a decoder's prompt without a language (likewise).

    Example:
        >>> strategy = SourceContrast("Ein ganz anderer Satz.", tokenizer=tokenizer)
        >>> decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=64)
    """

    source: Any = field(metadata={"example": "An unrelated sentence."})
    language: str | int | None = None
    source_weight: float = field(default=0.7, metadata={"grid": (0.3, 0.7)})
    language_weight: float = 0.1
    alpha: float | None = None
    tokenizer: Any = field(default=None, repr=False, compare=False)
    name: ClassVar[str] = "source-contrast"
    scorable: ClassVar[bool] = False  # under it text alone has no score, see decoding.score_batch

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source is None and self.language is None:
            raise OptionError("source and language: neither is given, so there is nothing to contrast with; give one")
        if self.source is not None:
            texts_of(self.source, "source")
        if isinstance(self.language, bool) or not isinstance(self.language, (str, int, type(None))):
            raise OptionError(f"language={shown(self.language)}: must be a token of a language, as text or id")
        require_number("source_weight", self.source_weight, 0.0)
        require_number("language_weight", self.language_weight, 0.0)
        if self.alpha is not None:
            require_range("alpha", self.alpha, 0.0, 1.0)

    def check(self, model: Any) -> None:
        """Raise where the model is no encoder-decoder, or a text has no tokenizer."""
        if not model.config.is_encoder_decoder:
            raise ModelError(
                f"{type(model).__name__} is decoder-only: source-contrast replaces the text of an encoder; for a "
                "prompt take guidance with another prompt"
            )
        if self.source is not None:
            check_text(self.source, self.tokenizer, "source")
        self._language_token(model)

    @property
    def replaces_language(self) -> bool:
        """True where the other language is given."""
        return self.language is not None

    @property
    def plausibility_alpha(self) -> float | None:
        """α."""
        return self.alpha

    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The model, the model on the other source, and in the other language."""
        readers = [Reader(EXPERT)]
        if self.source is not None:
            tokens = row_tokens(self.source, self.tokenizer, rows, "source", whole=True)
            pad = getattr(text_config(model), "pad_token_id", None)
            readers.append(Reader(SOURCE, change=OtherSource(tuple(map(tuple, tokens)), pad or 0)))
        token = self._language_token(model)
        if token is not None:
            readers.append(Reader(LANGUAGE, change=OtherLanguage(token)))
        return readers

    @property
    def score_form(self) -> str:
        """Log-probabilities."""
        return "log_probs"

    def weights(self) -> Mapping[str, float]:
        """1, -λ_s and -λ_l."""
        weights = {EXPERT: 1.0}
        if self.source is not None:
            weights[SOURCE] = -self.source_weight
        if self.language is not None:
            weights[LANGUAGE] = -self.language_weight
        return weights

    def _language_token(self, model: Any) -> int | None:
        if self.language is None or isinstance(self.language, int):
            token = self.language
        elif self.language.isdecimal():
            token = int(self.language)
        elif self.tokenizer is None:
            raise OptionError(f"language={self.language!r} is text: pass tokenizer=..., or give the token's id")
        else:
            token = self.tokenizer.get_vocab().get(self.language)
            if token is None:
                raise OptionError(f"language={self.language!r}: is no token of the tokenizer")
        if token is not None and not 0 <= token < vocab_size(model):
            raise OptionError(f"language={token}: must be a token from 0 to {vocab_size(model) - 1}")
        return token
