"""The fourth generation task: functions, whose tests are run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError
from decoding.evals.engine.configurations import Configuration
from decoding.evals.engine.task import Document, Record
from decoding.evals.engine.text_generation import GeneratedText
from decoding.evals.metrics.passing import pass_at_k
from decoding.evals.sandbox import Limits, run_program
from decoding.evals.tasks.multilingual.data import Problem
from decoding.evals.tasks.multilingual.tasks import GenerationTask

__all__ = ["Code"]


class Code(GenerationTask):
    """Writing a function, which is then tested.

    Args:
        samples: programs a problem, where tokens are sampled; else one program stands for all.
        k: of pass@k.
        limits: of each program.
        weak: see :func:`decoding.evals.sandbox.run_program`.
    """

    def __init__(
        self, *arguments: Any, samples: int, k: Sequence[int], limits: Limits, weak: bool, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        bad = next((count for count in k if not 1 <= count <= samples), None)
        if bad is not None:
            raise OptionError(f"--k {bad}: there are {samples} samples a problem; --k must be 1 to {samples}")
        self.samples, self.k, self.limits, self.weak = samples, k, limits, weak
        self.criterion = (f"pass@{k[0]}",)
        self.settings = {**self.settings, "samples": samples, "k": list(k), "limits": vars(limits)}

    def prompt(self, content: Problem) -> str:
        """Signature and docstring."""
        return content.prompt

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """The programs of several problems, and the results of their tests."""
        records: list[list[Record]] = [[] for _ in documents]
        for configuration in configurations:
            count = self.samples if configuration.spec.is_stochastic else 1
            prompts = [self.prompt(document.content) for document in documents for _ in range(count)]
            seeds = [configuration.seed(f"{document.id} {index}") for document in documents for index in range(count)]
            texts: list[GeneratedText] = []
            for start in range(0, len(prompts), self.group_size):
                part = slice(start, start + self.group_size)
                texts += self.generator.generate(
                    configuration.spec, prompts[part], seeds[part], configuration.generation_config
                )
            for index, (document, row) in enumerate(zip(documents, records, strict=True)):
                generated = texts[index * count : (index + 1) * count]
                row.append({"strategy": configuration.label, **self._record(document.content, generated)})
        return records

    def record(self, content: Problem, generated: GeneratedText) -> Record:
        """The record of a single program."""
        return self._record(content, [generated])

    def _record(self, problem: Problem, generated: Sequence[GeneratedText]) -> Record:
        outcomes = [run_program(problem.program(text.text), self.limits, weak=self.weak) for text in generated]
        passed = sum(outcome.passed for outcome in outcomes)
        # A deterministic program stands for any number of samples.
        shares = {
            f"pass@{k}": pass_at_k(len(generated), passed, k) if len(generated) > 1 else float(passed) for k in self.k
        }
        return {
            "problem": problem.id,
            "prefix": problem.prompt,
            "text": generated[0].text,
            "reference": "",
            "texts": [text.text for text in generated],
            "outcomes": [outcome.reason for outcome in outcomes],
            "metrics": {**shares, "tokens": sum(text.tokens for text in generated) / len(generated)},
        }
