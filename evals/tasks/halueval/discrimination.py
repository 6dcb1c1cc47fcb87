"""HaluEval: are true texts more likely to a model than hallucinated ones?

The authors ask a model whether a text is hallucinated. Here the likelihood of the texts themselves has to tell them
apart, because that is what a decoding strategy changes. So the figures are not the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.metrics.discrimination import auroc
from decoding.evals.tasks.halueval.data import KINDS, Responses
from decoding.evals.tasks.likelihood import Likelihood, likelihoods

__all__ = ["HaluEval"]

RESAMPLES = 1000  # of AUC: every resample ranks all documents again


class HaluEval(Task):
    """Discrimination of right and hallucinated texts by likelihood.

    Metrics of a document with both kinds: ``acc``, 1 where the right text's summed log-score is strictly above the
    hallucinated one's; of every document, ``cut``, 1 where the prompt was too long for the model's context: a document
    to summarise then loses its end, another prompt its beginning. Of all documents together: ``AUC``, the area under
    the ROC curve: how often a right text scores above a hallucinated one of any document. ``/token``: of the mean over
    a text's tokens; hallucinated answers are longer, which a sum counts against them. ``raw``: of a strategy's scores
    without the log-softmax.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        responses: see :func:`decoding.evals.tasks.halueval.data.load`; all of one kind.
        knowledge: put a document's knowledge before its question or dialogue.
        prompt: "plain" or "halueval"; see :meth:`Responses.prompt`.
        left_out: why documents were left out when the data were read.
    """

    name = "halueval"
    corpus_resamples = RESAMPLES
    chance = dict.fromkeys(("acc", "acc/token", "AUC", "AUC/token", "AUC raw"), 0.5)

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        responses: Sequence[Responses],
        *,
        knowledge: bool = True,
        prompt: str = "plain",
        left_out: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.responses = responses
        self.knowledge = knowledge
        self.prompt = prompt
        self.skipped = left_out
        self.paired = all(item.right and item.hallucinated for item in responses)
        self.settings = {
            "data": digest([[item.prompt(True), item.right, item.hallucinated] for item in responses]),
            "kind": responses[0].kind,
            "knowledge": knowledge,
            "prompt": prompt,
            "too_long": f"prompts lose {self.lost}",
        }

    @property
    def lost(self) -> str:
        """What a prompt that is too long for the model's context loses."""
        return "the end of their document" if KINDS[self.responses[0].kind].source_is_cut else "their beginning"

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
        kept_end = f"\n{responses.text_label(self.prompt)}" if KINDS[responses.kind].source_is_cut else ""
        prompt = responses.prompt(self.knowledge, self.prompt)
        scored = likelihoods(configurations, self.model, self.tokenizer, prompt, texts, kept_end)
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
