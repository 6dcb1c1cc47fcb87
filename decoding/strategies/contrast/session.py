"""One call of a contrast strategy: its readers' logits after the last token, and what is left out of their reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from decoding.drafts.lower_texts import LowerTexts, lower_texts
from decoding.drafts.options import AMATEUR
from decoding.drafts.texts_read import TextsRead
from decoding.generation.processors import WARPERS, ContrastProcessors
from decoding.generation.score_parts import ScoreParts, processor_changes
from decoding.generation.session import Further, Processed, Session
from decoding.generation.unpadded_text import UnpaddedText
from decoding.strategies.contrast.drafted_readers import DraftedReaders
from decoding.strategies.contrast.fused_streams import MOST_UNREAD, FusedStreams
from decoding.strategies.contrast.measures import MeasureHistory
from decoding.strategies.contrast.parts import ContrastParts, named_parts
from decoding.strategies.contrast.readers import EXPERT, ReaderLogits
from decoding.strategies.contrast.scores import Contrast, are_few, candidates
from decoding.stream.output import ForwardOutput

__all__ = ["ContrastSession"]


class Formula(Protocol):
    """What a session asks of its strategy; see :class:`decoding.strategies.contrast.base.ContrastStrategy`."""

    @property
    def plausibility_roles(self) -> frozenset[str] | None:
        """The readers that plausibility depends on."""

    @property
    def measured_roles(self) -> frozenset[str]:
        """The readers that a measure depends on."""

    def measure(self, logits: Mapping[str, ReaderLogits]) -> Tensor:
        """Return what later scores depend on."""

    def after(self, measures: Tensor) -> Formula:
        """Return the formula where it is known what was measured."""

    def contrast_at(self, logits: Mapping[str, ReaderLogits], input_ids: Tensor, new_tokens: Tensor) -> Contrast:
        """Return the scores."""

    def parts(self, logits: Mapping[str, ReaderLogits], new_tokens: Tensor) -> ContrastParts:
        """Return what they are made of."""


class ContrastSession(Session):
    """One call of a contrast strategy: its readers' streams and their last logits.

    What cannot change the choice is left out:

    - Where plausibility leaves one token in every row, no contrast can change the choice. Groups of readers on which
      plausibility does not depend, nor what the strategy measures, are then left to read the text later, in one pass,
      once there is a choice again.
    - Where only the first tokens of a text are contrasted, readers that nothing depends on afterwards read no more.
    - Heads are applied for all tokens only to the readers that plausibility depends on; to the others, and to lower
      layers, for the plausible tokens alone. The constants of softmax over all tokens are then unknown. They add the
      same to every score of a row, which changes neither the largest score nor the probabilities.

    Args:
        strategy: of the call.
        streams: its readers, which have read the prompt.
        text: given ``input_ids``, the text so far without its padding.

    Attributes:
        may_wait: indices of the groups of readers that may be left to read later; none unless it is set.
        may_end: the number of new tokens after which readers end, and the roles of those that last; None where all do,
            and once they have ended.
        may_select: whether heads may be applied for plausible tokens alone; False unless it is set. It is done where
            nothing but samplers sees the scores.
        reader_logits: by role, after the last token; of readers that wait, and of those whose heads are yet to be
            applied, they are those of an earlier token.
    """

    def __init__(self, strategy: Formula, streams: FusedStreams, text: UnpaddedText) -> None:
        self.strategy = strategy
        self.streams = streams
        self.text = text
        self.may_wait: frozenset[int] = frozenset()
        self.may_end: tuple[int, frozenset[str]] | None = None
        self.may_select = False
        self.reader_logits: dict[str, ReaderLogits] = {}
        self._selects = False
        self._headless: dict[int, ForwardOutput] = {}  # by group: its head was applied for plausibility at most
        self._split: tuple[Any, ContrastProcessors] = (None, ContrastProcessors([]))
        self._drafted: DraftedReaders | None = None
        self._slot: int | None = None  # that is looked at, of the drafts read last
        self._measures = MeasureHistory() if strategy.measured_roles else None
        self._take(streams.prompt)

    @property
    def _formula(self) -> Formula:
        """The strategy, after what it has measured so far."""
        return self.strategy if self._measures is None else self.strategy.after(self._measures.measures)

    def _contrast(self, logits: Mapping[str, ReaderLogits], text: Tensor) -> Contrast:
        return self._formula.contrast_at(logits, text, self.text.new_tokens(text))

    def scores(self, input_ids: Tensor, logits_processor: Any) -> Tensor:
        """The strategy's scores, processed, -inf where a token is not plausible."""
        processors = self._processors_of(logits_processor)
        text = self.text(input_ids)
        if not processors and (self._waiting() or self._headless):
            scores = self._plausible_scores(text)
            if scores is not None:
                return processors.warpers(input_ids, scores.to(input_ids.device))
        self._complete()
        contrast = self._contrast(self.reader_logits, text)
        only_samplers = not processors and all(isinstance(warper, WARPERS) for warper in processors.warpers)
        self._selects = self.may_select and only_samplers and contrast.by_alpha and _is_choosy(contrast)
        if not processors:
            return processors.warpers(input_ids, contrast.masked.to(input_ids.device))
        scores = contrast.scores.to(input_ids.device)
        processed = processors.processed(input_ids, scores, contrast.apply_plausibility, self.logits)
        return processors.warpers(input_ids, processed)

    def score_parts(self, input_ids: Tensor, logits_processor: Any) -> ScoreParts:
        """The scores, with the logits of every reader and its weight: no reader waits or ends any more."""
        self.leave_nothing_out()
        scores = self.scores(input_ids, logits_processor).float()
        text = self.text(input_ids)
        parts = self._formula.parts(self.reader_logits, self.text.new_tokens(text))
        changes = processor_changes(self._contrast(self.reader_logits, text).scores.to(scores.device), scores)
        if changes is not None:
            parts = replace(parts, terms={**parts.terms, "processors": (changes, 1.0)})
        return named_parts(parts, self.streams.readers, self.reader_logits, scores)

    def leave_nothing_out(self) -> None:
        """From now on every reader reads every token, and scores are those of all tokens: what cannot change a choice
        changes them.
        """
        self.may_wait, self.may_end, self.may_select = frozenset(), None, False

    @property
    def reads_known_text(self) -> bool:
        """True where the rows of every reader can be separated."""
        return all(group.stream.can_separate_rows for group in self.streams.groups)

    def rescored(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The strategy's scores, changed as the processors before it changed the model's logits.

        Tokens that they excluded stay excluded, and what they added is added. Beam search has log-probabilities
        instead of logits; that shift of a row is not passed on.
        """
        self._complete()
        if EXPERT not in self.reader_logits:
            logits = {EXPERT: ReaderLogits(scores.float()), **self.reader_logits}
            return self._contrast(logits, self.text(input_ids)).masked
        contrast = self._contrast(self.reader_logits, self.text(input_ids))
        change = scores.float() - self.reader_logits[EXPERT].final.to(scores.device, torch.float32)
        shift = change.masked_fill(scores == -torch.inf, torch.nan).nanmedian(-1, keepdim=True).values.nan_to_num()
        return contrast.apply_plausibility(contrast.scores.to(scores.device) + (change - shift))

    def advance(self, tokens: Tensor) -> None:
        """Read the tokens as every reader that neither waits nor has ended."""
        if self._measures is not None:
            self._measures.accept()
        if self.may_end is not None and self.streams.step + 1 >= self.may_end[0]:
            changed = self.streams.end_readers(self.may_end[1])
            # What is not computed of their last output is of no use: lasting readers are read again.
            self._headless = {index: output for index, output in self._headless.items() if index not in changed}
            self.may_end = None
        self._take(self.streams.extend(tokens, self.may_wait))
        if any(len(unread) >= MOST_UNREAD for unread in self.streams.unread.values()):
            self._take(self.streams.catch_up())

    def begin_drafts(self) -> None:
        """Let each row of every reader have a length of its own."""
        self._drafted = DraftedReaders(self.streams)

    def read_by_amateur(self, prompts: Sequence[Sequence[int]]) -> TextsRead | None:
        """What the amateur has read, where it has passes of its own."""
        assert self._drafted is not None, "read_by_amateur() without begin_drafts()"
        return self._drafted.read_by(AMATEUR, prompts)

    def read_by_exit(self, layers: int) -> LowerTexts | None:
        """The texts as the first layers of the expert read them ahead, where no reader shares its passes."""
        alone = [group.stream for group in self.streams.groups if [r.role for r in group.readers] == [EXPERT]]
        return lower_texts(alone[0], layers) if alone else None

    def read_drafts(self, tokens: Tensor, processed: Processed, further: Further | None = None) -> None:
        """Read (batch, n) tokens as every reader that does not wait."""
        assert self._drafted is not None, "read_drafts() without begin_drafts()"
        if self._measures is not None and self._slot is None:
            self._measures.accept()  # the place after the prompt, which no draft was read for
        counts = None if further is None else further.counts
        self._drafted.read(tokens, self.may_wait, self._whole_heads(), counts)

    def widths_of_passes(self, drafts: int) -> Sequence[int]:
        """A pass for each group of readers."""
        return [group.stream.batch * (drafts + 1) for group in self.streams.groups]

    def at(self, slot: int, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Go to the scores after a token of the last pass."""
        self.text.lengths = lengths
        self.streams.steps = {row: lengths[row] - self.text.prompt_length for row in rows}
        self._slot = slot
        self._look()

    def accept(self, counts: Sequence[int]) -> None:
        """Keep the first tokens of each row."""
        assert self._drafted is not None
        self._drafted.accept(counts)
        if self._measures is not None:
            self._measures.accept(counts)

    def rewind_to(self, tokens: int) -> None:
        """Forget what is beyond a number of new tokens."""
        assert self._drafted is not None
        self._drafted.rewind_to(tokens)

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was."""
        self._apply_heads()
        if self._measures is not None:
            self._measures.reorder(rows)
        self.streams.reorder(rows)
        self.text.reorder(rows)
        self.reader_logits = {
            role: _reordered(logits, rows.to(logits.final.device)) for role, logits in self.reader_logits.items()
        }

    def close(self) -> Any:
        """The expert's cache, with all tokens that it has waited to read."""
        if self._drafted is None and self.streams.expert_waits:
            self._catch_up()
        return self.streams.close()

    def release(self) -> None:
        """Free every stream."""
        self.streams.release()

    def _take(self, outputs: Mapping[int, ForwardOutput]) -> None:
        """Make outputs of groups those which the next scores are made of."""
        roles = self._whole_heads()
        if roles is not None:
            self._headless |= outputs
            read = self._with_finals(self.streams.final_logits(outputs, roles))
        else:
            read = self.streams.reader_logits(outputs)
        self.reader_logits |= read
        if EXPERT in read:
            self.output = self.streams.expert_output(outputs)
            self.logits = read[EXPERT].final
        self._measure(0)

    def _measure(self, place: int) -> None:
        """Measure what later scores depend on, at a place of the last pass: the readers of it never wait."""
        if self._measures is not None:
            self._measures.look(self.strategy.measure(self.reader_logits), place)

    def _look(self) -> None:
        """Make what was read of drafts, at the place that is looked at, that which the next scores are made of."""
        assert self._drafted is not None
        assert self._slot is not None
        found = self._drafted.at(self._slot)
        self._headless = found.headless
        self.reader_logits |= {**found.logits, **self._with_finals(found.finals)}
        self.output = found.expert_output
        self.logits = self.reader_logits[EXPERT].final
        self._measure(self._slot)

    def _whole_heads(self) -> frozenset[str] | None:
        """The roles of readers whose heads are applied for all tokens; None for all readers."""
        return frozenset({EXPERT, *(self.strategy.plausibility_roles or ())}) if self._selects else None

    def _with_finals(self, finals: Mapping[str, Tensor]) -> dict[str, ReaderLogits]:
        return {role: replace(self.reader_logits[role], final=final) for role, final in finals.items()}

    def _waiting(self) -> bool:
        """True where readers have not read what the next scores come after."""
        return bool(self.streams.unread) if self._drafted is None else self._drafted.waiting

    def _catch_up(self) -> None:
        """Let every reader have read the text."""
        if not self._waiting():
            return
        if self._drafted is None:
            self._take(self.streams.catch_up())
        else:
            self._drafted.catch_up(self._whole_heads())
            self._look()

    def _complete(self) -> None:
        """Let every reader have read the text, and have the logits of all tokens."""
        self._catch_up()
        self._apply_heads()

    def _apply_heads(self) -> None:
        self.reader_logits |= self.streams.reader_logits(self._headless)
        self._headless = {}

    def _plausible_scores(self, text: Tensor) -> Tensor | None:
        """(batch, vocab) float32 scores of plausible tokens, but for a constant of the row; -inf of the others. None
        where they need the logits of all tokens.
        """
        # Of some readers these are logits of before, on which plausibility does not depend.
        marked = candidates(self._contrast(self.reader_logits, text))
        if marked is None:
            return None
        scores = torch.full_like(marked, -torch.inf, dtype=torch.float32)
        if int(marked.sum()) == len(marked):
            return scores.masked_fill_(marked, 0.0)
        if not self._headless or not are_few(marked):
            return None
        tokens = marked.any(0).nonzero()[:, 0]
        self._catch_up()
        contrast = self._contrast(self.streams.reader_logits(self._headless, tokens), text)
        passing = contrast.plausible()
        selected = contrast.scores if passing is None else contrast.scores.masked_fill(~passing, -torch.inf)
        # A row whose plausible tokens are all excluded takes others; one that has NaN is an error.
        if not bool((selected.amax(-1) > -torch.inf).all()):
            return None
        return scores.index_copy_(-1, tokens, selected)

    def _processors_of(self, logits_processor: Any) -> ContrastProcessors:
        if self._split[0] is not logits_processor:
            self._split = logits_processor, ContrastProcessors(logits_processor)
        return self._split[1]


def _is_choosy(contrast: Contrast) -> bool:
    """True where plausibility leaves few tokens. Where it leaves many, it most often does so at the next step too, and
    the expert's head alone, before that of all readers, would be applied for nothing.
    """
    marked = candidates(contrast)
    return marked is not None and are_few(marked)


def _reordered(logits: ReaderLogits, rows: Tensor) -> ReaderLogits:
    return ReaderLogits(logits.final[rows], None if logits.exits is None else logits.exits[:, rows])
