"""Drafts from the text (n-grams) beside strategies: the tokens are those without drafts.

The V2 runner's kernels for drafts do not run in Triton's interpreter: they need a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm_engines import CASES, continuation, engine, new_tokens, sampling

NGRAMS = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
# Text that repeats itself, so that there are drafts.
PROMPTS = [
    "The king looked at the castle. The king looked at the castle. The king",
    "Q: What is the capital? A: The capital is Tarnmere. Q: What is the capital? A: The",
    "She saw the old dog and the old dog saw her. She saw the old",
    "Once upon a time there was a king.",
]
OWN = ["dola-all-layers", "cd", "cd-log-probs", "lol", "lol-entropy", "weighted-gated"]


def drafts_read(llm: Any) -> int:
    """How many drafts the engine has kept of those that it read."""
    return sum(metric.value for metric in llm.get_metrics() if metric.name == "vllm:spec_decode_num_accepted_tokens")


@pytest.mark.parametrize("own", OWN)
def test_an_engines_own_strategy_with_drafts(own: str) -> None:
    tokens = 24
    settings = {"strategy": dict(CASES[own].fields or {})}
    with engine(contrast=settings, speculative_config=NGRAMS, disable_log_stats=False) as llm:
        right = [continuation(CASES[own].strategy, prompt, tokens) for prompt in PROMPTS]
        assert new_tokens(llm, PROMPTS, sampling(None, tokens)) == right
        assert drafts_read(llm) > 0
        # A request that names the same strategy has it; the V1 runner can give it no other one, and says so.
        for name in ("none", "dola-low"):
            with pytest.raises(VLLMValidationError, match="requests have this engine's own strategy alone"):
                llm.generate(PROMPTS[:1], sampling(CASES[name], 4), use_tqdm=False)
        assert new_tokens(llm, PROMPTS[:1], sampling(CASES[own], 4)) == [right[0][:4]]
