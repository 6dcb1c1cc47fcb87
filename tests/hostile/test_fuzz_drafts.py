"""Some dozens of drawn calls with drafts; ``DRAFT_CALLS=1000`` makes a thousand, in about two minutes."""

from __future__ import annotations

import os

from fuzzed_drafts import fuzz_drafts

CALLS = int(os.environ.get("DRAFT_CALLS", "10"))  # 1 to 2 s on one core


def test_tokens_values_and_caches_are_those_without_drafts() -> None:
    fuzz_drafts(CALLS, seed=int(os.environ.get("DRAFT_SEED", "0")))
