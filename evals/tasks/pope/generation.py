"""POPE with generated answers, read as its authors read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from decoding.api import generate_with
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.task import Document, Record
from decoding.evals.engine.text_generation import check_room
from decoding.evals.tasks.pope.data import PROMPT, Question
from decoding.evals.tasks.pope.image_questions import ImageQuestions
from decoding.models.wrappers import text_tokenizer
from decoding.strategies.effective_config import decoded_with
from decoding.strategies.generation_options import EVALUATIONS_REFUSE, checked_options
from decoding.text import new_text

__all__ = ["PopeGeneration", "said"]

NO = {"No", "no", "not"}
YES = {"Yes", "yes"}


def said(answer: str) -> tuple[str, bool]:
    """What an answer says, and whether it says so by a word for it.

    The rule is that of the authors' script: of the text before the first full stop, commas left out, an answer with one
    of the words "No", "no" and "not" is no; any other is yes. A line break ends the text too (ours): models that do not
    end after the answer go on with a further question.
    """
    lines = answer.strip().splitlines()
    words = set((lines[0] if lines else "").split(".")[0].replace(",", "").split())
    return "no" if words & NO else "yes", bool(words & (NO | YES))


class PopeGeneration(ImageQuestions):
    """POPE with answers that each strategy generates.

    Metrics of a question: ``acc``, 1 where the answer is right; ``yes``, 1 where it is read as "yes"; ``unclear``, 1
    where it has neither "yes" nor a word for "no" in it, which counts as "yes" (:func:`said`). Of all questions ``F1``,
    ``precision`` and ``recall`` of "yes".

    Args:
        model: a transformers model of images.
        processor: its processor.
        questions: see :func:`decoding.evals.tasks.pope.data.load`.
        prompt: the text that is asked, with ``{question}`` in it.
        chat: put image and prompt into the processor's chat template.
        max_new_tokens: the longest answer.
        left_out: why questions were left out when the data were read.
    """

    name = "pope_generation"
    criterion = ("acc",)
    chance: Mapping[str, float] = {"acc": 0.5}
    figures = ("acc", "yes", "unclear", "F1", "precision", "recall")

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        *,
        prompt: str = PROMPT,
        chat: bool = False,
        max_new_tokens: int = 16,
        left_out: Sequence[str] = (),
    ) -> None:
        super().__init__(model, processor, questions, prompt, chat, left_out, {"max_new_tokens": max_new_tokens})
        self.tokenizer, self.max_new_tokens = text_tokenizer(processor), max_new_tokens

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One answer a configuration.

        Raises:
            InputError: a file that is no image, a prompt without a place for it, or one that is too long for the
                model's context with an answer.
        """
        item: Question = document.content
        inputs = self.inputs(item)
        check_room(self.model, inputs["input_ids"].shape[1], self.max_new_tokens)
        return [
            self._record(item, self._answer(configuration, document.id, inputs)) for configuration in configurations
        ]

    def _answer(self, configuration: Configuration, id_: str, inputs: Mapping[str, torch.Tensor]) -> str:
        options = checked_options(configuration.generation_config, EVALUATIONS_REFUSE)
        if configuration.spec.is_stochastic:
            torch.manual_seed(configuration.seed(id_))
        with decoded_with(self.model, options):
            sequences = generate_with(
                configuration.spec, self.model, **inputs, max_new_tokens=self.max_new_tokens, tokenizer=self.tokenizer
            )
        return new_text(self.model, self.tokenizer, sequences[0].cpu(), inputs["input_ids"].shape[1])[0].strip()

    def _record(self, item: Question, answer: str) -> Record:
        read, clear = said(answer)
        metrics = {"acc": float(read == item.answer), "yes": float(read == "yes"), "unclear": float(not clear)}
        return {"metrics": metrics, "answer": item.answer, "text": answer}
