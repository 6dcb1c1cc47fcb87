"""The rounds of a call with drafts: each reads the rows' last tokens and drafts, and chooses.

At each place of the pass the strategy's own scores choose, as they would without drafts. While the choice is the draft,
the next place is looked at; where it is not, the choice is the row's next token and what was read after it is
forgotten. Rows accept different numbers of drafts, and none waits for another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

from decoding.drafts.ahead import DraftsAhead
from decoding.drafts.length import DraftLength
from decoding.drafts.proposer import Drafts
from decoding.drafts.record import DraftRecord
from decoding.drafts.verification import verified
from decoding.generation.drafted_output import RowRecords
from decoding.generation.draws import draw
from decoding.generation.loop import no_token
from decoding.generation.processors import per_length
from decoding.generation.row_texts import RowTexts
from decoding.generation.session import Further, Session, most_probable
from decoding.models.devices import broadcast_from_rank0

__all__ = ["Rounds"]


class Rounds:
    """The rows of a call, and what is chosen for them.

    Args:
        pads: True where a row that has ended goes on with padding, False where with its own tokens.
        whole: True where rows go on until all have ended, as they do without drafts: their cache and scores are wanted.

    Attributes:
        going: indices of the rows that go on.
        finish_length: columns of each row that has ended, by its index.
    """

    def __init__(
        self,
        session: Session,
        texts: RowTexts,
        model: Any,
        logits_processor: LogitsProcessorList,
        temperature: float,
        stopping_criteria: StoppingCriteriaList,
        config: GenerationConfig,
        generators: Sequence[torch.Generator] | None,
        pads: bool,
        whole: bool,
        draft_record: DraftRecord | None,
    ) -> None:
        self.session = session
        self.texts = texts
        self.model = model
        rows = len(texts.lengths)
        self.processors: Any = logits_processor
        self.counting: dict[int, int] = {}  # columns of the rows whose scores are of use
        if rows > 1 or session.looks_ahead:
            self.processors = per_length(logits_processor, lambda: self.counting)
        self.temperature = temperature
        self.criteria = stopping_criteria
        self.config = config
        self.generators = generators
        self.pads, self.whole = pads, whole
        self.draft_record = draft_record
        if draft_record is not None:
            draft_record.begin(rows)
        self.record = RowRecords(config, rows, bool(model.config.is_encoder_decoder))
        self.finish_length: dict[int, int] = {}
        self.going = list(range(rows))
        self.last = torch.zeros(rows, dtype=torch.long, device=texts.ids.device)  # tokens that are not read yet

    @property
    def open(self) -> list[int]:
        """Indices of the rows that have not ended."""
        return [row for row in self.going if row not in self.finish_length]

    @property
    def settled(self) -> int:
        """The columns of which every row's token is known: a row that has ended goes on with padding, or by itself."""
        open_rows = [row for row in self.going if not (self.pads and row in self.finish_length)]
        return min((self.texts.lengths[row] for row in open_rows), default=max(self.finish_length.values(), default=0))

    def room(self, row: int) -> int:
        """How many drafts a row can take: what it may still have, but for the token that follows them."""
        return 0 if row in self.finish_length else self._left(row) - 1

    def _left(self, row: int) -> int:
        """How many tokens a row may still have."""
        return int(self.config.max_length) - self.texts.lengths[row]

    def with_padding(self, drafts: Drafts) -> Drafts:
        """Drafts with padding as those of the rows that have ended: it is all accepted."""
        n = drafts.tokens.shape[1]
        ended = [row for row in self.going if row in self.finish_length]
        if not (self.pads and ended and n) or self.session.looks_ahead:
            return drafts
        tokens, counts = drafts.tokens.clone(), list(drafts.counts)
        for row in ended:
            tokens[row] = self.texts.pad
            counts[row] = max(min(n, self._left(row) - 1), 0)
        return replace(drafts, tokens=tokens, counts=counts)

    def run(self, drafts: Drafts, ahead: DraftsAhead, length: DraftLength) -> dict[int, list[int]]:
        """Read the last token of each row and its drafts, and choose as long as drafts are what is chosen.

        Args:
            drafts: of the round.
            ahead: proposes those of the next, where the session reads them in this one.
            length: tells how many drafts the next round has, if all of this one's are accepted.

        Returns:
            The tokens that were chosen, of each row that had not ended.
        """
        running = self.open

        def processed(logits: Tensor) -> Tensor:
            return self._processed_ahead(drafts, logits)

        def proposed() -> Drafts | None:
            # The round ends with a token that is no draft, and so does the next.
            left = [self.room(row) - count - 1 for row, count in enumerate(drafts.counts)]
            most = length.next_if_accepted(drafts)
            return ahead.further(self.texts.tokens, drafts, [max(min(most, n), 0) for n in left])

        self.session.read_drafts(
            torch.cat([self.last[:, None], drafts.tokens], dim=1), processed, Further(drafts.counts, proposed)
        )
        before = list(self.texts.lengths)
        kept = self.choose(drafts)
        self.session.accept(kept)
        chosen = {row: self.texts.tokens[row][-kept[row] :] for row in running}
        if self.draft_record is not None:
            for row in running:
                tokens = drafts.tokens[row, : min(drafts.counts[row], kept[row])].tolist()
                self.draft_record.add(row, before[row], tokens, chosen[row])
        return chosen

    def _processed_ahead(self, drafts: Drafts, logits: Tensor) -> Tensor:
        """The logits (batch, 1 + drafts, vocab) after the last token of each row and its drafts, processed as far as
        the drafts may be chosen: no processor is shown a text that it excludes.
        """
        if not self.processors:
            return logits
        n = drafts.tokens.shape[1]
        texts = self.texts.continued(drafts.tokens)
        columns = texts.shape[1] - n
        rows = list(self.going)
        for slot in range(n + 1):
            self.counting = {row: self.texts.lengths[row] + slot for row in rows}
            logits[:, slot] = self.processors(texts[:, : columns + slot], logits[:, slot])
            if slot < n:
                tokens = drafts.tokens[:, slot, None].to(logits.device)
                possible = (logits[:, slot].gather(1, tokens)[:, 0] > -torch.inf).tolist()
                rows = [row for row in rows if slot < drafts.counts[row] and possible[row]]
            if not rows:
                break
        return logits

    def choose(self, drafts: Drafts) -> list[int]:
        """Choose tokens at each place of the last pass.

        Returns:
            The number of tokens of each row that were read rightly.
        """
        active = list(self.going)
        kept = [0] * len(self.texts.lengths)
        first = not self.record.steps[active[0]]
        for slot in range(drafts.tokens.shape[1] + 1):
            if not first:
                self.session.at(slot, active, self.texts.lengths)
            probabilities = drafts.probabilities
            here = [row for row in active if slot < drafts.counts[row]]
            chosen, scores = self._choose(
                active, here,
                drafts.tokens[:, slot] if here else None,
                probabilities[:, slot] if here and probabilities is not None else None,
            )  # fmt: skip
            added = self._append(active, chosen, scores)
            for row in active:
                kept[row] = slot + 1
            drafted = drafts.tokens[:, slot].tolist() if here else []
            active = [
                row for row in here if drafted[row] == added[row] and (row not in self.finish_length or self.whole)
            ]
            if not active or not any(self._goes_on(row) for row in active):
                break
        self.going = [row for row in self.going if self._goes_on(row)]
        return kept

    def _goes_on(self, row: int) -> bool:
        if row not in self.finish_length:
            return True
        if not self.whole:
            return False
        all_ended = len(self.finish_length) == len(self.texts.lengths)
        end = max(self.finish_length.values()) if all_ended else int(self.config.max_length)
        return self.texts.lengths[row] < end

    def _choose(
        self, active: Sequence[int], here: Sequence[int], drafts: Tensor | None, probabilities: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(batch,) tokens, of which those of the active rows count, and the scores where they were computed."""
        ids = self.texts.ids
        self.counting = {row: self.texts.lengths[row] for row in active}
        if not (self.config.do_sample or self.record.keeps_scores):
            return self.session.greedy(ids, self.processors), None
        scores = self.session.scores(ids, self.processors)
        if not self.config.do_sample:
            return most_probable(scores), scores
        drawn = torch.full_like(self.last, -1)
        plain = [row for row in active if probabilities is None or row not in here]
        if plain:
            drawn[plain] = draw(scores[plain] / self.temperature, self._generators_of(plain))
        if probabilities is not None and drafts is not None:
            usable = scores.amax(-1).isfinite().tolist()
            checked = [row for row in here if usable[row]]
            if checked:
                drawn[checked] = verified(
                    scores[checked] / self.temperature, drafts[checked], probabilities[checked],
                    self._generators_of(checked),
                )  # fmt: skip
        return broadcast_from_rank0(self.model, drawn), scores

    def _generators_of(self, rows: Sequence[int]) -> list[torch.Generator] | None:
        return None if self.generators is None else [self.generators[row] for row in rows]

    def _append(self, active: Sequence[int], chosen: Tensor, scores: Tensor | None) -> dict[int, int]:
        """Give the active rows their tokens; returns them by row."""
        self.record.step(active, self.session, scores)
        values = chosen.tolist()
        running = [row for row in active if row not in self.finish_length]
        stuck = next((row for row in running if values[row] < 0), None)
        if stuck is not None:
            raise no_token(self.model, self.session, stuck, self.texts.lengths[stuck] - self.texts.prompt_length)
        tokens = chosen.clamp(min=0)
        if self.pads and len(running) < len(active):
            ended = [row for row in active if row in self.finish_length]
            tokens[ended] = self.texts.pad
        added = dict(zip(active, self.texts.append(active, tokens), strict=True))
        self.last[list(active)] = tokens[list(active)]
        for row, stopped in zip(running, self.texts.stopped(self.criteria, running, self.record.scores), strict=True):
            if stopped:
                self.finish_length[row] = self.texts.lengths[row]
        return added
