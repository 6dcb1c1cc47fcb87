"""What the contrastive family shares: strategies whose scores are a function of several readers' logits."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation import logits_process

from decoding.generation.session import Session
from decoding.generation.strategy import Strategy
from decoding.kernels.contrast import masked
from decoding.strategies.contrast.fused_streams import FusedStreams
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits

__all__ = ["Contrast", "ContrastSession", "ContrastStrategy", "masked"]

# From the first of these on, processors choose among the tokens that are left and see the plausible ones only.
WARPERS = tuple(
    getattr(logits_process, name)
    for name in (
        "TemperatureLogitsWarper", "TopKLogitsWarper", "TopPLogitsWarper", "TopHLogitsWarper", "MinPLogitsWarper",
        "TypicalLogitsWarper", "EpsilonLogitsWarper", "EtaLogitsWarper", "LogitNormalization",
    )
    if hasattr(logits_process, name)
)  # fmt: skip


@dataclass(frozen=True)
class Contrast:
    """What a strategy makes of its readers' logits, each part computed when it is asked for.

    Attributes:
        form: from plausibility's α to (..., vocab) scores, -inf where a token is not plausible; None lets every token
            pass.
        evidence: gives the (..., vocab) logits that plausibility is taken from.
        alpha: plausible is p >= alpha·max p; None lets every token pass.
    """

    form: Callable[[float | None], Tensor]
    evidence: Callable[[], Tensor]
    alpha: float | None

    @property
    def scores(self) -> Tensor:
        """(..., vocab) float32, the scores before implausible tokens are taken out."""
        return self.form(None).float()

    @property
    def masked(self) -> Tensor:
        """(..., vocab) float32, the scores, -inf where a token is not plausible."""
        return self.form(self.alpha).float()

    def mask(self, changed: Tensor) -> Tensor:
        """Scores (..., vocab) that processors have changed, -inf where a token is not plausible."""
        return changed if self.alpha is None else masked(changed, self.evidence().to(changed.device), self.alpha)


class ContrastStrategy(Strategy):
    """Base of the contrastive family. A subclass says who reads and what is made of what they say.

    Processors of the call (repetition penalty, bad words, ...) act on the contrast, as in DoLa's own code; then the
    implausible tokens are taken out, and warpers (temperature, top-k, top-p) act on what is left. Where processors have
    excluded every plausible token, plausibility is taken anew among the tokens that they left.

    Attributes:
        fuse: whether readers with the same weights share a forward pass; False is for comparison.
    """

    fuse: ClassVar[bool] = True
    exit_norm: ClassVar[bool] = True

    @abstractmethod
    def readers(self, model: Any, rows: int) -> list[Reader]:
        """Who reads the text; the expert first where the strategy has need of it.

        Args:
            model: the generating model.
            rows: of the batch.
        """

    @abstractmethod
    def contrast(self, heard: Mapping[str, ReaderLogits]) -> Contrast:
        """The scores of logits (..., vocab) by role: of one step (batch, vocab) and of (batch, time, vocab) alike.

        Logits are in their model's dtype; what :mod:`decoding.strategies.contrast.formulas` computes with them is float32.
        """

    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
    ) -> ContrastSession:
        """Open a session; see :meth:`Strategy.session`."""
        readers = self.readers(model, input_ids.shape[0])
        return self._session(model, readers, input_ids, model_kwargs, generation_config, restorable)

    def rescoring_session(
        self, model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], generation_config: GenerationConfig | None
    ) -> ContrastSession:
        """Open a session that is given the expert's logits and reads them anew only where it needs more of it."""
        readers = self.readers(model, input_ids.shape[0])
        if not self._needs_own_expert(readers):
            readers = [each for each in readers if each.role != EXPERT]
        return self._session(model, readers, input_ids, model_kwargs, generation_config, restorable=True)

    def _needs_own_expert(self, readers: Sequence[Reader]) -> bool:
        """Whether a processor must read the text as the expert too, though ``generate`` has its final logits."""
        return True

    def _session(
        self,
        model: Any,
        readers: Sequence[Reader],
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None,
        restorable: bool,
    ) -> ContrastSession:
        streams = FusedStreams(
            model, readers, input_ids, model_kwargs, generation_config,
            restorable=restorable, final_norm=self.exit_norm, fuse=self.fuse,
        )  # fmt: skip
        return ContrastSession(self, streams)


class ContrastSession(Session):
    """One call of a contrast strategy: its readers' streams and what they said last."""

    def __init__(self, strategy: ContrastStrategy, streams: FusedStreams) -> None:
        self.strategy = strategy
        self.streams = streams
        self.heard: dict[str, ReaderLogits] = {}
        self._split: tuple[Any, Any, Any] = (None, None, None)
        self._take(streams.prompt)

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The strategy's scores, processed, -inf where a token is not plausible."""
        contrast = self.strategy.contrast(self.heard)
        processors, warpers = self._two_kinds(logits_processor)
        if not processors:
            return warpers(input_ids, contrast.masked.to(input_ids.device))
        return warpers(input_ids, contrast.mask(processors(input_ids, contrast.scores.to(input_ids.device))))

    def rescored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The strategy's scores, changed as the processors before it changed the model's logits.

        Tokens that they excluded stay excluded, and what they added is added. Beam search hands log-probabilities
        instead of logits; that shift of a row is not passed on.
        """
        if EXPERT not in self.heard:
            contrast = self.strategy.contrast({EXPERT: ReaderLogits(scores.float()), **self.heard})
            return contrast.masked
        contrast = self.strategy.contrast(self.heard)
        change = scores.float() - self.heard[EXPERT].final.to(scores.device, torch.float32)
        shift = change.masked_fill(scores == -torch.inf, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num()
        return contrast.mask(contrast.scores.to(scores.device) + (change - shift))

    def advance(self, tokens: Tensor) -> None:
        """Every reader reads the tokens."""
        self._take(self.streams.extend(tokens))

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self.streams.reorder(rows)
        self.heard = {role: _reordered(each, rows.to(each.final.device)) for role, each in self.heard.items()}

    def close(self) -> Any:
        """The expert's cache."""
        return self.streams.close()

    def release(self) -> None:
        """Let go of every stream."""
        self.streams.release()

    def _take(self, readings: list[Any]) -> None:
        self.heard = self.streams.heard(readings)
        if EXPERT in self.heard:
            self.reading = self.streams.expert_reading(readings)
            self.logits = self.heard[EXPERT].final

    def _two_kinds(self, logits_processor: Any) -> tuple[Any, Any]:
        """Processors that act on the contrast, and those that choose among what is left of it."""
        if self._split[0] is not logits_processor:
            split = len(logits_processor)
            split = next((i for i, each in enumerate(logits_processor) if isinstance(each, WARPERS)), split)
            first, second = logits_processor[:split], logits_processor[split:]
            self._split = (logits_processor, LogitsProcessorList(first), LogitsProcessorList(second))
        return self._split[1], self._split[2]


def _reordered(heard: ReaderLogits, rows: Tensor) -> ReaderLogits:
    return ReaderLogits(heard.final[rows], None if heard.exits is None else heard.exits[:, rows])
