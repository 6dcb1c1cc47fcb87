"""Contrastive search in a batch: the candidates of all requests are read in one pass.

Each candidate is the last token of a follower's row. The leader's row has the probabilities, the followers' rows the
candidates' hidden states, and the history of the text's hidden states lies by physical slot of the cache, so that the
prefix cache brings it along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.kernels.degeneration_penalty import degeneration_penalty, inverse_norms
from decoding.serving.vllm.groups import GroupInBatch

__all__ = ["HiddenSlots", "StepReads", "leave_one", "search"]


@dataclass
class StepReads:
    """What a step's requests have read, one row a request.

    Attributes:
        last_ids: (requests) the last token that each has read.
        lengths: (requests) the number of tokens that each has read in all.
        block_table: (requests, blocks) of the cache.
    """

    last_ids: Tensor
    lengths: Tensor
    block_table: Tensor


class HiddenSlots:
    """Hidden states of all texts in the cache, by slot.

    Args:
        slots: of the cache.
        width: of a hidden state.
        block_size: slots of a block.
        dtype: of the states.
        device: of the states.
    """

    def __init__(self, slots: int, width: int, block_size: int, dtype: torch.dtype, device: torch.device) -> None:
        self._states = torch.zeros(slots, width, dtype=dtype, device=device)
        self._inverse_norms = torch.zeros(slots, device=device)
        self._block_size = block_size

    def write(self, hidden: Tensor, slots: Tensor) -> None:
        """Keep (tokens, width) hidden states at (tokens) slots."""
        hidden = hidden[: len(slots)]
        self._states[slots] = hidden
        self._inverse_norms[slots] = inverse_norms(hidden)

    def penalty(self, hidden: Tensor, lengths: Tensor, block_table: Tensor) -> Tensor:
        """The degeneration penalty (texts, k) of candidates (texts, k, width).

        Args:
            hidden: the candidates' hidden states.
            lengths: (texts) of the texts.
            block_table: (texts, blocks) of their blocks.
        """
        at = torch.arange(int(lengths.max()), device=hidden.device)
        slots = block_table.long()[:, at // self._block_size] * self._block_size + at % self._block_size
        return degeneration_penalty(hidden, self._states[slots], self._inverse_norms[slots], length=lengths)


def search(model: Any, hidden: Tensor, groups: Sequence[GroupInBatch]) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the tokens of searches, and their next candidates.

    Groups whose leader is not in the batch have read no candidates yet. What is drawn for groups that are not whole is
    not kept.

    Args:
        model: the engine's.
        hidden: (batch, width) wide rows.
        groups: searches in the batch.

    Returns:
        (batch, vocab) the model's logits, 0 for candidates, which need none; and places in the batch with the tokens
        that they have: the one chosen for a leader, new candidates for followers.
    """
    whole = [group for group in groups if len(group.followers) == group.request.top_k]
    needs_none = {at for group in whole for at in (group.followers if 0 in group.places else group.followers[1:])}
    others = torch.tensor([at for at in range(len(hidden)) if at not in needs_none], device=hidden.device)
    of_others = model.some_logits(hidden[others])
    logits = of_others.new_zeros(len(hidden), of_others.shape[-1])
    logits[others] = of_others
    places, tokens = [], []
    for (k, with_leader), alike in alike_groups(whole).items():
        followers = torch.tensor([group.followers for group in alike], device=hidden.device)
        if with_leader:
            leaders = torch.tensor([group.places[0] for group in alike], device=hidden.device)
            best, chosen = _best(model, hidden, logits[leaders], leaders, followers, alike)
            places.append(leaders)
            tokens.append(chosen)
            after = model.some_logits(hidden[followers.gather(1, best)[:, 0]])
        else:
            after = logits[followers[:, 0]]
        places.append(followers.flatten())
        tokens.append(after.float().softmax(-1).topk(k).indices.flatten())
    none = torch.zeros(0, dtype=torch.int64, device=hidden.device)
    return logits, torch.cat([none, *places]), torch.cat([none, *tokens])


def alike_groups(groups: Sequence[GroupInBatch]) -> dict[tuple[int, bool], list[GroupInBatch]]:
    """Groups by their number of candidates, and by whether their leader is in the batch."""
    alike: dict[tuple[int, bool], list[GroupInBatch]] = {}
    for group in groups:
        alike.setdefault((group.request.top_k, 0 in group.places), []).append(group)
    return alike


def _best(
    model: Any, hidden: Tensor, logits: Tensor, leaders: Tensor, followers: Tensor, groups: Sequence[GroupInBatch]
) -> tuple[Tensor, Tensor]:
    """Which candidate of each group is the best, (groups, 1), and its token, (groups)."""
    reads = model.reads
    alpha = torch.tensor([group.request.penalty_alpha for group in groups], device=hidden.device)[:, None]
    tokens = reads.last_ids[followers]
    probabilities = logits.float().softmax(-1).gather(1, tokens)
    candidates = hidden[followers][..., : model.width]
    penalty = model.history.penalty(candidates, reads.lengths[leaders], reads.block_table[leaders])
    best = ((1 - alpha) * probabilities - alpha * penalty).argmax(1, keepdim=True)
    return best, tokens.gather(1, best)[:, 0]


def leave_one(logits: Tensor, places: Tensor, tokens: Tensor) -> None:
    """Leave to rows of (batch, vocab) logits one token each, in place."""
    logits[places] = -torch.inf
    logits[places, tokens] = 0.0
