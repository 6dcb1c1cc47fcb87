"""The base of the contrastive family: strategies whose scores are a function of several readers' logits."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList

from decoding.capabilities.cuda_graphs import cuda_graphs_requested
from decoding.drafts.options import AMATEUR, Assisting
from decoding.generation.processors import WARPERS
from decoding.generation.session import Processed, Session
from decoding.generation.strategy import Strategy
from decoding.generation.unpadded_text import UnpaddedText
from decoding.kernels.contrast import masked
from decoding.strategies.contrast.drafted_readers import DraftedReaders
from decoding.strategies.contrast.fused_streams import MOST_UNREAD, FusedStreams
from decoding.strategies.contrast.reader_group import mixed_rows
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits, with_prefix
from decoding.stream.output import ForwardOutput

__all__ = ["Contrast", "ContrastSession", "ContrastStrategy"]

# Of the logits' distance to the limit of plausibility, which the kernels compute in another way: a token closer to it
# counts as plausible here, and readers read.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Contrast:
    """The scores that a strategy computes from its readers' logits, each part computed when it is asked for.

    Attributes:
        score_fn: from plausibility's α to (..., vocab) scores, -inf where a token is not plausible; None lets every
            token pass.
        plausibility_logits: returns the (..., vocab) logits that plausibility is taken from.
        alpha: plausible is p >= alpha·max p; None lets every token pass.
    """

    score_fn: Callable[[float | None], Tensor]
    plausibility_logits: Callable[[], Tensor]
    alpha: float | None

    @property
    def scores(self) -> Tensor:
        """(..., vocab) float32, the scores of all tokens, plausible or not."""
        return self.score_fn(None).float()

    @property
    def masked(self) -> Tensor:
        """(..., vocab) float32, the scores, -inf where a token is not plausible."""
        return self.score_fn(self.alpha).float()

    def apply_plausibility(self, scores: Tensor) -> Tensor:
        """Scores (..., vocab) that processors have changed, -inf where a token is not plausible."""
        if self.alpha is None:
            return scores
        return masked(scores, self.plausibility_logits().to(scores.device), self.alpha)


class ContrastStrategy(Strategy):
    """Base of the contrastive family. A subclass names the readers and computes scores from their logits.

    Processors of the call (repetition penalty, bad words, ...) act on the contrast, as in DoLa's own code; then the
    implausible tokens are taken out, and warpers (temperature, top-k, top-p) act on the rest. Where processors have
    excluded every plausible token, plausibility is computed again among the tokens that they left.

    Attributes:
        fuse: whether readers with the same weights share a forward pass; False is for comparison.
        lazy: whether readers that plausibility does not depend on wait where it leaves one token; False is for
            comparison.
        plausibility_roles: the readers that :attr:`Contrast.plausibility_logits` depends on; None where they are not
            known, and no reader waits.
        exit_norm: whether early exits pass the final norm before the head.
    """

    scorable: ClassVar[bool] = True
    fuse: ClassVar[bool] = True
    lazy: ClassVar[bool] = True
    plausibility_roles: ClassVar[frozenset[str] | None] = None
    exit_norm: ClassVar[bool] = True

    @abstractmethod
    def readers(self, model: Any, rows: int) -> list[Reader]:
        """The readers of the text; the expert first where the strategy needs it.

        Args:
            model: the generating model.
            rows: of the batch.
        """

    @abstractmethod
    def contrast(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor) -> Contrast:
        """The scores of the token after each text.

        Args:
            logits: by role (..., vocab), in their model's dtype; what :mod:`decoding.kernels.contrast` computes with
                them is float32.
            input_ids: (..., length) the text that each of the logits comes after, without what readers read before it.
                It ends in the last column; before it is ``NO_TOKEN`` (-1). In a step the leading dimensions are
                (batch,), in teacher forcing (batch, positions), in scoring (1, texts).
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
        session = self._session(model, readers, input_ids, model_kwargs, generation_config, restorable)
        session.may_wait = self._may_wait(session.streams, generation_config)
        return session

    def rescoring_session(
        self, model: Any, input_ids: Tensor, model_kwargs: dict[str, Any], generation_config: GenerationConfig | None
    ) -> ContrastSession:
        """Open a session that is given the expert's logits, and reads as the expert only where it needs more."""
        readers = self.readers(model, input_ids.shape[0])
        if not self._needs_own_expert(readers):
            readers = [reader for reader in readers if reader.role != EXPERT]
        return self._session(model, readers, input_ids, model_kwargs, generation_config, restorable=True)

    def draft_sources(self, model: Any, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[Sequence[int]]]:
        """What readers with another prompt read of each row."""
        others = [reader for reader in self.readers(model, len(prompts)) if reader.prefix is not None]
        return [
            [with_prefix(reader, list(prompt), row, reader.model or model) for reader in others]
            for row, prompt in enumerate(prompts)
        ]

    def draft_amateur(self, model: Any, rows: int) -> Assisting | None:
        """The reader whose role is amateur."""
        readers = self.readers(model, rows)
        amateur = next((reader for reader in readers if reader.role == AMATEUR), None)
        if amateur is None:
            return None
        own = amateur.model or model

        def read(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
            return [with_prefix(amateur, list(prompt), row, own) for row, prompt in enumerate(prompts)]

        mixed = mixed_rows(model, [amateur], readers, rows) if amateur.model is None else None
        return Assisting(own, mixed, read)

    def _needs_own_expert(self, readers: Sequence[Reader]) -> bool:
        """True where a processor must read the text as the expert too, though ``generate`` has its final logits."""
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
        mask = model_kwargs.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
        text = UnpaddedText(input_ids, mask)
        streams = FusedStreams(
            model, readers, input_ids, model_kwargs, generation_config,
            restorable=restorable, final_norm=self.exit_norm, fuse=self.fuse,
        )  # fmt: skip
        return ContrastSession(self, streams, text)

    def _may_wait(self, streams: FusedStreams, config: GenerationConfig | None) -> frozenset[int]:
        """The groups of readers that need not read a token before plausibility leaves a choice."""
        if not self.lazy or self.plausibility_roles is None or config is None or cuda_graphs_requested(config):
            return frozenset()
        if config.return_dict_in_generate and config.output_scores:
            return frozenset()
        return streams.groups_without(self.plausibility_roles)


class ContrastSession(Session):
    """One call of a contrast strategy: its readers' streams and their last logits.

    Where plausibility leaves one token in every row, no contrast can change the choice. Groups of readers on which
    plausibility does not depend are then left to read the text later, in one pass, once there is a choice again.

    Args:
        strategy: of the call.
        streams: its readers, which have read the prompt.
        text: given ``input_ids``, the text so far without its padding.

    Attributes:
        may_wait: indices of the groups of readers that may be left to read later; none unless it is set.
    """

    def __init__(self, strategy: ContrastStrategy, streams: FusedStreams, text: UnpaddedText) -> None:
        self.strategy = strategy
        self.streams = streams
        self.text = text
        self.may_wait: frozenset[int] = frozenset()
        self.reader_logits: dict[str, ReaderLogits] = {}
        self._split: tuple[Any, Any, Any] = (None, None, None)
        self._drafted: DraftedReaders | None = None
        self._take(streams.prompt)

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The strategy's scores, processed, -inf where a token is not plausible."""
        processors, warpers = self._processors_and_warpers(logits_processor)
        contrast = self.strategy.contrast(self.reader_logits, self.text(input_ids))
        if self._waiting():
            # Of readers that wait these are logits of before, on which plausibility does not depend.
            alone = None if processors else _only_plausible(contrast)
            if alone is not None:
                return warpers(input_ids, alone.to(input_ids.device))
            self._catch_up()
            contrast = self.strategy.contrast(self.reader_logits, self.text(input_ids))
        if not processors:
            return warpers(input_ids, contrast.masked.to(input_ids.device))
        processed = processors(input_ids, contrast.scores.to(input_ids.device))
        return warpers(input_ids, contrast.apply_plausibility(processed))

    def rescored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The strategy's scores, changed as the processors before it changed the model's logits.

        Tokens that they excluded stay excluded, and what they added is added. Beam search has log-probabilities
        instead of logits; that shift of a row is not passed on.
        """
        if EXPERT not in self.reader_logits:
            logits = {EXPERT: ReaderLogits(scores.float()), **self.reader_logits}
            return self.strategy.contrast(logits, self.text(input_ids)).masked
        contrast = self.strategy.contrast(self.reader_logits, self.text(input_ids))
        change = scores.float() - self.reader_logits[EXPERT].final.to(scores.device, torch.float32)
        shift = change.masked_fill(scores == -torch.inf, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num()
        return contrast.apply_plausibility(contrast.scores.to(scores.device) + (change - shift))

    def advance(self, tokens: Tensor) -> None:
        """Read the tokens as every reader that does not wait."""
        self._take(self.streams.extend(tokens, self.may_wait))
        if any(len(unread) >= MOST_UNREAD for unread in self.streams.unread.values()):
            self._take(self.streams.catch_up())

    def begin_drafts(self) -> None:
        """Let each row of every reader have a length of its own."""
        self._drafted = DraftedReaders(self.streams)

    def read_drafts(self, tokens: Tensor, processed: Processed) -> None:
        """Read (batch, n) tokens as every reader that does not wait."""
        assert self._drafted is not None, "read_drafts() without begin_drafts()"
        self._drafted.read(tokens, self.may_wait)

    def at(self, slot: int, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Go to the scores after a token of the last pass."""
        assert self._drafted is not None
        self.text.lengths = lengths
        self.streams.step += 1
        self._place = slot, rows
        self.reader_logits |= self._drafted.at(slot, rows)
        self.output = self._drafted.expert_output(slot)
        self.logits = self.reader_logits[EXPERT].final

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first tokens of each row."""
        assert self._drafted is not None
        self._drafted.accept(counts)

    def rewind_to(self, tokens: int) -> None:
        """Forget what is beyond a number of new tokens."""
        assert self._drafted is not None
        self._drafted.rewind_to(tokens)

    def _waiting(self) -> bool:
        """True where readers have not read what the next scores come after."""
        return bool(self.streams.unread) if self._drafted is None else self._drafted.waiting

    def _catch_up(self) -> None:
        if self._drafted is None:
            self._take(self.streams.catch_up())
        else:
            self._drafted.catch_up()
            self.reader_logits |= self._drafted.at(*self._place)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self.streams.reorder(rows)
        self.text.reorder(rows)
        self.reader_logits = {
            role: _reordered(logits, rows.to(logits.final.device)) for role, logits in self.reader_logits.items()
        }

    def close(self) -> Any:
        """The expert's cache."""
        return self.streams.close()

    def release(self) -> None:
        """Free every stream."""
        self.streams.release()

    def _take(self, outputs: Mapping[int, ForwardOutput]) -> None:
        read = self.streams.reader_logits(outputs)
        self.reader_logits |= read
        if EXPERT in read:
            self.output = self.streams.expert_output(outputs)
            self.logits = self.reader_logits[EXPERT].final

    def _processors_and_warpers(self, logits_processor: Any) -> tuple[Any, Any]:
        """The processors that act on the contrast, and those that choose among its plausible tokens."""
        if self._split[0] is not logits_processor:
            warpers = (i for i, processor in enumerate(logits_processor) if isinstance(processor, WARPERS))
            first = next(warpers, len(logits_processor))
            self._split = (
                logits_processor,
                LogitsProcessorList(logits_processor[:first]),
                LogitsProcessorList(logits_processor[first:]),
            )
        return self._split[1], self._split[2]


def _only_plausible(contrast: Contrast) -> Tensor | None:
    """(batch, vocab) float32 scores of the one plausible token of every row, 0 and -inf elsewhere; None where a row has
    several, or none.
    """
    if not contrast.alpha:
        return None
    logits = contrast.plausibility_logits().float()
    tokens = logits.argmax(-1, keepdim=True)
    best = logits.gather(-1, tokens)
    others = logits.scatter(-1, tokens, -torch.inf).amax(-1, keepdim=True)
    if not bool((others < best + (math.log(contrast.alpha) - ROUNDING)).all()):  # NaN is not
        return None
    return torch.full_like(logits, -torch.inf).scatter_(-1, tokens, 0.0)


def _reordered(logits: ReaderLogits, rows: Tensor) -> ReaderLogits:
    return ReaderLogits(logits.final[rows], None if logits.exits is None else logits.exits[:, rows])
