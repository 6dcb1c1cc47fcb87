"""HaluEval (Li et al., EMNLP 2023, 2305.11747): are true texts more likely to a model than hallucinated ones?

The authors ask a model whether a text is hallucinated. Here the likelihood of the texts themselves has to tell them
apart, because that is what a decoding strategy changes. So the figures are not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.metrics.discrimination import auroc
from decoding.evals.tasks.likelihood import Likelihood, likelihoods
from decoding.rows import Row, documents, rows_of

__all__ = ["HaluEval", "Responses", "load"]

RESAMPLES = 1000  # of AUC: every resample ranks all documents again


@dataclass(frozen=True)
class Responses:
    """One document of HaluEval: a question, and texts that answer it.

    Attributes:
        id: the row's number from 1 (the ids of ``general_data.json`` are not unique).
        question: as in the data.
        knowledge: a text that contains the answer; "" where the data have none.
        right: texts without hallucination.
        hallucinated: texts with hallucination. QA has one of each, the general file one text in all.
        where: file and row that they come from, for messages.
    """

    id: str
    question: str
    knowledge: str
    right: tuple[str, ...]
    hallucinated: tuple[str, ...]
    where: str = field(default="", compare=False)

    def prompt(self, knowledge: bool) -> str:
        """The prompt before the texts; the wording is ours."""
        question = f"Question: {self.question}\nAnswer:"
        return f"Knowledge: {self.knowledge}\n{question}" if knowledge and self.knowledge else question


def load(source: str, skip_bad: bool = False) -> tuple[list[Responses], list[str]]:
    """HaluEval's documents, and one line for each that was left out.

    Args:
        source: ``qa_data.json``, ``qa_one-turn_data.json`` (knowledge, question, right_answer, hallucinated_answer) or
            ``general_data.json`` (user_query, chatgpt_response, hallucination): a file, or a hub name.
        skip_bad: leave bad rows out instead of raising.

    Raises:
        InputError: no such data, or a bad row without ``skip_bad``, named by file, row and column.
    """
    return documents(rows_of(source), _responses, skip_bad)


class HaluEval(Task):
    """Discrimination of right and hallucinated texts by likelihood.

    Metrics of a document with both kinds: ``acc``, 1 where the right text's summed log-score is strictly above the
    hallucinated one's; of every document, ``cut``, 1 where the prompt did not fit into the model's context. Of all
    documents together: ``AUC``, the area under the ROC curve: how often a right text scores above a hallucinated one of
    any document. ``/token``: of the mean over a text's tokens; hallucinated answers are longer, which a sum counts
    against them. ``raw``: of a strategy's scores without the log-softmax.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        responses: see :func:`load`.
        knowledge: put a document's knowledge before the question.
        left_out: why documents were left out when the data were read.
    """

    name = "halueval"
    corpus_resamples = RESAMPLES

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        responses: Sequence[Responses],
        *,
        knowledge: bool = True,
        left_out: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.responses = responses
        self.knowledge = knowledge
        self.skipped = left_out
        self.paired = all(item.right and item.hallucinated for item in responses)
        self.settings = {
            "data": digest([[item.prompt(True), item.right, item.hallucinated] for item in responses]),
            "knowledge": knowledge,
        }

    @property
    def figures(self) -> tuple[str, ...]:
        """The metrics to show."""
        return ("acc", "acc/token", "AUC", "AUC/token") if self.paired else ("AUC", "AUC/token", "AUC raw")

    def documents(self) -> Sequence[Document]:
        """One document a row."""
        return [Document(item.id, item, item.where) for item in self.responses]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One record a configuration.

        Raises:
            InputError: a text as long as the model's context.
        """
        responses: Responses = document.content
        texts = [f" {text.strip()}" for text in (*responses.right, *responses.hallucinated)]
        prompt = responses.prompt(self.knowledge)
        scored = likelihoods(configurations, self.model, self.tokenizer, prompt, texts)
        return [self._record(scores, len(responses.right), cut) for scores, cut in scored]

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """AUC of each way to score a text."""
        texts = [text for record in records for text in record["texts"]]
        kinds = [[text["scores"] for text in texts if text["hallucinated"] is kind] for kind in (False, True)]
        ways = texts[0]["scores"] if texts else {}
        return {f"AUC{way}": auroc(*([scores[way] for scores in kind] for kind in kinds)) for way in ways}

    def _record(self, scores: Sequence[Likelihood], right: int, cut: int) -> Record:
        figures = [score.figures() for score in scores]
        metrics = {}
        if self.paired:
            metrics = {f"acc{way}": float(figures[0][way] > figures[1][way]) for way in figures[0]}
        return {
            "metrics": {**metrics, "cut": float(cut > 0)},
            "texts": [
                {"hallucinated": i >= right, "tokens": score.tokens, "scores": ways}
                for i, (score, ways) in enumerate(zip(scores, figures, strict=True))
            ],
            "cut_tokens": cut,
        }


def _responses(row: Row) -> Responses:
    if "user_query" in row or "chatgpt_response" in row:
        query, response = row.text("user_query"), row.text("chatgpt_response")
        verdict = row.text("hallucination").strip().lower()
        if verdict not in ("yes", "no"):
            raise row.fault("hallucination", f"is {verdict!r}; must be yes or no")
        right, hallucinated = ((), (response,)) if verdict == "yes" else ((response,), ())
        return Responses(str(row.number), query, "", right, hallucinated, row.where)
    knowledge = row.text("knowledge") if "knowledge" in row else ""
    question, *texts = (row.text(name) for name in ("question", "right_answer", "hallucinated_answer"))
    return Responses(str(row.number), question, knowledge, (texts[0],), (texts[1],), row.where)
