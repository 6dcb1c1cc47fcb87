"""Explanations of two prompts' texts by tiny models, and what holds for every step of one."""

from __future__ import annotations

from tiny_models import random_prompt, tiny_model

from decoding.explanation.records import Candidate, Step

__all__ = ["AMATEUR", "EXPERT", "NEAR", "PROMPTS", "STEPS", "check_sum", "shown"]

EXPERT, AMATEUR = tiny_model("llama"), tiny_model("llama", seed=7)
PROMPTS = [random_prompt(4, seed=1), random_prompt(9, seed=2)]
STEPS = 5
NEAR = {"abs": 1e-4, "rel": 1e-4}  # float32 in passes of several tokens, against float64 without a cache


def shown(step: Step) -> tuple[Candidate, ...]:
    return (step.chosen, *step.rejected)


def _sum_of_parts(step: Step, candidate: Candidate) -> float:
    known = {**candidate.log_probs, **candidate.parts}
    return sum(weight * (known[name] or 0.0) for name, weight in step.weights.items() if weight)


def check_sum(step: Step) -> None:
    """The weights account for the scores, up to a number that all candidates share."""
    rests = [c.score - _sum_of_parts(step, c) for c in shown(step) if c.score is not None]
    assert max(rests) - min(rests) < 2e-4
