"""TruthfulQA with answers that the model writes itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from decoding.api import generate_with
from decoding.errors import InputError
from decoding.evals.engine.configurations import Configuration, digest, fingerprint
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.tasks.truthfulqa.data import Question
from decoding.evals.tasks.truthfulqa.judge import Judge
from decoding.evals.tasks.truthfulqa.prompts import Prompt, common_beginning
from decoding.evals.tasks.truthfulqa.shared_prompt import SharedPrompt
from decoding.evals.tasks.truthfulqa.similarity import references, similarities
from decoding.models.devices import input_device
from decoding.models.inputs import context_of
from decoding.text import until_end
from decoding.transformers_private import CACHE_ARGUMENT

__all__ = ["STOPS", "Generation", "generated"]

SHOWN = ("bleu_max", "bleu_diff", "bleu_acc", "rougeL_diff", "rougeL_acc")

# Where an answer ends in the prompts of questions and answers: the next question, or a blank line before it.
STOPS = ("Q:", "\n\n")


class Generation(Task):
    """Answers written by each strategy, compared with true and false references and, where there are any, judged.

    Metrics: those of :func:`decoding.evals.tasks.truthfulqa.similarity.similarities`; ``truth`` and ``info``, 1 where that
    judge finds " yes" at least as probable as not; ``truth_info``, their product, with both.

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

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One answer a configuration.

        Raises:
            InputError: the prompt leaves no room for an answer in the model's context.
        """
        return self.evaluate_group([document], configurations)[0]

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """One answer a document and configuration."""
        prompts = [self._encoded(document.content) for document in documents]
        columns = []
        for configuration in configurations:
            if configuration.choice.is_stochastic:
                answers = []
                for document, tokens in zip(documents, prompts, strict=True):
                    torch.manual_seed(configuration.seed(document.id))
                    answers += self._answers(configuration, [tokens])
            else:
                answers = self._answers(configuration, prompts)
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

    def _answers(self, configuration: Configuration, prompts: Sequence[Sequence[int]]) -> list[str]:
        stops = () if self.prompt.style == "chat" else STOPS
        shared = self._shared_prompt()
        return generated(
            configuration, self.model, self.tokenizer, prompts, max_new_tokens=self.max_new_tokens, stops=stops,
            shared=shared if shared.serves(configuration.choice, self.model) else None,
        )  # fmt: skip

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


def generated(
    configuration: Configuration,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stops: Sequence[str] = (),
    shared: SharedPrompt | None = None,
) -> list[str]:
    """What a strategy writes behind each of several prompts, in one ``generate()`` call.

    Args:
        configuration: whose strategy.
        model: a generating transformers model.
        tokenizer: its tokenizer.
        prompts: token ids, of any lengths; shorter ones are padded on the left.
        max_new_tokens: the longest text.
        stops: a text ends before the first of these.
        shared: what all prompts begin with; None reads it anew.

    Returns:
        The texts, without space around them.
    """
    longest = max(map(len, prompts))
    pads = [longest - len(each) for each in prompts]
    pad = next((each for each in (tokenizer.pad_token_id, tokenizer.eos_token_id) if each is not None), 0)
    rows = list(zip(pads, prompts, strict=True))
    padded = torch.tensor([[pad] * count + list(each) for count, each in rows], device=input_device(model))
    mask = torch.tensor([[0] * count + [1] * len(each) for count, each in rows], device=input_device(model))
    sequences = generate_with(
        configuration.choice,
        model,
        input_ids=padded,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **({"stop_strings": list(stops), "tokenizer": tokenizer} if stops else {}),
        **({CACHE_ARGUMENT: shared.cache(pads)} if shared is not None else {}),
    ).cpu()
    start = 1 if model.config.is_encoder_decoder else longest
    texts = []
    for sequence in sequences:
        new = until_end(sequence[start:], model)
        text = str(tokenizer.decode(new, skip_special_tokens=True))
        texts.append(text[: min((text.index(stop) for stop in stops if stop in text), default=len(text))].strip())
    return texts
