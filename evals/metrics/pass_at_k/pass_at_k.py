"""pass@k: the chance that one of k programs passes the tests, which are run in a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError
from decoding.evals.metrics.modules import TEXT, TEXTS, metric_module
from decoding.evals.metrics.passing import mean_pass_at_k
from decoding.evals.sandbox import Limits, run_program

CITATION = "Chen et al., Evaluating Large Language Models Trained on Code, 2021"


def compute(
    predictions: list[list[str]],
    references: list[str],
    k: Sequence[int] = (1,),
    allow_code_execution: bool = False,
    weak_isolation: bool = False,
    seconds: float = Limits().seconds,
) -> dict[str, Any]:
    """Compute pass@k.

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
    if not allow_code_execution:
        raise OptionError("pass@k runs what a model wrote: say allow_code_execution=True (docs/multilingual.md)")
    outcomes = [
        [run_program(f"{program}\n{tests}\n", Limits(seconds=seconds), weak=weak_isolation) for program in programs]
        for programs, tests in zip(predictions, references, strict=True)
    ]
    passed = [[outcome.passed for outcome in row] for row in outcomes]
    shares = {f"pass@{count}": mean_pass_at_k(passed, count) for count in k}
    return {**shares, "outcomes": [[outcome.reason for outcome in row] for row in outcomes]}


PassAtK = metric_module(compute, __doc__, CITATION, {"predictions": TEXTS, "references": TEXT})
