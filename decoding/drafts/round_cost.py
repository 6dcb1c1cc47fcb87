"""What a round with drafts costs, one without being 1: a prior, and one number that the clock corrects."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Sequence

__all__ = ["RoundCost", "one_row"]

# In units of a pass over one token of one row (two cores, docs/drafts.md): each further token, of any row; what a pass
# of more tokens than the quick forms of products take (decoding.models.small_batch_linear) takes more; and in units of
# a round without drafts, what one with drafts takes beside its passes.
TOKEN, MANY, CHECKED = 0.045, 0.4, 0.2
KNOWN = 3.0  # rounds that what was known beforehand weighs as much as
LATELY = 32  # rounds that count
LEAST, MOST = 0.1, 8.0  # of the correction
FORGET = 0.99  # weight of the correction at each round without drafts; 1 has the rest
CHECK = 16  # rounds with drafts, after which one without is wanted, to know what it takes: each time twice as many


def one_row(drafts: int) -> Sequence[int]:
    """How many tokens each pass of a round reads where one reader reads one row."""
    return [drafts + 1]


class RoundCost:
    """The cost of a round with n > 0 drafts, c(n) = 1 + g·(0.2 + p(n) / p(0) - 1 + t·n).

    p(n) is the time of the round's passes: of each that reads w tokens 1 + 0.045·(w - 1), and 0.4 more where w is more
    than ``few``. Rows and readers count: n drafts of two rows with two readers in a pass are 4·(n + 1) tokens.

    The correction g is what rounds with drafts take more than those without, in units of what was expected: of either
    the median counts, so rounds in which another process was busy do not. It is believed as far as there are rounds of
    both kinds, and forgotten with each round without drafts: where they did not pay they are tried again.

    Args:
        draft: t, of a draft, for who proposes it.
        correction: g, as far as it is known beforehand.
        widths: how many tokens each pass of a round with n drafts reads, all rows and readers together.
        few: tokens of a pass up to which products have quick forms; None where it makes no difference.
    """

    def __init__(
        self,
        draft: float,
        correction: float = 1.0,
        widths: Callable[[int], Sequence[int]] = one_row,
        few: int | None = None,
    ) -> None:
        self.draft = draft
        self._widths, self._few = widths, few
        self._expectations: dict[int, float] = {}
        self._known = self._measured = correction
        self._weight = 1.0  # of what was measured
        self._plain: deque[float] = deque(maxlen=LATELY)  # seconds of rounds without drafts
        self._drafted: deque[tuple[int, float]] = deque(maxlen=LATELY)  # drafts and seconds of the others
        self._since_plain, self._next_check = 0, CHECK

    @property
    def correction(self) -> float:
        """The correction g."""
        return 1 + (self._measured - 1) * self._weight

    def of(self, drafts: int) -> float:
        """The cost of a round with so many drafts."""
        return 1 + self.correction * self._expected(drafts) if drafts else 1.0

    def add(self, drafts: int, seconds: float) -> None:
        """Take in the time of a round."""
        if drafts:
            self._since_plain += 1
            self._weight = 1.0
            self._drafted.append((drafts, seconds))
        else:
            self._since_plain = 0
            self._weight *= FORGET
            self._plain.append(seconds)
        if self._plain and self._drafted:
            plain = max(statistics.median(self._plain), 1e-9)
            found = statistics.median((took / plain - 1) / self._expected(n) for n, took in self._drafted)
            weight = min(len(self._plain), len(self._drafted))
            whole = KNOWN * self._known + weight * min(max(found, LEAST), MOST)
            self._measured = whole / (KNOWN + weight)

    def wants_plain(self) -> bool:
        """True where a round without drafts is wanted for the sake of its time; says so once."""
        if self._since_plain < self._next_check:
            return False
        self._next_check *= 2
        return True

    def _expected(self, drafts: int) -> float:
        """What a round with so many drafts takes more than one without, where g is 1."""
        if drafts not in self._expectations:
            wider = self._passes(drafts) / self._passes(0) - 1
            self._expectations[drafts] = CHECKED + max(wider, 0.0) + self.draft * drafts
        return self._expectations[drafts]

    def _passes(self, drafts: int) -> float:
        few = self._few
        return sum(
            1 + TOKEN * (width - 1) + (MANY if few is not None and width > few else 0) for width in self._widths(drafts)
        )
