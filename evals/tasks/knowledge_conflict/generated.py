"""Knowledge conflicts in generated text: does a strategy answer as the context says, or as the model remembers?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.task import Document
from decoding.evals.engine.text_generation import check_room, generate_texts
from decoding.evals.metrics.exact_match import exact_match, mentioned
from decoding.evals.tasks.knowledge_conflict.data import ConflictQuestion
from decoding.evals.tasks.knowledge_conflict.question_task import Answer, ConflictTask

__all__ = ["GeneratedConflicts"]


class GeneratedConflicts(ConflictTask):
    """Knowledge conflicts in generated text, up to the end of its line; in a chat, the whole answer.

    The answer is the one of which the text is a form, by exact match. ``words``: by the words of a form somewhere in
    the text; a text that has both answers counts as both.

    Args:
        others: the arguments of :class:`ConflictTask`.
        max_new_tokens: of an answer, at most.
    """

    ways = ("", " words")

    def __init__(self, *others: Any, max_new_tokens: int = 32, **named: Any) -> None:
        super().__init__(*others, **named)
        self.max_new_tokens = max_new_tokens
        self.settings |= {"max_new_tokens": max_new_tokens}

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics to show."""
        return ("faithful", "faithful words", "MR words", *(("agreeing words",) if self.has_control else ()))

    def answers(
        self, document: Document, texts: Sequence[str], configurations: Sequence[Configuration]
    ) -> list[Answer]:
        """The generated answers, one by one: each strategy has its own context.

        Raises:
            InputError: a prompt too long for the model's context with an answer.
        """
        return [
            self._answer(document.content, self._text(prompt, configuration, configuration.seed(document.id)))
            for prompt, configuration in self.asked(document.content, texts, configurations)
        ]

    def _answer(self, question: ConflictQuestion, text: str) -> Answer:
        found = {
            way: (fits(text, question.answers), fits(text, question.memory))
            for way, fits in zip(self.ways, (exact_match, mentioned), strict=True)
        }
        return Answer(found, text)

    def _text(self, prompt: str, configuration: Configuration, seed: int) -> str:
        tokens = list(self.tokenizer(prompt, add_special_tokens=self.prompt.special_tokens)["input_ids"])
        check_room(self.model, len(tokens), self.max_new_tokens)
        (generated,) = generate_texts(
            configuration.spec,
            self.model,
            self.tokenizer,
            [tokens],
            [seed],
            max_new_tokens=self.max_new_tokens,
            stop=() if self.prompt.style == "chat" else ("\n",),
            generation_config=configuration.generation_config,
        )
        return generated.text.strip()
