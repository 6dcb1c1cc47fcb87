"""A few hundred fuzzed calls; ``python tests/hostile/fuzz.py`` makes as many as asked for."""

from __future__ import annotations

from fuzz_rule import drawn, fuzz, outcome
from resident_memory import live_tensors

CALLS = 50  # 2 s on one core


def test_every_call_ends_in_tokens_or_in_one_clear_error() -> None:
    ends = fuzz(CALLS, seed=0)
    # Not one of these would be there if calls were drawn that all fail alike.
    assert ends["tokens"] > CALLS // 8
    assert ends["OptionError"]
    assert ends["InputError"]
    assert ends["ModelError"]


def test_the_same_calls_again_leave_nothing_more_behind() -> None:
    again = drawn(12, seed=1)
    left = []
    for _ in range(3):
        for call in again:
            outcome(call)
        left.append(live_tensors())
    assert left[1] == left[2]  # the first time, models are made and looked at
