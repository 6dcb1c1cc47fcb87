"""Whether contrastive search on a model type gives what full recomputation gives, and by which way it branches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import decoding
from decoding.errors import DecodingError
from decoding.evals.architectures.recomputation import Step, recomputed
from decoding.evals.architectures.tiny import VOCAB
from decoding.loading import one_line
from decoding.stream import Stream

ALPHA, TOP_K, STEPS = 0.6, 4, 8
LENGTHS = (6, 19)  # of the prompts: one that passes the window of 8 tokens as it grows, and one that is past it
# A step in whose scores or probabilities two lie closer than this is left undecided by float32, whose error in a
# score is about 1e-6; prompts are drawn until there is none.
SEPARATED = 2e-5
CLOSE = 1e-5  # between the scores of a candidate read both ways


@dataclass(frozen=True)
class Search:
    exact: bool
    way: str
    reason: str
    padding: str
    error: float


def prompts(seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def compare(scores, ids, expected: list[list[Step]]) -> tuple[str, float]:
    worst = 0.0
    for row, steps in enumerate(expected):
        for i, step in enumerate(steps):
            got = scores[i][row]
            cands = {t for t in got.isfinite().nonzero().flatten().tolist()}
            if cands != set(step.scores):
                return f"row {row} step {i}: candidates {cands} vs {set(step.scores)} (margin {step.margin:.1e})", float("inf")
            worst = max(worst, *(abs(float(got[t]) - s) for t, s in step.scores.items()))
            if ids[row, max(LENGTHS) + i] != step.token:
                return f"row {row} step {i}: token; scores off {worst:.1e} margin {step.margin:.1e}", worst
    return "", worst


def check(model: Any) -> Search:
    for seed in range(6):
        rows = prompts(seed)
        alone = [recomputed(model, row, 0, ALPHA, TOP_K, STEPS) for row in rows]
        m = min(step.margin for steps in alone for step in steps)
        if m > SEPARATED:
            break
    else:
        return Search(False, "", f"undecided {m:.1e}", "", 0)
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = (torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in rows])).long()
    try:
        out = decoding.generate(model, ids, attention_mask=mask, penalty_alpha=ALPHA, top_k=TOP_K, max_new_tokens=STEPS,
            output_scores=True, return_dict_in_generate=True, pad_token_id=0)
    except Exception as error:
        return Search(False, "refused" if isinstance(error, DecodingError) else "CRASH", f"{type(error).__name__}: {one_line(error)}", "", 0)
    b = Stream.open(model, input_ids=ids, attention_mask=mask).branching
    way = "shared" if b.shared else "fork"
    why, err = compare(out.scores, out.sequences, alone)
    if not why and err < CLOSE:
        return Search(True, way, b.reason, "yes", err)
    padded = [recomputed(model, row, longest - len(row), ALPHA, TOP_K, STEPS) for row in rows]
    why2, err2 = compare(out.scores, out.sequences, padded)
    drift = max(abs(a.scores.get(t, 9) - s) for x, y in zip(alone, padded) for a, b_ in zip(x[:1], y[:1]) for t, s in b_.scores.items())
    return Search(not why2 and err2 < CLOSE, way, b.reason + " | " + why + " | " + why2, f"model itself drifts {drift:.1e}", err2 if not why2 else err)
