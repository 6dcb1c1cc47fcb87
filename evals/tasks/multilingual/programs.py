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
    """Writing a function, which its tests then run.

    Args:
        samples: programs a problem, where tokens are drawn; else one program stands for all.
        k: of pass@k.
        limits: of each program.
        weak: see :func:`decoding.evals.sandbox.run_program`.
    """

    def __init__(
        self, *arguments: Any, samples: int, k: Sequence[int], limits: Limits, weak: bool, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        bad = next((each for each in k if not 1 <= each <= samples), None)
        if bad is not None:
            raise OptionError(f"--k {bad}: there are {samples} samples a problem; accepted are 1 to {samples}")
        self.samples, self.k, self.limits, self.weak = samples, k, limits, weak
        self.settings = {**self.settings, "samples": samples, "k": list(k), "limits": vars(limits)}

    def prompt(self, content: Problem) -> str:
        """Signature and docstring."""
        return content.prompt

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """See :class:`decoding.evals.engine.task.Task`."""
        records: list[list[Record]] = [[] for _ in documents]
        for configuration in configurations:
            count = self.samples if configuration.spec.is_stochastic else 1
            prompts = [self.prompt(each.content) for each in documents for _ in range(count)]
            seeds = [configuration.seed(f"{each.id} {index}") for each in documents for index in range(count)]
            made = self.generator.generate(configuration.spec, prompts, seeds)
            for index, (document, row) in enumerate(zip(documents, records, strict=True)):
                generated = made[index * count : (index + 1) * count]
                row.append({"strategy": configuration.label, **self._record(document.content, generated)})
        return records

    def record(self, content: Problem, generated: GeneratedText) -> Record:
        """Of a single program."""
        return self._record(content, [generated])

    def _record(self, problem: Problem, generated: Sequence[GeneratedText]) -> Record:
        outcomes = [run_program(problem.program(each.text), self.limits, weak=self.weak) for each in generated]
        passed = sum(each.passed for each in outcomes)
        # One program that is always the same stands for as many as are asked of.
        shares = {
            f"pass@{k}": pass_at_k(len(generated), passed, k) if len(generated) > 1 else float(passed) for k in self.k
        }
        return {
            "problem": problem.id,
            "prefix": problem.prompt,
            "text": generated[0].text,
            "reference": "",
            "texts": [each.text for each in generated],
            "outcomes": [each.reason for each in outcomes],
            "metrics": {**shares, "tokens": sum(each.tokens for each in generated) / len(generated)},
        }
