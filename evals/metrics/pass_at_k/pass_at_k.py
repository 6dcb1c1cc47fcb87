"""pass@k: the chance that one of k programs passes the tests, which are run in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from decoding.errors import OptionError
from decoding.evals.metrics.passing import mean_pass_at_k
from decoding.evals.sandbox import Limits, run_program

INPUTS = """
Args:
    predictions: for each problem a list of programs.
    references: for each problem its tests, Python source that comes to its end if they pass.
    k: which k, each at most the number of programs of a problem.
    allow_code_execution: True, once you know what the sandbox keeps programs from (docs/multilingual.md).
    weak_isolation: run them also where the kernel cannot isolate them.
    seconds: that a program has.

Returns:
    pass@1, ...; outcomes: for each problem and program "passed", or why not.
"""

CITATION = "Chen et al., Evaluating Large Language Models Trained on Code, 2021"


class PassAtK(evaluate.Metric):
    """The module that ``evaluate.load`` finds in this folder."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("string")),
                    "references": datasets.Value("string"),
                }
            ),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[str],
        k: Sequence[int] = (1,),
        allow_code_execution: bool = False,
        weak_isolation: bool = False,
        seconds: float = Limits().seconds,
    ) -> dict[str, Any]:
        if not allow_code_execution:
            raise OptionError("pass@k runs what a model wrote: say allow_code_execution=True (docs/multilingual.md)")
        outcomes = [
            [run_program(f"{each}\n{tests}\n", Limits(seconds=seconds), weak=weak_isolation) for each in programs]
            for programs, tests in zip(predictions, references, strict=True)
        ]
        passed = [[each.passed for each in row] for row in outcomes]
        shares = {f"pass@{each}": mean_pass_at_k(passed, each) for each in k}
        return {**shares, "outcomes": [[each.reason for each in row] for row in outcomes]}
