"""Requests that the model reads after a second prompt too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from decoding.errors import OptionError, shown
from decoding.parameters import require_number, require_range
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests.base import Request

__all__ = ["AdaptiveContextRequest", "ContextAwareRequest", "GuidanceRequest", "SecondPromptRequest"]


@dataclass(frozen=True)
class SecondPromptRequest(Request):
    """A request that the model reads after another prompt too, beside a second request that takes each step with it."""

    second_field: ClassVar[str]
    reads_second_prompt: ClassVar[bool] = True

    @property
    def second(self) -> str | Sequence[int] | None:
        """The other prompt: text, token ids, or None for the last token of the request's own."""
        return getattr(self, self.second_field)

    @property
    def kind(self) -> Hashable:
        """All rows of a class are computed together."""
        return type(self)

    def followers(self, engine: EngineReaders) -> int:
        """One, with the other prompt."""
        return 1

    def on(self, engine: EngineReaders) -> Request:
        """The request.

        Raises:
            OptionError: the engine reads no second prompts.
        """
        engine.check_second_prompts(self.name)
        return self

    def _check_second(self) -> None:
        given = self.second
        if isinstance(given, Sequence) and not isinstance(given, str):
            if not given or not all(isinstance(token, int) and not isinstance(token, bool) for token in given):
                raise OptionError(f"{self.second_field}={shown(given)}: must be text, or at least one token id")
            object.__setattr__(self, self.second_field, tuple(given))
        elif not isinstance(given, str) or not given:
            raise OptionError(f"{self.second_field}={shown(given)}: must be text, or token ids")


@dataclass(frozen=True)
class ContextAwareRequest(SecondPromptRequest):
    """Context-aware decoding of a prompt with a context; see :class:`decoding.ContextAware`.

    Args:
        prompt_without_context: the same prompt without its context, text or token ids.
        alpha: α >= 0.
    """

    prompt_without_context: str | Sequence[int] = ""
    alpha: float = 0.5
    name: ClassVar[str] = "context-aware"
    second_field: ClassVar[str] = "prompt_without_context"
    text_fields: ClassVar[frozenset[str]] = frozenset({"prompt_without_context"})

    def __post_init__(self) -> None:
        require_number("alpha", self.alpha, 0.0)
        self._check_second()


@dataclass(frozen=True)
class AdaptiveContextRequest(SecondPromptRequest):
    """Adaptive context-aware decoding of a prompt with a context; see :class:`decoding.AdaptiveContext`.

    Args:
        prompt_without_context: the same prompt without its context, text or token ids.
        floor: the least α of a token, in [0, 1].
    """

    prompt_without_context: str | Sequence[int] = ""
    floor: float = 0.0
    name: ClassVar[str] = "adaptive-context"
    second_field: ClassVar[str] = "prompt_without_context"
    text_fields: ClassVar[frozenset[str]] = frozenset({"prompt_without_context"})

    def __post_init__(self) -> None:
        require_range("floor", self.floor, 0.0, 1.0)
        self._check_second()


@dataclass(frozen=True)
class GuidanceRequest(SecondPromptRequest):
    """Classifier-free guidance; see :class:`decoding.Guidance`.

    Args:
        negative: a prompt in place of the request's own, text or token ids; None for the last token of its own.
        scale: γ >= 0.
    """

    negative: str | Sequence[int] | None = None
    scale: float = 1.5
    name: ClassVar[str] = "guidance"
    second_field: ClassVar[str] = "negative"
    text_fields: ClassVar[frozenset[str]] = frozenset({"negative"})

    def __post_init__(self) -> None:
        require_number("scale", self.scale, 0.0)
        if self.negative is not None:
            self._check_second()
