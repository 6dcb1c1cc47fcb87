"""A few hundred fuzzed calls; ``python tests/hostile/fuzz.py`` makes as many as asked for."""

from __future__ import annotations

from fuzz_rule import fuzz

CALLS = 400  # 13 s on one core


def test_every_call_ends_in_tokens_or_in_one_clear_error() -> None:
    ends = fuzz(CALLS, seed=0)
    # Not one of these would be there if calls were drawn that all fail alike.
    assert ends["tokens"] > CALLS // 5
    assert ends["OptionError"]
    assert ends["InputError"]
    assert ends["ModelError"]
