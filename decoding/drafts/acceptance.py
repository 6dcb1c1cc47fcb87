"""How often drafts are accepted: counts by kind, which begin with a prior and forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Acceptance"]

PRIOR = 1.0  # drafts that the rate known beforehand weighs as much as
LATELY = 0.9  # weight of what was seen before, at each new draft of the kind: ten drafts count
FORGET = 0.99  # weight of what was seen before, at each round: what is no longer tried is tried again


@dataclass
class _Seen:
    """Drafts of one kind, the last weighing most."""

    accepted: float = 0.0
    all: float = 0.0


class Acceptance:
    """The rate at which drafts of each kind are accepted, once those before them were: (p·w + accepted) / (w + seen).

    Args:
        rates: p, what is known of each kind beforehand. The kinds are in order, each of better drafts than the one
            before, and a draft that is accepted makes the one behind it better by one; the last kind stays what it is.
    """

    def __init__(self, rates: Sequence[float]) -> None:
        self._rates = tuple(rates)
        self._seen = [_Seen() for _ in rates]

    def rate(self, kind: int) -> float:
        """The rate of a kind; of one beyond the last, that of the last."""
        kind = min(kind, len(self._rates) - 1)
        seen = self._seen[kind]
        return (PRIOR * self._rates[kind] + seen.accepted) / (PRIOR + seen.all)

    def accepted(self, kind: int) -> float:
        """How many drafts of a kind were accepted of late."""
        return self._seen[kind].accepted

    def add(self, kind: int, drafts: Sequence[int], chosen: Sequence[int]) -> None:
        """Take in what was chosen where drafts were proposed, whether they were read or not.

        Args:
            kind: of the first draft.
            drafts: of a row.
            chosen: its tokens from the first draft's place on. Those behind the first other token tell nothing.
        """
        for place, (draft, token) in enumerate(zip(drafts, chosen, strict=False)):
            seen = self._seen[min(kind + place, len(self._seen) - 1)]
            seen.all = LATELY * seen.all + 1
            seen.accepted = LATELY * seen.accepted + (draft == token)
            if draft != token:
                break

    def forget(self) -> None:
        """A round has passed."""
        for seen in self._seen:
            seen.all *= FORGET
            seen.accepted *= FORGET
