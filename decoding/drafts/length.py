"""How many drafts a round asks for: a fixed number, or as many as have been accepted of late, none where none pay."""

from __future__ import annotations

import time
from collections.abc import Sequence

__all__ = ["DraftLength"]

FIRST, LONGEST = 4, 16
PAUSE, LONGEST_PAUSE = 8, 64  # rounds without drafts, after which they are tried again: each time twice as many
FORGET = 0.8  # weight of what was known of rounds before, at each new one
SLOW = 4.0  # times the quickest round
MEASURED = 4  # rounds with drafts, at least, before their cost counts


class DraftLength:
    """The number of drafts of each round.

    Args:
        fixed: the number; None adapts it: half as many again where all were accepted, towards what was accepted where
            not. Where a token costs more with drafts than without, some rounds go without.
        timed: whether rounds are compared by the time they take. Ranks that must run the same passes cannot.
    """

    def __init__(self, fixed: int | None, timed: bool = True) -> None:
        self._fixed = fixed
        self._wanted = float(FIRST)
        self._timed = timed
        self._pause = 0
        self._next_pause = PAUSE
        self._drafted = _Pace()
        self._plain = _Pace()
        self._began = 0.0

    def begin(self) -> int:
        """The number of drafts of the round that begins; its time counts from here."""
        self._began = time.perf_counter()
        if self._fixed is not None:
            return self._fixed
        if self._pause:
            self._pause -= 1
            return 0
        return round(self._wanted)

    @property
    def next_if_accepted(self) -> int:
        """The number of drafts of the next round, if all of this round's are accepted."""
        return round(self._more()) if self._fixed is None else self._fixed

    def end(self, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        """Take in a round.

        Args:
            drafted: drafts of each row that was going on.
            accepted: those that were accepted.
        """
        if self._fixed is not None or not drafted:
            return
        tokens = sum(accepted) / len(accepted) + 1
        seconds = time.perf_counter() - self._began
        (self._drafted if any(drafted) else self._plain).add(seconds, tokens)
        best = max(accepted)
        if any(drafted):
            full = any(was and took == was for was, took in zip(drafted, accepted, strict=True))
            self._wanted = self._more() if full else max(0.5 * self._wanted + 0.5 * best, 2.0)
        if not self._timed or not any(drafted) or self._drafted.rounds < MEASURED:
            return
        if self._plain.rounds == 0:
            self._pause = 1  # to know what a round costs without
        elif self._drafted.per_token <= self._plain.per_token:
            self._next_pause = PAUSE
        else:
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, LONGEST_PAUSE)

    def _more(self) -> float:
        return min(1.5 * self._wanted + 1, LONGEST)


class _Pace:
    """Seconds a token of rounds, the last weighing most.

    A round that takes many times as long as the quickest does not count: it has prepared something, or waited.
    """

    def __init__(self) -> None:
        self.rounds = 0
        self._quickest = float("inf")
        self._seconds = self._tokens = 0.0

    def add(self, seconds: float, tokens: float) -> None:
        self._quickest = min(self._quickest, seconds)
        if seconds > SLOW * self._quickest:
            return
        self.rounds += 1
        self._seconds = FORGET * self._seconds + seconds
        self._tokens = FORGET * self._tokens + tokens

    @property
    def per_token(self) -> float:
        return self._seconds / self._tokens
