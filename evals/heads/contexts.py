"""Contexts: a haystack of tokens with a needle in it, a question, and the tokens that are to be copied."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from decoding.errors import InputError, OptionError, one_line
from decoding.evals.heads.needles import Needle
from decoding.evals.heads.settings import Settings
from decoding.models.chat_template import message_content

__all__ = ["Context", "Haystack", "contexts"]

SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？؟।])\s*|\n+")
USER = "qhaystackq"  # the place of the user's message, while a chat template writes the text around it


@dataclass(frozen=True)
class Context:
    """One context.

    Attributes:
        prompt: its tokens, up to the answer.
        answer: the tokens that follow, those of the needle.
        start: place in the prompt where the needle's own of these tokens begin.
    """

    prompt: list[int]
    answer: list[int]
    start: int


class Haystack:
    """Texts as one row of tokens that begins again at its end.

    Args:
        texts: are read until there are enough.
        tokenizer: of the model.
        enough: number of tokens.

    Raises:
        InputError: there is no token.
    """

    def __init__(self, texts: Any, tokenizer: Any, enough: int) -> None:
        self.ids: list[int] = []
        self.starts: list[int] = []  # of sentences
        for text in texts:
            sentences = [sentence for sentence in SENTENCE.split(text.strip()) if sentence.strip()]
            for index, sentence in enumerate(sentences):
                self.starts.append(len(self.ids))
                self.ids += _encoded(tokenizer, f" {sentence}" if index else f"\n\n{sentence}")
            if len(self.ids) >= enough:
                break
        if not self.ids:
            raise InputError("the haystack has no text; expected sentences for the needles to be put between")

    def around(self, needle: Sequence[int], length: int, depth: float, rng: random.Random) -> tuple[list[int], int]:
        """So many tokens from a sentence on that is drawn, with a needle before the sentence nearest to a depth.

        Returns:
            (length + needle) tokens, and the place of the needle.
        """
        first = rng.choice(self.starts)
        size = len(self.ids)
        row = [self.ids[(first + place) % size] for place in range(length)]
        rounds = range(length // size + 2)
        starts = (start - first + size * turn for turn in rounds for start in self.starts)
        place = min(
            [*(start for start in starts if 0 <= start < length), length], key=lambda at: abs(at - depth * length)
        )
        return [*row[:place], *needle, *row[place:]], place


def contexts(
    tokenizer: Any, haystack: Haystack, needles: Sequence[Needle], lengths: Sequence[int], settings: Settings, use: str
) -> Iterator[list[Context]]:
    """The contexts of each length: one for each depth and needle.

    Args:
        tokenizer: of the model.
        haystack: the texts.
        needles: are taken in order, and again from the first where there are too few.
        lengths: of the contexts, in tokens.
        settings: of the search.
        use: "search" or "control", whose places in the haystack differ.

    Raises:
        OptionError: a length in which the question does not fit, or a chat template that is missing or fails.
    """
    frame = _frame(tokenizer, settings)
    number = 0
    for length in lengths:
        row = []
        for depth in range(settings.depths):
            share = depth / (settings.depths - 1) if settings.depths > 1 else 0.5
            for _ in range(settings.needles):
                rng = random.Random(f"{settings.seed}/{use}/{number}")
                row.append(frame.context(haystack, needles[number % len(needles)], length, share, rng))
                number += 1
        yield row


@dataclass(frozen=True)
class _Frame:
    """What stands around the haystack.

    Attributes:
        tokenizer: of the model.
        head: tokens before the haystack.
        question: text after it, with ``{question}`` in it.
        after: tokens between that and the answer.
        joint: text before the needle and the answer, where these are the same tokens.
        space: text that begins the needle and the answer.
    """

    tokenizer: Any
    head: list[int]
    question: str
    after: list[int]
    joint: str
    space: str

    def context(self, haystack: Haystack, needle: Needle, length: int, depth: float, rng: random.Random) -> Context:
        before, answer, after = needle.parts
        lead = _encoded(self.tokenizer, self.joint)
        if before.strip():
            lead += _encoded(self.tokenizer, f"{self.space}{before.rstrip()}", before=":" if self.space else "\n")
        begins = " " if before.strip() else self.space
        copied = _encoded(self.tokenizer, f"{begins}{answer}", before=":" if begins else "\n")
        tail = _encoded(self.tokenizer, self.question.replace("{question}", needle.question)) + self.after
        whole = [*lead, *copied, *(_encoded(self.tokenizer, after) if after else [])]
        room = length - len(self.head) - len(whole) - len(tail)
        if room < 1:
            raise OptionError(
                f"lengths={length}: the needle {needle.text!r} and its question have {length - room} tokens; lengths "
                "must be above that"
            )
        row, place = haystack.around(whole, room, depth, rng)
        return Context([*self.head, *row, *tail], copied, len(self.head) + place + len(lead))


def _frame(tokenizer: Any, settings: Settings) -> _Frame:
    if not settings.chat:
        bos = tokenizer.bos_token_id
        begins = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
        return _Frame(tokenizer, [bos] if begins else [], settings.prompt, [], "", " ")
    if not tokenizer.chat_template:
        raise OptionError("--chat: the model's tokenizer has no chat template; leave --chat out")
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": message_content(tokenizer, USER)}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # of any kind, from the template
        raise OptionError(f"--chat: the chat template fails ({one_line(error)})") from error
    before, found, after = text.partition(USER)
    if not found:
        raise OptionError("--chat: the chat template does not write a user's message as it is")
    # An answer begins without a space there, and so must the needle: after a new line.
    head = list(tokenizer(before, add_special_tokens=False)["input_ids"])
    return _Frame(tokenizer, head, "\n\n{question}", _encoded(tokenizer, after), "\n", "")


def _encoded(tokenizer: Any, text: str, before: str = ":") -> list[int]:
    """The tokens of a text that follows another: many tokenizers put a space before what they take for a beginning."""
    if not text:
        return []
    first, both, alone = (
        list(ids) for ids in tokenizer([before, before + text, text], add_special_tokens=False)["input_ids"]
    )
    return both[len(first) :] if both[: len(first)] == first else alone
