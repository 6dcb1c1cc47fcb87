"""What the scored and the generated evaluation of knowledge conflicts have in common: prompts, contexts, figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.placeholders import filled, placeholders_of
from decoding.evals.engine.task import Document, Record, Task
from decoding.evals.tasks.knowledge_conflict.data import ConflictQuestion
from decoding.evals.tasks.truthfulqa.prompts import Prompt
from decoding.models.chat_template import read_chat_template
from decoding.strategies.registry import StrategySpec

__all__ = ["CONTROL", "GRIDS", "STRATEGIES", "Answer", "ConflictTask", "reads_context"]

CONTROL = "context-aware:context={context},alpha=0"
"""The model after the context, with no contrast: what the others must improve on."""

STRATEGIES = (
    CONTROL,
    "greedy",
    "context-aware:context={context},alpha=0.5",
    "context-aware:context={context},alpha=1",
    "adaptive-context:context={context}",
    "documents:documents={documents}",
)
"""The strategies that are compared where none is named; greedy reads no context."""

GRIDS = (
    CONTROL,
    "greedy",
    "context-aware:context={context}",
    "adaptive-context:context={context}",
    "documents:documents={documents}",
)
"""The same for ``decoding tune``, which chooses the values of the last three."""

RESAMPLES = 1000  # of the memorisation ratio
AFTER_DOCUMENT = "\n\n"  # a system message of a chat loses it


def reads_context(spec: StrategySpec) -> bool:
    """True where a strategy has a placeholder for the context."""
    return bool(placeholders_of(spec, ("context", "documents")))


@dataclass(frozen=True)
class Answer:
    """What a strategy answered to a question after some documents.

    Attributes:
        found: for each way to find the answer, whether it is the one that contradicts the memory, and whether it is the
            memory's.
        details: JSON-able, kept in the samples.
    """

    found: Mapping[str, tuple[bool, bool]]
    details: Any


class ConflictTask(Task):
    """Questions that are answered twice: with a context that contradicts the memory, and with one that agrees with it.

    The prompt is the question alone. A strategy reads a context where its parameters have the placeholder
    ``{context}``, all documents with blank lines between, or ``{documents}``, a list of them; ``{question}`` is the
    question. With ``context_in_prompt`` the strategies without a placeholder read the context before the question.

    Metrics of a question: ``faithful`` and ``memorised``, 1 where the answer with the conflicting context is the
    context's, or the memory's; ``neither``; where there are agreeing documents, ``agreeing``, 1 where the answer with
    these is the memory's, which is then the context's too; and ``both``, 1 where that and ``faithful`` are. Of all
    questions together, ``MR`` is the memorisation ratio (Longpre et al. 2021), the share of the memorised answers among
    the memorised and the faithful ones; 0 where there are neither.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        questions: see :func:`decoding.evals.tasks.knowledge_conflict.data.load`.
        prompt: the form of the prompts.
        context_in_prompt: see above.
        left_out: why questions were left out when the data were read.
        name: of the task.
    """

    corpus_resamples = RESAMPLES
    ways: Sequence[str] = ("",)  # the ends of the metrics' names, one for each way to find the answer

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        questions: Sequence[ConflictQuestion],
        prompt: Prompt,
        *,
        context_in_prompt: bool = False,
        left_out: Sequence[str] = (),
        name: str = "knowledge_conflict",
    ) -> None:
        self.model, self.tokenizer, self.questions, self.prompt = model, tokenizer, questions, prompt
        self.context_in_prompt = context_in_prompt
        self.skipped = left_out
        self.name = name
        self.has_control = all(question.agreeing for question in questions)
        self.settings: dict[str, Any] = {
            "data": digest([question.content for question in questions]),
            "prompt": prompt.settings,
            "context_in_prompt": context_in_prompt,
        }

    @property
    def criterion(self) -> tuple[str, ...]:  # type: ignore[override]
        """What follows the context whatever the memory says; without a control what follows it against the memory."""
        return tuple(f"{'both' if self.has_control else 'faithful'}{way}" for way in self.ways[:2])

    def documents(self) -> Sequence[Document]:
        """One document a question."""
        return [Document(question.id, question, question.where) for question in self.questions]

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """The memorisation ratio, for each way to find the answer."""
        ratios = {}
        for way in self.ways:
            memorised, faithful = (
                sum(record["metrics"][f"{name}{way}"] for record in records) for name in ("memorised", "faithful")
            )
            ratios[f"MR{way}"] = memorised / (memorised + faithful) if memorised + faithful else 0.0
        return ratios

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """One record a configuration.

        Raises:
            InputError: context, question and answer longer than the model's context.
        """
        question: ConflictQuestion = document.content
        conflict = self.answers(document, question.documents, configurations)
        if not self.has_control:
            return [_record(answer, None) for answer in conflict]
        control = self.answers(document, question.agreeing, configurations)
        return [_record(*pair) for pair in zip(conflict, control, strict=True)]

    @abstractmethod
    def answers(
        self, document: Document, texts: Sequence[str], configurations: Sequence[Configuration]
    ) -> list[Answer]:
        """The answer of each configuration to a document's question, with texts as its context."""

    def asked(
        self, question: ConflictQuestion, documents: Sequence[str], configurations: Sequence[Configuration]
    ) -> list[tuple[str, Configuration]]:
        """The prompt of each configuration, which has these documents as its context, and the configuration filled."""
        texts = [document.strip() + AFTER_DOCUMENT for document in documents]
        bare, context = self.prompt.text(question.question), "".join(texts)
        values = {"context": context, "documents": texts, "question": question.question}
        full = self._after(context, bare) if self.context_in_prompt else bare
        return [
            (bare if reads_context(configuration.spec) else full, filled(configuration, values))
            for configuration in configurations
        ]

    def _after(self, context: str, prompt: str) -> str:
        """The prompt after a context: before all of it, or as the system message of a chat."""
        if self.prompt.style != "chat":
            return context + prompt
        template = read_chat_template(self.tokenizer)
        return f"{template.before}{context.strip()}{template.after}{prompt.removeprefix(template.plain)}"


def _record(conflict: Answer, control: Answer | None) -> Record:
    metrics: dict[str, float] = {}
    for way, (faithful, memorised) in conflict.found.items():
        values = {"faithful": faithful, "memorised": memorised, "neither": not (faithful or memorised)}
        if control is not None:
            values |= {"agreeing": control.found[way][1], "both": faithful and control.found[way][1]}
        metrics |= {f"{name}{way}": float(value) for name, value in values.items()}
    details = {"conflict": conflict.details, **({} if control is None else {"agreement": control.details})}
    return {"metrics": metrics, **details}
