"""Rows of an encoder-decoder that are read several tokens at a time, and go back together: all have one length.

Such a decoder counts its positions from the length of the cache, and T5's relative positions are the same for all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.cache.layer_kinds import is_recurrent
from decoding.cache.quantised import is_quantised
from decoding.errors import ModelError, one_line
from decoding.models.forward_errors import is_environment_error
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import relative_error, tolerance
from decoding.stream.output import ForwardOutput

__all__ = ["EqualRows"]

PROBE = 3  # tokens

_memo = PerModelMemo[float]()


class EqualRows:
    """The rows of a stream, which are read to one length and go back to one.

    That a model reads several tokens after its cache as it reads one after another is checked once, on the stream
    itself, in four passes: ProphetNet reads one at a time.

    Args:
        stream: that has read the prompt, of an encoder-decoder.

    Attributes:
        lengths: slots of each row, all the same.
        lower: None: no layers of an encoder-decoder read ahead of the others.

    Raises:
        ModelError: a cache that cannot go back, or a model that does not read several tokens, or reads them otherwise.
    """

    lower: None = None

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        name = type(stream.model).__name__
        if stream.recompute_reason or is_recurrent(stream.cache) or is_quantised(stream.cache):
            raise ModelError(f"drafts: the cache of {name} cannot go back to the end of a row; leave drafts out")
        try:
            error = _memo.get(stream.model, model_cache_key(stream.model), self._error)
        except Exception as failure:
            reason = failure.__cause__ or failure
            if is_environment_error(reason):
                raise
            raise ModelError(
                f"drafts: {name} does not read several tokens after its cache ({type(reason).__name__}: "
                f"{one_line(reason, 80)}); leave drafts out"
            ) from failure
        if not error < tolerance(stream.model.dtype):
            raise ModelError(
                f"drafts: {name} reads several tokens in one pass otherwise than one after another (relative error "
                f"{error:.1e}); leave drafts out"
            )

    @property
    def lengths(self) -> list[int]:
        """Slots of each row."""
        return [self.stream.length] * self.stream.batch

    @torch.no_grad()
    def read(self, tokens: Tensor) -> ForwardOutput:
        """Read (batch, n) tokens after the end of the rows; ``hidden`` is (batch, n, dim)."""
        output: ForwardOutput = self.stream.extend_together(tokens, every_logit=True)
        return output

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget what comes after the first ``lengths[i]`` slots of row i, the same of all rows."""
        assert len(set(lengths)) == 1, "the rows of an encoder-decoder have one length"
        self.stream.rewind(lengths[0])

    def join(self) -> None:
        """Nothing: the cache is as it was."""

    def _error(self) -> float:
        stream, start = self.stream, self.stream.length
        tokens = stream.input_ids[:, -1:].repeat(1, PROBE)
        together = self.read(tokens).hidden
        stream.rewind(start)
        apart = torch.cat([self.read(token).hidden for token in tokens.split(1, dim=1)], dim=1)
        stream.rewind(start)
        return relative_error(together, apart)
