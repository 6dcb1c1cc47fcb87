"""Groups of requests in a batch: followers read the tokens that were chosen for their leader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from decoding.serving.vllm.requests import ContrastiveSearchRequest, Request

__all__ = ["Entry", "GroupInBatch", "Member", "groups_in_batch", "share_tokens"]


@dataclass(frozen=True)
class Member:
    """A request's place in its group, as the scheduler tells the model runner.

    Attributes:
        group: identifies the group.
        number: 0 for the leader, from 1 for the followers.
        prompt_length: the number of its prompt's tokens.
    """

    group: str
    number: int
    prompt_length: int


@dataclass(frozen=True)
class Entry:
    """A request in a batch.

    Attributes:
        request: its strategy.
        member: of a request that is not alone.
        scores_prompt: whether it asks for log-probabilities of its prompt.
    """

    request: Request
    member: Member | None = None
    scores_prompt: bool = False


@dataclass
class GroupInBatch:
    """The requests of a group that are in a batch.

    Attributes:
        request: their strategy.
        places: of each, by its number in the group.
        lengths: of their prompts.
    """

    request: Any
    places: dict[int, int] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)

    @property
    def searches(self) -> bool:
        """Whether its followers have candidates."""
        return isinstance(self.request, ContrastiveSearchRequest)

    @property
    def followers(self) -> list[int]:
        """Places of the followers, in the order of their numbers."""
        return [at for number, at in sorted(self.places.items()) if number]


def groups_in_batch(entries: Iterable[tuple[int, Entry]]) -> list[GroupInBatch]:
    """The groups of a batch, of places and what stands there."""
    groups: dict[str, GroupInBatch] = {}
    for at, entry in entries:
        if (member := entry.member) is not None:
            group = groups.setdefault(member.group, GroupInBatch(entry.request))
            group.places[member.number] = at
            group.lengths[member.number] = member.prompt_length
    return list(groups.values())


def share_tokens(groups: Sequence[GroupInBatch], input_ids: Tensor, positions: Tensor, query_start_loc: Tensor) -> None:
    """Give followers the tokens that were chosen for their leaders, in place: whatever was drawn for themselves.

    A second prompt's last token becomes the leader's where both read as many new tokens. Candidates are their requests'
    own.

    Args:
        groups: in the batch.
        input_ids: (tokens) of all requests of a step.
        positions: (tokens) of each in its request.
        query_start_loc: (requests + 1) where each request's tokens start.
    """
    rows = [
        (group.places[0], at, group.lengths[0], group.lengths[number])
        for group in groups
        if 0 in group.places and not group.searches
        for number, at in group.places.items()
        if number
    ]
    if not rows:
        return
    leader, follower, leader_length, follower_length = torch.tensor(rows, device=input_ids.device).T
    leader_at, follower_at = query_start_loc[leader + 1] - 1, query_start_loc[follower + 1] - 1
    new = positions[leader_at] - leader_length
    same = (positions[follower_at] - follower_length == new) & (new >= 0)
    input_ids[follower_at] = torch.where(same, input_ids[leader_at], input_ids[follower_at])
