"""Settings of a search for retrieval heads; no model code is needed to read their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.errors import OptionError
from decoding.parameters import require_count, require_flag

__all__ = ["LONGEST", "Settings"]

LONGEST = 1024  # tokens of the longest context, unless told otherwise


@dataclass(frozen=True)
class Settings:
    """Settings that decide the scores.

    Attributes:
        top: heads that are named as the model's retrieval heads, and masked for the control.
        lengths: tokens of the contexts, question included; None is a quarter, a half and all of 1024 tokens, or of the
            model's context where that is shorter.
        depths: number of depths of the needle, evenly from the start of the haystack to its end.
        needles: number of contexts of each length and depth, each with another needle.
        prompt: what follows the haystack, with ``{question}`` in it; the answer continues it after a space.
        chat: put haystack and question into the tokenizer's chat template as the user's message; without ``prompt``.
        seed: of the draw of needles and of places in the haystack.
        batch_tokens: tokens of a forward pass. Decides memory and speed, not the scores.

    Raises:
        OptionError: a value out of range.
    """

    top: int = 10
    lengths: tuple[int, ...] | None = None
    depths: int = 5
    needles: int = 2
    prompt: str = "\n\nQ: {question}\nA:"
    chat: bool = False
    seed: int = 0
    batch_tokens: int = 4096

    def __post_init__(self) -> None:
        for name in ("top", "depths", "needles", "batch_tokens"):
            require_count(name, getattr(self, name), 1)
        require_count("seed", self.seed, 0)
        require_flag("chat", self.chat)
        if self.lengths is not None:
            if not self.lengths:
                raise OptionError("lengths: none given; must be numbers of tokens such as 256,512, or None")
            for length in self.lengths:
                require_count("lengths", length, 1)
        if "{question}" not in self.prompt:
            raise OptionError(f"prompt={self.prompt!r}: must have {{question}} where the question stands")
