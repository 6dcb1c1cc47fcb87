"""Sessions: one ``generate()`` call of a strategy each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from decoding.drafts.lower_texts import LowerTexts, lower_texts
from decoding.drafts.proposer import Drafts
from decoding.drafts.texts_read import TextsRead
from decoding.errors import OptionError
from decoding.generation.roles import EXPERT
from decoding.generation.score_parts import ScoreParts
from decoding.generation.unpadded_text import UnpaddedText
from decoding.models.text_config import within_vocabulary
from decoding.stream.output import ForwardOutput, at_token
from decoding.stream.stream import Stream

__all__ = ["Further", "Processed", "Session", "StreamSession", "argmax_first", "most_probable"]


Processed = Callable[[Tensor], Tensor]  # see Session.read_drafts


@dataclass(frozen=True)
class Further:
    """How a round's drafts go on.

    Attributes:
        counts: drafts of each row in the round.
        propose: proposes, of each row, the token that may end the round if all of them are accepted, and the drafts of
            the next round behind it; None where nobody does. Is called once at most.
    """

    counts: Sequence[int]
    propose: Callable[[], Drafts | None]


class Session(ABC):
    """One ``generate()`` call of a strategy: owns its streams and all else that changes.

    Attributes:
        looks_ahead: whether logits are processed at places that may not be reached, which a processor with a state of
            its own cannot follow.
        logits: (batch, vocab) the model's own next-token logits, before any processor.
        output: of the forward pass over the tokens read last (what ``output_hidden_states`` and ``output_attentions``
            report).
    """

    looks_ahead: ClassVar[bool] = False
    logits: Tensor
    output: ForwardOutput

    @abstractmethod
    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch, vocab) float32 next-token scores; -inf for tokens that may not be chosen.

        Args:
            input_ids: (batch, length) all tokens so far.
            logits_processor: callable on (input_ids, float32 logits), as transformers' processor lists are.
        """

    def greedy(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch,) the tokens with the largest of :meth:`scores`, where the scores themselves are not wanted; -1 where
        no token may be chosen, since all scores are -inf or one is NaN.

        :meth:`advance` is then given these tokens, but for finished rows.
        """
        return most_probable(self.scores(input_ids, logits_processor))

    def score_parts(self, input_ids: Tensor, logits_processor: Any) -> ScoreParts:
        """The scores and what they are made of; arguments as in :meth:`scores`, in whose place it is called.

        A session that does not say how its scores are made shows them beside the model's own logits.
        """
        return ScoreParts(self.scores(input_ids, logits_processor), {EXPERT: self.logits})

    def rescored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores of this session as a processor among those of ``generate``; shapes as in :meth:`scores`.

        Args:
            input_ids: (batch, length) all tokens so far.
            scores: (batch, vocab) the model's logits (or log-probabilities) after the processors before this one.
        """
        return self.scores(input_ids, lambda _ids, _logits: scores.float())

    @abstractmethod
    def advance(self, tokens: Tensor) -> None:
        """Read (batch,) tokens chosen from the last scores. A finished row may be given any token."""

    def follow(self, tokens: Tensor) -> None:
        """Read (batch,) tokens that ``generate`` chose, perhaps against the scores."""
        self.advance(tokens)

    # --- drafts: a pass over several tokens of each row, of which some are kept --------------------------------------

    @property
    def reads_known_text(self) -> bool:
        """True where :meth:`read_drafts` reads any text that is known beforehand, many tokens in one pass."""
        return False

    def begin_drafts(self) -> None:
        """Prepare for :meth:`read_drafts`, which takes the place of :meth:`advance` from now on.

        Raises:
            OptionError: a strategy that has no drafts.
            ModelError: a model or a cache that has none.
        """
        raise OptionError(f"drafts: {type(self).__name__} has none; leave the option out")

    def read_by_amateur(self, prompts: Sequence[Sequence[int]]) -> TextsRead | None:
        """What the strategy's amateur has read, where it has passes of its own: whoever drafts reads on with it, and
        the session takes what it says. None where nobody else may read with it.

        Args:
            prompts: tokens of each row, without padding. It is called once, after :meth:`begin_drafts`.
        """
        return None

    def read_by_exit(self, layers: int) -> LowerTexts | None:
        """The texts as the model's first layers read them ahead, with which whoever drafts goes on: the passes over
        drafts begin after these layers. None where they cannot.

        Args:
            layers: how many. It is called once, after :meth:`begin_drafts`.
        """
        return None

    def read_drafts(self, tokens: Tensor, processed: Processed, further: Further | None = None) -> None:
        """Read (batch, n) tokens: the last that was chosen of each row, and its drafts.

        Args:
            tokens: which may be any where a row has no draft.
            processed: changes float32 logits (batch, n, vocab) as the call's processors do after each of the tokens;
                for sessions that must know candidates before :meth:`scores` is called. Logits after a token that the
                processors exclude, or that is no draft, stay as they are.
            further: for sessions that can read drafts of the next round in this one; None for no such drafts.
        """
        raise NotImplementedError

    def widths_of_passes(self, drafts: int) -> Sequence[int]:
        """How many tokens each pass of :meth:`read_drafts` reads, all rows and readers together: what a round costs is
        reckoned from it. One pass over one row, unless a session knows better.

        Args:
            drafts: of each row; 0 for a round without.
        """
        return [drafts + 1]

    def at(self, slot: int, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Make the next scores those after a token of the last :meth:`read_drafts`.

        Args:
            slot: index of the token.
            rows: in which they are of use.
            lengths: how many columns of the ``input_ids`` that :meth:`scores` is then given are each row's text.
        """
        raise NotImplementedError

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first ``counts[i]`` tokens of row i of the last :meth:`read_drafts`, and forget the others."""
        raise NotImplementedError

    def rewind_to(self, tokens: int) -> None:
        """Forget what rows have read beyond this number of tokens after the prompt; all have read as many."""
        raise NotImplementedError

    @abstractmethod
    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, the state of the last :meth:`scores` included."""

    @abstractmethod
    def close(self) -> Any:
        """Finish the model's cache, holding every token but the last, and return it."""

    @abstractmethod
    def release(self) -> None:
        """Free everything large; the session is of no use afterwards."""


class StreamSession(Session):
    """A session whose strategy reads the text with one stream. Subclasses have :meth:`scores`; the rest is here.

    Args:
        stream: that has read the prompt.

    Attributes:
        stream: the stream.
        text: given ``input_ids``, the text so far without its padding.
    """

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.text = UnpaddedText(stream.input_ids, stream.padding_mask if stream.padded else None)
        self.output = stream.prompt
        self.logits = stream.logits(stream.prompt)

    @property
    def reads_known_text(self) -> bool:
        """True where rows can be separated."""
        return self.stream.can_separate_rows

    def begin_drafts(self) -> None:
        """Let each row have a length of its own."""
        self._begun_at = self.stream.length
        self._rows = self.stream.separate_rows()

    def read_by_exit(self, layers: int) -> LowerTexts | None:
        """The texts as the first layers of the stream's model read them ahead."""
        return lower_texts(self.stream, layers)

    def read_drafts(self, tokens: Tensor, processed: Processed, further: Further | None = None) -> None:
        """Read (batch, n) tokens."""
        self._before = list(self._rows.lengths)
        tokens = within_vocabulary(self.stream.model, tokens.to(self.stream.input_ids.device))
        if self._rows.lower is not None and further is not None:
            self._rows.lower.drafts = further.counts
        self._ahead = self.stream.extend(tokens)
        self._logits_ahead = self.stream.every_logit(self._ahead)

    def widths_of_passes(self, drafts: int) -> Sequence[int]:
        """One pass over all rows."""
        return [self.stream.batch * (drafts + 1)]

    def at(self, slot: int, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Go to the scores after a token of the last pass."""
        self.text.lengths = lengths
        self.output = at_token(self._ahead, slot)
        self.logits = self._logits_ahead[:, slot]

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first tokens of each row."""
        self._rows.rewind([before + count for before, count in zip(self._before, counts, strict=True)])

    def rewind_to(self, tokens: int) -> None:
        """Forget what is beyond a number of new tokens."""
        self._rows.rewind([self._begun_at + tokens] * self.stream.batch)

    def processed_logits(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """(batch, vocab) float32 logits of the model, processed, on the device of ``input_ids``."""
        logits = self.logits.to(dtype=torch.float32, device=input_ids.device, copy=True)
        return logits_processor(input_ids, logits)

    def advance(self, tokens: Tensor) -> None:
        """Read the tokens, (batch,)."""
        # A finished row is given pad tokens, which may be outside the vocabulary; its logits no longer matter.
        tokens = within_vocabulary(self.stream.model, tokens.to(self.stream.input_ids.device))
        self.take(self.stream.extend(tokens[:, None]))

    def take(self, output: ForwardOutput) -> None:
        """Make the output of a forward pass that which the next scores are made of."""
        self.output = output
        self.logits = self.stream.logits(output)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self.stream.reorder(rows)
        self.text.reorder(rows)
        self.logits = self.logits[rows.to(self.logits.device)]

    def close(self) -> Any:
        """The model's cache, holding every token but the last."""
        return self.stream.close()

    def release(self) -> None:
        """Free the cache."""
        self.stream.release()


def most_probable(scores: Tensor) -> Tensor:
    """(batch,) the tokens with the largest of (batch, vocab) scores; -1 where these are all -inf or one is NaN."""
    tokens = scores.argmax(-1, keepdim=True)
    return torch.where(scores.gather(1, tokens) > -torch.inf, tokens, -1)[:, 0]


def argmax_first(matches: Tensor) -> Tensor:
    """(batch,) index of the first True of (batch, n); 0 where there is none."""
    return matches.to(torch.uint8).argmax(dim=1)
