"""POPE (Li et al., EMNLP 2023, 2305.10355): does a model see objects that are not in an image?

Contrasts of images were found to gain on it by saying "yes" more often, and by their plausibility mask (2504.10020). So
the share of "yes" stands beside the accuracy, and accuracy at a threshold that was chosen on other images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from decoding.api import generate_with
from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.task import Document, Record
from decoding.evals.metrics.discrimination import auroc, best_threshold
from decoding.evals.tasks.pope.data import PROMPT, Question
from decoding.evals.tasks.pope.image_questions import ImageQuestions, identity_of
from decoding.models.wrappers import text_tokenizer
from decoding.strategies.effective_config import decoded_with
from decoding.strategies.generation_options import NO_OPTIONS

__all__ = ["METRICS", "Pope", "answer_tokens"]

METRICS = ("acc", "yes", "cal acc", "F1", "precision", "recall")
ANSWERS = {"yes": ("yes", "Yes", " yes", " Yes"), "no": ("no", "No", " no", " No")}
FLOOR = -1000.0  # the score of an answer that a strategy does not find plausible, as elsewhere


def answer_tokens(tokenizer: Any) -> dict[str, list[int]]:
    """The tokens that are the word "yes" and the word "no", with and without a capital and a space before them.

    Raises:
        OptionError: there is none for one of them.
    """
    found: dict[str, list[int]] = {}
    for answer, forms in ANSWERS.items():
        encoded = (tokenizer(form, add_special_tokens=False)["input_ids"] for form in forms)
        whole = {ids[0] for ids in encoded if len(ids) == 1} - {tokenizer.unk_token_id}
        if not whole:
            raise OptionError(f"the model's tokenizer has no token that is the word {answer!r}, which POPE asks for")
        found[answer] = sorted(whole)
    return found


class Pope(ImageQuestions):
    """POPE by the scores of "yes" and "no" as the first token of the answer.

    Metrics of a question: ``acc``, 1 where its answer scores above the other; ``yes``, 1 where "yes" does; ``cal acc``
    and ``cal yes``, the same where the score of "yes" is above that of "no" by more than a threshold that was chosen on
    other images. Equal scores, which both answers have that a strategy finds implausible, count as one half. Of all
    questions: ``F1``, ``precision`` and ``recall`` of "yes", as in the paper, and ``AUC``: how often a question whose
    answer is "yes" has a larger difference than one whose answer is "no", which no threshold changes.

    A score is the log-softmax of the strategy's scores, summed in probability over the forms of the word.

    Args:
        model: a transformers model of images.
        processor: its processor.
        questions: see :func:`load`.
        prompt: the text that is asked, with ``{question}`` in it.
        chat: put image and prompt into the processor's chat template; without it the prompt has the processor's token
            for an image.
        thresholds: by the hash of a configuration, chosen on ``calibration``; None to choose them: the metrics are then
            without ``cal``, and :meth:`corpus_metrics_once` has the threshold.
        calibration: the questions that thresholds are chosen on.
        left_out: why questions were left out when the data were read.
    """

    name = "pope"
    criterion = ("cal acc",)
    chance = dict.fromkeys(("acc", "cal acc", "AUC"), 0.5)

    def __init__(
        self,
        model: Any,
        processor: Any,
        questions: Sequence[Question],
        *,
        prompt: str = PROMPT,
        chat: bool = False,
        thresholds: Mapping[str, float] | None = None,
        calibration: Sequence[Question] = (),
        left_out: Sequence[str] = (),
    ) -> None:
        super().__init__(model, processor, questions, prompt, chat, left_out, {"calibration": identity_of(calibration)})
        self.thresholds = thresholds
        self.tokens = answer_tokens(text_tokenizer(processor))

    @property
    def figures(self) -> Sequence[str]:
        """The metrics to show."""
        return METRICS

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One record a configuration.

        Raises:
            InputError: a file that is no image, or a prompt without a place for it.
        """
        item: Question = document.content
        inputs = self.inputs(item)
        return [
            self._record(item, configuration, self._scores(configuration, inputs)) for configuration in configurations
        ]

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """F1, precision and recall of "yes", and AUC."""
        return {**super().corpus_metrics(records), "AUC": auroc(*_margins(records))}

    def corpus_metrics_once(self, records: Sequence[Record]) -> Mapping[str, float]:
        """The threshold with the fewest errors, where it is to be chosen."""
        if self.thresholds is not None:
            return {}
        return {"threshold": best_threshold(*_margins(records))}

    def _scores(self, configuration: Configuration, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
        with decoded_with(self.model, NO_OPTIONS):
            output = generate_with(
                configuration.spec, self.model, **inputs, max_new_tokens=1, return_dict_in_generate=True,
                output_scores=True,
            )  # fmt: skip
        scores = output.scores[0][0].double().log_softmax(-1)
        return {answer: max(FLOOR, float(scores[tokens].logsumexp(0))) for answer, tokens in self.tokens.items()}

    def _record(self, item: Question, configuration: Configuration, scores: dict[str, float]) -> Record:
        ways = {"": 0.0}
        if self.thresholds is not None:
            ways["cal "] = self.thresholds[configuration.hash]
        metrics: dict[str, float] = {}
        for way, threshold in ways.items():
            yes = _above(scores["yes"] - scores["no"], threshold)
            metrics |= {f"{way}acc": yes if item.answer == "yes" else 1 - yes, f"{way}yes": yes}
        return {"metrics": metrics, "answer": item.answer, "scores": scores}


def _margins(records: Sequence[Record]) -> list[list[float]]:
    """The differences of scores of the questions whose answer is "yes", and of the others."""
    return [
        [record["scores"]["yes"] - record["scores"]["no"] for record in records if record["answer"] == answer]
        for answer in ANSWERS
    ]


def _above(margin: float, threshold: float) -> float:
    return 0.5 if margin == threshold else float(margin > threshold)
