"""TruthfulQA with answers that the model writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from decoding.errors import InputError
from decoding.evals.engine.configurations import Configuration, digest, fingerprint
from decoding.evals.engine.task import Document, GroupTask, Record
from decoding.evals.engine.text_generation import generate_texts
from decoding.evals.tasks.truthfulqa.data import Question
from decoding.evals.tasks.truthfulqa.judge import Judge
from decoding.evals.tasks.truthfulqa.prompts import Prompt, common_beginning
from decoding.evals.tasks.truthfulqa.shared_prompt import SharedPrompt
from decoding.evals.tasks.truthfulqa.similarity import references, similarities
from decoding.models.inputs import context_of

__all__ = ["STOPS", "Generation"]

SHOWN = ("bleu_max", "bleu_diff", "bleu_acc", "rougeL_diff", "rougeL_acc")

# Where an answer ends in the prompts of questions and answers: the next question, or a blank line before it.
STOPS = ("Q:", "\n\n")


class Generation(GroupTask):
    """Answers written by each strategy, compared with true and false references and, where there are any, judged.

    Metrics: those of :func:`decoding.evals.tasks.truthfulqa.similarity.similarities`; ``truth`` and ``info``, 1 where
    that judge finds " yes" at least as probable as not; ``truth_info``, their product, with both.

    Args:
        model: a generating transformers model.
        tokenizer: its tokenizer.
        questions: see :func:`decoding.evals.tasks.truthfulqa.data.load`.
        prompt: how they are asked.
        max_new_tokens: the longest answer; 50 as in DoLa's script.
        batch_size: so many questions are answered in one ``generate()`` call. Strategies that draw answer one at a
            time, so that what is drawn depends on the question alone.
        judges: of the answers.
        left_out: why questions were left out when the data were read.
        name: of the task.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        questions: Sequence[Question],
        prompt: Prompt,
        *,
        max_new_tokens: int = 50,
        batch_size: int = 8,
        judges: Sequence[Judge] = (),
        left_out: Sequence[str] = (),
        name: str = "truthfulqa_generation",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.questions = questions
        self.prompt = prompt
        self.max_new_tokens = max_new_tokens
        self.group_size = batch_size
        self.judges = judges
        self.skipped = left_out
        self.name = name
        self.settings = {
            "prompt": asdict(prompt),
            "questions": digest([[each.question, each.correct_answers, each.incorrect_answers] for each in questions]),
            "max_new_tokens": max_new_tokens,
            "batch_size": batch_size,
            "judges": {each.asks: fingerprint(each.model) for each in judges},
        }
        self._shared: SharedPrompt | None = None

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics to show."""
        judged = ("truth", "info", "truth_info") if len(self.judges) == 2 else tuple(each.asks for each in self.judges)
        return (*judged, "bleu_acc", "rougeL_acc") if judged else SHOWN

    def documents(self) -> Sequence[Document]:
        """The questions."""
        return [Document(each.id, each, each.where) for each in self.questions]

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """One answer a document and configuration.

        Raises:
            InputError: a prompt that is too long for the model's context with an answer.
        """
        prompts = [self._encoded(document.content) for document in documents]
        columns = []
        for configuration in configurations:
            answers = self._answers(configuration, documents, prompts)
            columns.append([self._record(*pair) for pair in zip(documents, answers, strict=True)])
        return list(zip(*columns, strict=True))

    def _encoded(self, question: Question) -> list[int]:
        tokens = self._tokens(question)
        context = context_of(self.model)
        if context is not None and len(tokens) + self.max_new_tokens > context:
            raise InputError(
                f"its prompt has {len(tokens)} tokens and an answer may have {self.max_new_tokens}: more than the "
                f"model's context of {context}"
            )
        return tokens

    def _tokens(self, question: Question) -> list[int]:
        text = self.prompt.text(question.question)
        return list(self.tokenizer(text, add_special_tokens=self.prompt.special_tokens)["input_ids"])

    def _shared_prompt(self) -> SharedPrompt:
        """What all prompts begin with, read once."""
        if self._shared is None:
            prompts = [self._tokens(each) for each in self.questions]
            room = min(map(len, prompts)) - 1  # a token at least is each prompt's own
            self._shared = SharedPrompt(self.model, common_beginning(prompts)[:room])
        return self._shared

    def _answers(
        self, configuration: Configuration, documents: Sequence[Document], prompts: Sequence[Sequence[int]]
    ) -> list[str]:
        """The answers, without space around them."""
        shared = self._shared_prompt()
        answers = generate_texts(
            configuration.spec,
            self.model,
            self.tokenizer,
            prompts,
            [configuration.seed(document.id) for document in documents],
            max_new_tokens=self.max_new_tokens,
            stop=() if self.prompt.style == "chat" else STOPS,
            prefix_cache=shared.cache if shared.serves(configuration.spec, self.model) else None,
        )
        return [answer.text.strip() for answer in answers]

    def _record(self, document: Document, answer: str) -> Record:
        question: Question = document.content
        metrics = similarities(answer, *references(question), question.language)
        probabilities: dict[str, float] = {
            each.asks: each.probability(question.question, answer) for each in self.judges
        }
        verdicts = {name: float(probability >= 0.5) for name, probability in probabilities.items()}
        if len(verdicts) == 2:
            verdicts["truth_info"] = verdicts["truth"] * verdicts["info"]
        return {
            "metrics": {**metrics, **verdicts},
            "question": question.question,
            "answer": answer,
            **({"judged": probabilities} if probabilities else {}),
        }
