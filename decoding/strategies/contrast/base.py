"""The base of the contrastive family: strategies whose scores are a function of several readers' logits."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import GenerationConfig

from decoding.capabilities.cuda_graphs import cuda_graphs_requested
from decoding.drafts.opening import Assisting
from decoding.drafts.options import AMATEUR
from decoding.generation.session import Session
from decoding.generation.strategy import Strategy
from decoding.generation.unpadded_text import UnpaddedText
from decoding.strategies.contrast.fused_streams import FusedStreams
from decoding.strategies.contrast.parts import ContrastParts
from decoding.strategies.contrast.reader_group import row_variants
from decoding.strategies.contrast.readers import EXPERT, Reader, ReaderLogits, prompt_read
from decoding.strategies.contrast.scores import Contrast
from decoding.strategies.contrast.session import ContrastSession

__all__ = ["Contrast", "ContrastStrategy"]


class ContrastStrategy(Strategy):
    """Base of the contrastive family. A subclass names the readers and computes scores from their logits.

    Processors of the call (repetition penalty, bad words, ...) act on the contrast, as in DoLa's own code; then the
    implausible tokens are taken out, and warpers (temperature, top-k, top-p) act on the rest. Where processors have
    excluded every plausible token, plausibility is computed again among the tokens that they left.

    Attributes:
        fuse: whether readers with the same weights share a forward pass; False is for comparison.
        lazy: whether what cannot change the choice is left out, see
            :class:`decoding.strategies.contrast.session.ContrastSession`; False is for comparison.
        plausibility_roles: the readers that plausibility depends on, by its logits or its mask; None where they are not
            known, and nothing is left out.
        tokenwise: True where a token's score depends on the readers' logits of that token alone, but for a constant of
            the row, such as the logarithm of a softmax's sum.
        exit_norm: whether early exits pass the final norm before the head.
    """

    scorable: ClassVar[bool] = True
    fuse: ClassVar[bool] = True
    lazy: ClassVar[bool] = True
    plausibility_roles: ClassVar[frozenset[str] | None] = None
    tokenwise: ClassVar[bool] = False
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

    @property
    def contrasted_tokens(self) -> int | None:
        """How many first new tokens of a text are contrasted; None for all."""
        return None

    @property
    def lasting_roles(self) -> frozenset[str]:
        """The readers that scores depend on beyond the ``contrasted_tokens``."""
        return frozenset({EXPERT})

    def contrast_at(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor, new_tokens: Tensor) -> Contrast:
        """The scores of the token after each text, where it is known how much of a text is new; what is called.

        Args:
            logits: see :meth:`contrast`, which is all that most strategies need.
            input_ids: likewise.
            new_tokens: (...) int64, how many tokens of each text come after its prompt. A whole text that is scored has
                a prompt of one token.
        """
        return self.contrast(logits, input_ids)

    @property
    def measured_roles(self) -> frozenset[str]:
        """The readers that :meth:`measure` depends on; empty where nothing is measured."""
        return frozenset()

    def measure(self, logits: Mapping[str, ReaderLogits]) -> Tensor:
        """A number (...) of each position, on which the scores at later new tokens of the same text depend.

        Args:
            logits: see :meth:`contrast`; of other readers than :attr:`measured_roles` they may be those of an earlier
                token.
        """
        raise NotImplementedError

    def after(self, measures: Tensor) -> ContrastStrategy:
        """The strategy at positions where it is known what was measured before, which is then asked for its scores.

        It is called where :attr:`measured_roles` names a reader.

        Args:
            measures: (..., n) float32, of each text's new tokens in order, the last that of the position itself; NaN
                where there is none. The state is the caller's: a session keeps it by call and row.
        """
        return self

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """What the scores of :meth:`contrast_at` are made of; arguments as there. Explanations show it.

        A strategy that does not say shows its readers and its scores alone.
        """
        return ContrastParts()

    def session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        restorable: bool = False,
        given: Mapping[str, Any] | None = None,
    ) -> ContrastSession:
        """Open a session; see :meth:`Strategy.session`.

        Args:
            model: the generating model.
            input_ids: (batch, length).
            model_kwargs: masks, positions, cache, ...
            generation_config: of the call.
            restorable: see :class:`decoding.stream.stream.Stream`.
            given: see :meth:`Strategy.opener`.
        """
        readers = self.readers(model, input_ids.shape[0])
        session = self._session(model, readers, input_ids, model_kwargs, generation_config, restorable, given)
        if self.lazy and self.contrasted_tokens is not None:
            session.may_end = self.contrasted_tokens, self.lasting_roles
        if self.lazy and self.plausibility_roles is not None and _may_leave_out(generation_config):
            session.may_wait = session.streams.groups_without(self.plausibility_roles | self.measured_roles)
            tokenwise = self.tokenwise and not self.measured_roles  # a measure is taken from the logits of all tokens
            session.may_select = tokenwise and session.streams.selects_tokens
        return session

    def opener(self, given: Mapping[str, Any], rescoring: bool = False) -> Callable[..., Session]:
        """What opens a session whose readers get what ``generate`` was given; see :meth:`Strategy.opener`."""
        return functools.partial(super().opener(given, rescoring), given=given)

    def rescoring_session(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None,
        given: Mapping[str, Any] | None = None,
    ) -> ContrastSession:
        """Open a session that is given the expert's logits, and reads as the expert only where it needs more."""
        readers = self.readers(model, input_ids.shape[0])
        if not self._needs_own_expert(readers) and EXPERT not in self.measured_roles:
            readers = [reader for reader in readers if reader.role != EXPERT]
        return self._session(model, readers, input_ids, model_kwargs, generation_config, True, given)

    def draft_sources(self, model: Any, prompts: Sequence[Sequence[int]]) -> Sequence[Sequence[Sequence[int]]]:
        """What readers with another prompt read of each row."""
        others = [
            reader
            for reader in self.readers(model, len(prompts))
            if reader.prefix is not None or reader.prompt is not None
        ]
        return [
            [prompt_read(reader, list(prompt), row, reader.model or model) for reader in others]
            for row, prompt in enumerate(prompts)
        ]

    def draft_amateur(self, model: Any, rows: int) -> Assisting | None:
        """The reader whose role is amateur."""
        readers = self.readers(model, rows)
        amateur = next((reader for reader in readers if reader.role == AMATEUR), None)
        if amateur is None or amateur.change is not None:  # one who drafts reads tokens alone
            return None
        own = amateur.model or model

        def read(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
            return [prompt_read(amateur, list(prompt), row, own) for row, prompt in enumerate(prompts)]

        variants = row_variants(model, [amateur], readers, rows) if amateur.model is None else None
        return Assisting(own, variants, read)

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
        given: Mapping[str, Any] | None,
    ) -> ContrastSession:
        mask = model_kwargs.get("decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask")
        text = UnpaddedText(input_ids, mask)
        streams = FusedStreams(
            model, readers, input_ids, model_kwargs, generation_config,
            restorable=restorable, final_norm=self.exit_norm, fuse=self.fuse, given=given,
        )  # fmt: skip
        return ContrastSession(self, streams, text)


def _may_leave_out(config: GenerationConfig | None) -> bool:
    """True where a call returns no scores, and captures no steps, which are all of the same work."""
    if config is None or cuda_graphs_requested(config):
        return False
    return not (config.return_dict_in_generate and config.output_scores)
