"""One method of ``drafts.py`` on its prompts: the time it takes, its rounds and its readings."""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from draft_settings import Setting, Text, amateur_of, context_aware

__all__ = ["EAGER", "GREEDY", "PLAIN", "Run", "ratio", "run_all"]

GREEDY, EAGER, PLAIN = "greedy (transformers)", "every reader", "no drafts"
GIVEN_CONTEXT = 1024  # tokens of the prompts of the model with random weights


@dataclass
class Run:
    """What one method did on all prompts.

    Attributes:
        seconds: of decoding.
        count: tokens chosen in it, of all rows.
        first_s: seconds to the first tokens.
        tokens: of every batch.
        passes: of the model in decoding, each counted once for every row; those of who drafts are not among them, and
            a pass that several readers share is one.
        amateur_passes: of an amateur with weights of its own in decoding, those in which it drafts among them.
    """

    seconds: float = 0.0
    count: int = 0
    first_s: float = 0.0
    tokens: list[Any] = field(default_factory=list)
    rounds: int = 0
    in_rounds: int = 0
    drafted: int = 0
    kept: int = 0
    readings: int = 0
    read: int = 0
    passes: int = 0
    amateur_passes: int = 0

    @property
    def ms_per_token(self) -> float:
        return 1000 * self.seconds / max(self.count, 1)

    @property
    def per_round(self) -> float:
        """Tokens of a row in a round."""
        return self.in_rounds / self.rounds if self.rounds else 1.0

    @property
    def passes_per_token(self) -> float:
        """Passes of the model for a token of a row."""
        return self.passes / max(self.count, 1)

    @property
    def amateur_passes_per_token(self) -> float:
        """Passes of an amateur with weights of its own for a token of a row."""
        return self.amateur_passes / max(self.count, 1)

    @property
    def accepted(self) -> float:
        """The share of drafts that were accepted."""
        return self.kept / self.drafted if self.drafted else 0.0

    @property
    def left_out(self) -> float:
        """The share of readings of a token by a group of readers that were not made, or made with others later."""
        return 1 - self.read / self.readings if self.readings else 0.0


def run_all(
    setting: Setting, method: str, drafts: Any, batches: Sequence[Sequence[Text]], model: Any, tokenizer: Any,
    options: argparse.Namespace,
) -> Run:  # fmt: skip
    """Decode every batch by one method."""
    import decoding
    from decoding.strategies.contrast.base import ContrastStrategy

    found = Run()
    for texts in batches:
        strategy = setting.strategy(model, tokenizer, texts, options)
        within = strategy is None or method == GREEDY or setting.strategy is not context_aware
        prompts = [(text.context if within else "") + text.prompt for text in texts]
        inputs = encoded(prompts, tokenizer, model)
        clock = Clock()
        common = {
            **inputs, "max_new_tokens": options.new_tokens, "do_sample": False, "stopping_criteria": [clock],
        }  # fmt: skip
        amateur = None
        if isinstance(strategy, ContrastStrategy) and method != GREEDY:
            amateur = next((reader.model for reader in strategy.readers(model, len(texts)) if reader.model), None)
        with counted(found, lazy=method != EAGER), passes_of(model) as passes, ExitStack() as patched:
            of_amateur = patched.enter_context(passes_of(amateur)) if amateur is not None else []
            began = time.perf_counter()
            if method == GREEDY:
                ids = model.generate(**common)
            elif drafts is None:
                ids = decoding.generate(model, strategy=strategy, **common)
            else:
                own = drafts
                if drafts.startswith("given:"):
                    expected = decoding.generate(model, strategy=strategy, **{**common, "stopping_criteria": None})
                    patched.enter_context(given_drafts(expected.tolist(), float(drafts.removeprefix("given:"))))
                    clock.first, began = 0.0, time.perf_counter()
                    passes.clear()
                    of_amateur.clear()
                    own = "prompt-lookup"
                elif drafts.startswith("model:"):
                    own = assistant(amateur_of(drafts.removeprefix("model:"), None, options))
                ids = decoding.generate(
                    model, strategy=strategy, drafts=own, draft_tokens=options.draft_tokens, **common
                )
        new = ids[:, inputs["input_ids"].shape[1] :]
        ends = {model.generation_config.pad_token_id, getattr(tokenizer, "eos_token_id", None)} - {None}
        ended = sum(int((new == end).sum()) for end in ends) if tokenizer is not None else 0
        found.count += new.numel() - ended - len(texts)
        found.seconds += clock.last - clock.first
        found.first_s += clock.first - began
        # Without the time before the first token, in which the prompt is read.
        found.passes += len(texts) * sum(ended > clock.first for ended in passes)
        found.amateur_passes += len(texts) * sum(ended > clock.first for ended in of_amateur)
        found.tokens.append(ids.tolist())
    return found


