"""What a page asks for, what it is given, and the limits of both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from decoding.errors import InputError, OptionError
from decoding.explanation.records import Explanation
from decoding.strategies.given import given_strategy
from decoding.strategies.registry import StrategySpec

__all__ = ["STOPPED", "Limits", "Progress", "TextRequest", "Written"]

LARGEST_SEED = 2**53  # a whole number that a browser tells exactly
STOPPED = "stopped"
"""The note of a text that was stopped before it began, and the end of that of one that was stopped later."""


@dataclass(frozen=True)
class Limits:
    """The most that a page may ask for.

    Attributes:
        prompt: characters of a prompt.
        new_tokens: of a text.
        waiting: texts that wait while another is written.
        models: whether only the models that were named at the start may be named, second readers included.
    """

    prompt: int = 20_000
    new_tokens: int = 512
    waiting: int = 8
    only_named_models: bool = False

    def check(self, request: TextRequest) -> None:
        """Raise InputError or OptionError where a request is over a limit or empty."""
        if not request.prompt.strip():
            raise InputError("the prompt is empty: give at least one word")
        if len(request.prompt) > self.prompt:
            raise InputError(
                f"the prompt has {len(request.prompt):,} characters: must be at most {self.prompt:,} on this page"
            )
        if not 1 <= request.max_new_tokens <= self.new_tokens:
            raise OptionError(f"new tokens: {request.max_new_tokens}; must be 1 to {self.new_tokens} on this page")
        if not 0 <= request.seed <= LARGEST_SEED:
            raise OptionError(f"seed: {request.seed}; must be a whole number from 0 to {LARGEST_SEED}")


@dataclass(frozen=True)
class TextRequest:
    """A text that is wanted.

    Attributes:
        model: its name, folder or file.
        spec: the strategy, in any form that :func:`decoding.generate` takes.
        prompt: text to continue, or with ``chat`` the user's message.
        max_new_tokens: at most so many.
        seed: of random draws.
        chat: put the prompt into the model's chat template.
        start: the position of the first new token; needed with ``kept``.
        kept: the first new tokens, which are given.
    """

    model: str
    spec: StrategySpec
    prompt: str
    max_new_tokens: int = 100
    seed: int = 0
    chat: bool = False
    start: int = 0
    kept: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", given_strategy(self.spec))


@dataclass(frozen=True)
class Written:
    """A text that was written.

    Attributes:
        request: what it was written for.
        text: the new text.
        tokens: ids of the whole row, the prompt included.
        start: the position of the first new token.
        explanation: why each token was chosen; None of a strategy that is not explained.
        tokens_per_second: after the first free tokens; None where there is no second.
        stopped: True where a visitor stopped it.
    """

    request: TextRequest
    text: str
    tokens: tuple[int, ...]
    start: int
    explanation: Explanation | None
    tokens_per_second: float | None
    stopped: bool = False

    @property
    def new_tokens(self) -> int:
        """How many tokens are new, those that were kept included."""
        return len(self.tokens) - self.start

    def branch(self, position: int, token: int) -> TextRequest:
        """The request for a text that is the same up to a position, and goes on from another token there.

        Raises:
            InputError: there is no new token at the position, or the text is not explained.
        """
        if self.explanation is None or not self.start <= position < len(self.tokens):
            raise InputError(f"position {position}: there is no explained token of this text to go on from")
        kept = (*self.tokens[self.start : position], token)
        most = max(self.request.max_new_tokens, len(kept))
        return replace(self.request, kept=kept, start=self.start, max_new_tokens=most)


@dataclass(frozen=True)
class Progress:
    """What a page shows of one text.

    Attributes:
        request: what it is written for.
        text: new text so far.
        note: what goes on, or what went wrong.
        failed: whether the note is an error.
        written: the text, when it is done.
    """

    request: TextRequest
    text: str = ""
    note: str = ""
    failed: bool = False
    written: Written | None = None

    @property
    def label(self) -> str:
        """The strategy's name and parameters."""
        return self.request.spec.label

    @property
    def is_done(self) -> bool:
        """True where nothing will be added: the text is written, has failed, or was stopped before it began."""
        return self.failed or self.written is not None or self.note == STOPPED
