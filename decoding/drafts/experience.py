"""What a call learnt of its drafts, for the next one of the same kind."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from decoding.drafts.acceptance import Acceptance
from decoding.models.memo import PerModelMemo, model_cache_key

__all__ = ["Experience", "experience_of"]


@dataclass
class Experience:
    """What the last call of a kind has learnt, which the next begins with.

    Attributes:
        last: how often drafts were accepted, and the correction of a round's cost; None before the first call has
            ended. It is replaced whole and never changed, so calls in several threads share it.
    """

    last: tuple[Acceptance, float] | None = None


_experience = PerModelMemo[Experience]()


def experience_of(model: Any, kind: Hashable) -> Experience:
    """The experience of calls of one kind with a model, kept as long as the model.

    Args:
        model: the generating model.
        kind: tells strategies, proposers and batches apart whose drafts are accepted at other rates, or whose rounds
            take other times.
    """
    return _experience.get(model, (*model_cache_key(model), kind), Experience)
