"""What both forms of POPE share: questions about images, and figures of "yes" over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from decoding.evals.engine.configurations import digest
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.tasks.pope.data import Question, checked_prompt
from decoding.models.media import processed, read_image

__all__ = ["ImageQuestions", "identity_of"]


class ImageQuestions(Task):
    """Base of tasks of yes-or-no questions about images.

    Args:
        model: a transformers model of images.
        processor: its processor.
        questions: see :func:`decoding.evals.tasks.pope.data.load`.
        prompt: the text that is asked, with ``{question}`` in it.
        chat: put image and prompt into the processor's chat template; without it the prompt has the processor's token
            for an image.
        left_out: why questions were left out when the data were read.
        settings: of the task beside the questions, the prompt and the processor.
    """

    corpus_resamples = 1000

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        prompt: str,
        chat: bool,
        left_out: Sequence[str],
        settings: Mapping[str, Any],
    ) -> None:
        checked_prompt(prompt)
        self.model, self.processor, self.questions = model, processor, questions
        self.prompt, self.chat, self.skipped = prompt, chat, left_out
        part = getattr(processor, "image_processor", None)
        self.settings = {
            "questions": identity_of(questions),
            **settings,
            "prompt": prompt,
            "chat": chat,
            "processor": digest([type(processor).__name__, part.to_dict() if part is not None else {}]),
        }

    def documents(self) -> Sequence[Document]:
        """One document a question."""
        return [Document(item.id, item, item.where) for item in self.questions]

    def inputs(self, item: Question) -> dict[str, torch.Tensor]:
        """What the model is given of a question.

        Raises:
            InputError: a file that is no image, or a prompt without a place for it.
        """
        text = self.prompt.replace("{question}", item.question)
        return processed(self.model, self.processor, text, [read_image(item.image)], chat=self.chat)

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """F1, precision and recall of "yes", as in the paper."""
        pairs = [(record["answer"] == "yes", record["metrics"]["yes"]) for record in records]
        true, said = sum(right for right, _ in pairs), sum(yes for _, yes in pairs)
        both = sum(yes for right, yes in pairs if right)
        return {
            "F1": 2 * both / (true + said) if true + said else 0.0,
            "precision": both / said if said else 0.0,
            "recall": both / true if true else 0.0,
        }


def identity_of(questions: Sequence[Question]) -> str:
    """A digest of questions, their images and their answers."""
    return digest([[item.id, item.image_hash, item.question, item.answer] for item in questions])
