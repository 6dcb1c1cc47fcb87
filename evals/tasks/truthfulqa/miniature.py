"""TruthfulQA in miniature: the embedded world's questions, the strategies compared on them, and their tuning."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from decoding.evals import miniature
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.tasks.truthfulqa.data import Question, Targets
from decoding.evals.tasks.truthfulqa.multiple_choice import MultipleChoice
from decoding.evals.tasks.truthfulqa.prompts import prompt_of
from decoding.strategies.baselines import Greedy
from decoding.strategies.context_aware import ContextAware
from decoding.strategies.contrastive_decoding import ContrastiveDecoding
from decoding.strategies.dola import DoLa
from decoding.strategies.lol import LOL
from decoding.strategies.registry import StrategySpec

__all__ = ["CRITERION", "GRIDS", "STRATEGIES", "questions", "tuned"]

CRITERION = ("MC1", "MC2")
"""The figures that choose hyper-parameters: the first, and the second where several are equal in it."""

BETAS, ALPHAS = (0.25, 0.5, 1.0), (0.0, 0.1)


def _combinations(**values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Every combination of values."""
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def _lol(guidance: str | None, refocus_weights: Sequence[float]) -> list[StrategySpec]:
    return [
        StrategySpec("lol", LOL("induced", guidance=guidance, **values))
        for values in _combinations(
            lower_layers=((1,), (2,), (3,)),
            amateur_weight=(0.5, 1.0),
            fusion_weight=(0.25, 0.5, 1.0),
            refocus_weight=refocus_weights,
        )
    ]


GRIDS: Mapping[str, Sequence[StrategySpec]] = {
    "greedy": [StrategySpec("greedy", Greedy())],
    "contrastive decoding": [
        StrategySpec("contrastive-decoding", ContrastiveDecoding("amateur", **values))
        for values in _combinations(beta=BETAS, alpha=ALPHAS)
    ],
    "induced contrast": [
        StrategySpec("contrastive-decoding", ContrastiveDecoding("induced", form="log_probs", **values))
        for values in _combinations(beta=BETAS, alpha=ALPHAS)
    ],
    "DoLa": [
        StrategySpec("dola", DoLa(**values))
        for values in _combinations(layers=("low", "high", (1, 2, 3)), alpha=ALPHAS, final_norm=(False, True))
    ],
    "context-aware": [
        StrategySpec("context-aware", ContextAware(miniature.GUIDANCE, alpha=alpha)) for alpha in (0.25, 0.5, 1.0, 2.0)
    ],
    "LOL without refocusing": _lol(None, [0.5]),
    "LOL with refocusing": _lol(miniature.GUIDANCE, [0.25, 0.5, 1.0]),
}
"""For each strategy the hyper-parameters among which :func:`tuned` chooses."""

STRATEGIES: Sequence[StrategySpec] = (
    StrategySpec("greedy", Greedy()),
    StrategySpec("contrastive-decoding", ContrastiveDecoding("amateur")),
    StrategySpec("contrastive-decoding", ContrastiveDecoding("induced", form="log_probs", beta=1.0, alpha=0.0)),
    StrategySpec("dola", DoLa()),
    StrategySpec("context-aware", ContextAware(miniature.GUIDANCE)),
    StrategySpec("lol", LOL("induced", (0.5, 0.75))),
    StrategySpec("lol", LOL("induced", (0.5, 0.75), guidance=miniature.GUIDANCE)),
)
"""The same with untuned hyper-parameters: the library's and, for the induced contrast, its authors'."""


def questions(split: str) -> list[Question]:
    """The questions of a split, "validation" or "test", in TruthfulQA's form."""
    return [
        Question(
            item.id,
            item.question,
            item.best_answer,
            item.correct_answers,
            item.incorrect_answers,
            Targets((item.best_answer,), item.incorrect_answers),
            Targets(item.correct_answers, item.incorrect_answers),
            best_incorrect_answer=item.incorrect_answers[0],  # the popular one
        )
        for item in miniature.questions(split)
    ]


def tuned(
    model: Any,
    tokenizer: Any,
    name: str,
    grids: Mapping[str, Sequence[StrategySpec]] = GRIDS,
    *,
    output: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> tuple[list[StrategySpec], dict[str, Any]]:
    """Choose hyper-parameters on the validation questions.

    Args:
        model: the embedded expert, or another model.
        tokenizer: its tokenizer.
        name: of the model.
        grids: candidates by strategy.
        output: see :func:`decoding.evals.engine.runner.run`.
        limit: see there.
        seed: see there.

    Returns:
        The best of each grid, and for the results file all candidates with their figures. Processes that share the
        work wait for each other, and return the same.
    """
    task = MultipleChoice(
        model, tokenizer, questions("validation"), prompt_of("none"), name="truthfulqa_miniature_validation"
    )
    specs = [spec for grid in grids.values() for spec in grid]
    configurations = configured(specs, model, tokenizer, name, task=task.settings, seed=seed, generation_config=None)
    results = run(task, configurations, output=output, limit=limit, seed=seed, everywhere=True)
    task.release()
    assert results is not None
    tried = iter(zip(specs, results["configurations"], strict=True))
    chosen, record = [], {}
    for strategy, grid in grids.items():
        entries = [next(tried) for _ in grid]
        figures = [tuple(entry["metrics"][metric]["value"] for metric in CRITERION) for _, entry in entries]
        best = max(range(len(entries)), key=figures.__getitem__)  # the first of equals
        chosen.append(entries[best][0])
        record[strategy] = {
            "chosen": entries[best][1]["parameters"],
            "tried": [
                {"parameters": entry["parameters"], **dict(zip(CRITERION, values, strict=True))}
                for (_, entry), values in zip(entries, figures, strict=True)
            ],
        }
    questions_used = results["counts"]["evaluated"]
    return chosen, {"split": "validation", "questions": questions_used, "criterion": CRITERION, "strategies": record}