class Clock:
    """A stopping criterion that notes when the first token was chosen, and the last."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.last = time.perf_counter()
        self.first = self.first or self.last
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def passes_of(model: Any) -> Iterator[list[float]]:
    """When each pass of a model began its last layer, which an exit does not come to."""
    from decoding.models.structure import inspect_model

    began: list[float] = []
    handle = inspect_model(model).layers[-1].register_forward_pre_hook(lambda *given: began.append(time.perf_counter()))
    try:
        yield began
    finally:
        handle.remove()


@contextmanager
def counted(run: Run, lazy: bool) -> Iterator[None]:
    """Count rounds and readings, with lazy readers or without them."""
    from unittest.mock import patch

    from decoding.drafts.length import DraftLength
    from decoding.strategies.contrast.base import ContrastStrategy
    from decoding.strategies.contrast.drafted_readers import DraftedReaders, _DraftedGroup
    from decoding.strategies.contrast.drafting_reader import DraftingReader
    from decoding.strategies.contrast.fused_streams import FusedStreams
    from decoding.strategies.contrast.reader_group import ReaderGroup

    def end(self: Any, drafts: Any, chosen: Mapping[int, Sequence[int]]) -> None:
        run.rounds += len(chosen)
        run.in_rounds += sum(map(len, chosen.values()))
        run.drafted += sum(drafts.counts[row] for row in chosen)
        run.kept += sum(map(len, chosen.values())) - len(chosen)
        ends(self, drafts, chosen)

    def step(self: Any, *given: Any) -> Any:
        run.readings += len(self.groups)
        return steps(self, *given)

    def read(self: Any, tokens: Any) -> Any:
        run.read += 1
        return reads(self, tokens)

    def drafted_step(self: Any, *given: Any) -> Any:
        run.readings += len(self._groups)
        return drafted_steps(self, *given)

    def drafted_read(self: Any, *given: Any) -> Any:
        run.read += 1
        return drafted_reads(self, *given)

    def catch_up(self: Any, *given: Any) -> Any:
        run.read += 1
        return caught_up(self, *given)

    ends, steps, reads = DraftLength.end, FusedStreams.extend, ReaderGroup.extend
    drafted_steps, drafted_reads, caught_up = DraftedReaders.read, _DraftedGroup.catch_up, DraftingReader.catch_up
    with (
        patch.object(DraftLength, "end", end), patch.object(FusedStreams, "extend", step),
        patch.object(ReaderGroup, "extend", read), patch.object(DraftedReaders, "read", drafted_step),
        patch.object(_DraftedGroup, "catch_up", drafted_read), patch.object(DraftingReader, "catch_up", catch_up),
        patch.object(ContrastStrategy, "lazy", lazy),
    ):  # fmt: skip
        yield


@contextmanager
def given_drafts(texts: list[list[int]], share: float) -> Iterator[None]:
    """Drafts from texts that are known, each token right with this probability."""
    from unittest.mock import patch

    import torch

    from decoding.drafts.proposer import Drafts, Proposer, drafts_of
    from decoding.generation import strategy

    draws = random.Random(0)

    class Given(Proposer):
        """Proposes what the texts have, some tokens of it replaced."""

        def propose(self, so_far: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
            return self.propose_behind(so_far, [()] * len(so_far), most)

        def propose_behind(
            self, so_far: Sequence[Sequence[int]], behind: Sequence[Sequence[int]], most: Sequence[int]
        ) -> Drafts:
            rows = []
            for text, now, more, n in zip(texts, so_far, behind, most, strict=True):
                begin = len(now) + len(more)
                rows.append([t if draws.random() < share else (t + 1) % 1000 for t in text[begin : begin + n]])
            return drafts_of(rows, self.device)

    given = Given()
    given.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with patch.object(strategy, "open_proposer", lambda *args, **kwargs: given):
        yield


def encoded(prompts: Sequence[str], tokenizer: Any, model: Any) -> dict[str, Any]:
    """Token ids and mask of prompts; random ids of as many where there is no tokenizer."""
    import torch

    if tokenizer is not None:
        return dict(tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device))
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(100, 30000, (len(prompts), GIVEN_CONTEXT), generator=draws).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def ratio(results: Sequence[Run], others: Sequence[Run]) -> float:
    """The median over the repeats of time per token against that of the same turn."""
    return statistics.median(one.ms_per_token / other.ms_per_token for one, other in zip(results, others, strict=True))


@functools.cache
def assistant(name: str) -> Any:
    """A model that drafts."""
    import decoding

    return decoding.load(name, dtype="float32")[0]
