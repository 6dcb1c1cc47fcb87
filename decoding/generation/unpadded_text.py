"""The tokens of a text without its padding, for strategies whose scores depend on the text."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["NO_TOKEN", "UnpaddedText", "after_first", "last_prefixes"]

NO_TOKEN = -1  # where a row has no token


class UnpaddedText:
    """Token ids whose padding is :data:`NO_TOKEN` and comes before the text, wherever it was in the prompt.

    Args:
        input_ids: (batch, length) the prompt.
        mask: (batch, at least length) 1 for tokens, 0 for padding, of which the last ``length`` columns count; None, or
            a mask of another form, for a prompt without padding.

    Attributes:
        lengths: how many columns of the next ``input_ids`` are each row's text; None for all.
        prompt_length: columns of the prompt.
    """

    def __init__(self, input_ids: Tensor, mask: Tensor | None) -> None:
        self.lengths: Sequence[int] | None = None
        self.prompt_length = input_ids.shape[1]
        self._prompt: Tensor | None = None  # (batch, length); None where nothing is padding
        length = input_ids.shape[1]
        if mask is None or mask.dim() != 2 or len(mask) != len(input_ids) or not 0 < length <= mask.shape[1]:
            return
        present = (mask[:, -length:] != 0).to(input_ids.device)
        if not bool(present.all()):
            present, order = present.sort(dim=1, stable=True)
            self._prompt = torch.where(present, input_ids.gather(1, order), NO_TOKEN)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """The text (batch, length) so far, of ``input_ids`` (batch, length) that begin with the prompt."""
        text = input_ids
        if self._prompt is not None:
            text = torch.cat([self._prompt, input_ids[:, self._prompt.shape[1] :]], dim=1)
        if self.lengths is None or min(self.lengths) == text.shape[1]:
            return text
        behind = text.shape[1] - torch.tensor(self.lengths, device=text.device)[:, None]
        places = torch.arange(text.shape[1], device=text.device) - behind
        return torch.where(places < 0, NO_TOKEN, text.gather(1, places.clamp(min=0)))

    def new_tokens(self, text: Tensor) -> Tensor:
        """(batch,) int64, how many tokens of each row of a text come after its prompt."""
        if self.lengths is None:  # made on the text's device: a step of every contrast asks
            new = text.shape[1] - self.prompt_length
            return torch.full((len(text),), new, dtype=torch.long, device=text.device)
        return torch.tensor(self.lengths, device=text.device) - self.prompt_length

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        if self._prompt is not None:
            self._prompt = self._prompt[rows.to(self._prompt.device)]


def after_first(text: Tensor) -> Tensor:
    """(...) int64, how many tokens of each text (..., length) come after its first."""
    return (text != NO_TOKEN).sum(-1) - 1


def last_prefixes(text: Tensor, n: int, value: float = NO_TOKEN) -> Tensor:
    """(n, length) the last n prefixes of a text (length,), itself the last; they end in the last column, and before
    them is a value.
    """
    return torch.nn.functional.pad(text, (n - 1, 0), value=value).unfold(0, len(text), 1)
