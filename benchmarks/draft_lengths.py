"""What the number of drafts that ``auto`` chooses is worth: known texts, replayed with rounds of known cost.

    python benchmarks/draft_lengths.py [--settings "NAME;NAME"] [--prompts 8] [--new-tokens 48]

Each setting's model writes its texts once. Then they are replayed: prompt lookup proposes what it would, a draft is
accepted where it is the next token of the text, and a round takes what ``draft_costs.py`` has measured for the setting
on a processor of this name. The clock that ``auto`` goes by is that sum, disturbed as by a busy machine: bursts at half
the speed, and stalls. So the figures depend on no other process: the time of a token, in units of a round without
drafts, with 3, 4 and 5 drafts in each round and with ``auto``, for first calls and for calls that know what those
before them have learnt. Texts that are made copy long passages, short ones, or match by chance alone. Sizes already in
the file are replaced, others kept.
"""

from __future__ import annotations

import argparse
import csv
import functools
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from draft_command import RESULTS, environment, measured, opened, parsed
from draft_runs import encoded
from draft_settings import LOOKED_UP, SETTINGS, Setting, context_aware
from turns import LeftOut

import decoding
from decoding.drafts import length as lengths
from decoding.drafts.experience import Experience
from decoding.drafts.length import LONGEST, DraftLength
from decoding.drafts.prompt_lookup import PromptLookup
from decoding.drafts.round_cost import one_row
from decoding.generation import strategy as strategies
from decoding.models.small_batch_linear import MOST_ROWS

Widths = Callable[[int], Sequence[int]]  # tokens of each pass of a round, by its drafts
MADE = {"made: copies 30 tokens at a time": 30, "made: half copied, 10 tokens at a time": 10, "made: never copies": 0}
MADE_AS = "greedy with knowledge"  # the setting whose rounds they take
COLUMNS = [
    "setting", "batch", "method", "texts", "new_tokens", "cost_of_a_token", "tokens_per_round", "seeds", "threads",
    "device", "torch", "transformers", "python",
]  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A text that is replayed: its prompt's tokens, those after it, and what prompt lookup looks in beside them."""

    prompt: list[int]
    new: list[int]
    sources: list[list[int]]


def main() -> int:
    """Replay all settings; 1 where one had to be left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="of the clock's disturbance")
    parser.add_argument("--costs", type=Path, default=RESULTS / "draft_costs.csv", help="file of the costs of rounds")
    parser.add_argument("--output", type=Path, default=RESULTS / "draft_lengths.csv")
    options = parsed(parser, [*LOOKED_UP, *MADE], new_tokens=48)
    return measured(functools.partial(replay, options=options), [1], COLUMNS, options)


def replay(name: str, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What a token of a setting's texts costs with several numbers of drafts; rows are replayed one by one."""
    if name in MADE:
        cost = measured_costs(MADE_AS, options)
        texts = [made(MADE[name], seed, options.new_tokens) for seed in range(2 * options.prompts)]
        widths: Widths = one_row
    else:
        cost = measured_costs(name, options)
        texts, widths = written_texts(SETTINGS[name], options)
    few = MOST_ROWS if options.device == "cpu" else None
    methods: dict[str, Callable[[Any, Any], DraftLength]] = {
        f"{n} drafts": lambda lookup, experience, n=n: DraftLength(n, lookup) for n in (3, 4, 5)
    }
    automatic = functools.partial(DraftLength, None, widths=widths, few=few)
    methods["auto, a first call"] = lambda lookup, experience: automatic(lookup)
    methods["auto, later calls"] = lambda lookup, experience: automatic(lookup, experience=experience)
    print(f"\n{name}: {len(texts)} texts")
    rows = []
    for method, make in methods.items():
        runs = [replayed(texts, make, cost, seed) for seed in range(options.seeds)]
        of_a_token, a_round = (statistics.fmean(values) for values in zip(*runs, strict=True))
        print(f"{method:20} {of_a_token:6.2f} of a round a token, {a_round:5.2f} tokens a round")
        rows.append(
            {
                "setting": name, "batch": batch, "method": method, "texts": len(texts),
                "new_tokens": options.new_tokens, "cost_of_a_token": f"{of_a_token:.3f}",
                "tokens_per_round": f"{a_round:.3f}", "seeds": options.seeds, **environment(options.device),
            }
        )  # fmt: skip
    return rows


def written_texts(setting: Setting, options: argparse.Namespace) -> tuple[list[Text], Widths]:
    """What the model writes, and how wide the passes of its rounds are."""
    model, tokenizer = opened(setting, options)
    found: list[Sequence[int]] = []

    class Noted(DraftLength):
        """Tells how wide the passes are, which is known while a text is written."""

        def __init__(
            self, fixed: int | None, proposer: Any, timed: bool, experience: Any, widths: Widths, few: int | None
        ) -> None:
            super().__init__(fixed, proposer, timed, experience, widths, few)
            self.of_passes = widths

        def begin(self) -> int:
            """As without."""
            found[:] = found or map(self.of_passes, range(LONGEST + 1))
            return super().begin()

    texts = []
    for text in list(setting.texts(options))[: options.prompts]:
        strategy = setting.strategy(model, tokenizer, [text], options)
        inputs = encoded([("" if setting.strategy is context_aware else text.context) + text.prompt], tokenizer, model)
        with patch.object(strategies, "DraftLength", Noted):
            ids = decoding.generate(
                model, **inputs, strategy=strategy, max_new_tokens=options.new_tokens, do_sample=False,
                drafts="prompt-lookup",
            )[0].tolist()  # fmt: skip
        start = inputs["input_ids"].shape[1]
        sources = [] if strategy is None else strategy.draft_sources(model, [ids[:start]])[0]
        texts.append(Text(ids[:start], ids[start:], [list(map(int, source)) for source in sources]))
    return texts, found.__getitem__


def made(copied: int, seed: int, new_tokens: int) -> Text:
    """A text that copies so many tokens of its prompt at a time and none between; of 0 one that matches by chance."""
    draws = random.Random(seed)

    def word() -> int:
        return int(60 * draws.random() ** 3)  # a few are frequent

    prompt = [word() for _ in range(200)] if not copied else [100 + draws.randrange(400) for _ in range(200)]
    new: list[int] = []
    while len(new) < new_tokens:
        if not copied:
            new.append(word())
            continue
        begin = draws.randrange(len(prompt) - copied)
        between = 1 if copied > 20 else copied
        new += prompt[begin : begin + copied] + [1000 + draws.randrange(10**6) for _ in range(between)]
    return Text(prompt, new[:new_tokens], [])


def measured_costs(name: str, options: argparse.Namespace) -> Callable[[int], float]:
    """The cost of a round by its drafts, one without being 1: from the file of costs, and between its values."""
    given = environment(options.device)
    here = {"setting": name, "batch": "1", "threads": str(given["threads"]), "device": given["device"]}
    known = []
    if options.costs.is_file():
        with options.costs.open(encoding="utf-8") as file:
            known = [row for row in csv.DictReader(file) if all(row[column] == here[column] for column in here)]
    counts, costs = [int(row["drafts"]) for row in known], [float(row["cost"]) for row in known]
    if not {0, LONGEST} <= set(counts):
        raise LeftOut(f"{options.costs} has no costs of {name!r} on {here['device']} (draft_costs.py measures them)")
    return lambda drafts: float(np.interp(drafts, counts, costs)) / costs[0]


def replayed(
    texts: Sequence[Text], make: Callable[[Any, Any], Any], cost: Callable[[int], float], seed: int
) -> tuple[float, float]:
    """What a token costs, and the number of tokens a round; the clock of the replay is disturbed."""
    clock, experience = Busy(seed), Experience()
    spent, tokens, rounds = 0.0, 0, 0
    with patch.object(lengths, "time", clock):
        for text in texts:
            lookup = PromptLookup([text.sources], torch.device("cpu"))
            length = make(lookup, experience)
            whole, at = text.prompt + text.new, len(text.prompt) + 1
            while at < len(whole):
                asked = min(length.begin(), len(whole) - at - 1)
                drafts = length.cut(lookup.propose([whole[:at]], [max(asked, 0)]), [0])
                proposed = drafts.tokens[0, : drafts.counts[0]].tolist()
                right = 0
                while right < len(proposed) and proposed[right] == whole[at + right]:
                    right += 1
                clock.go_on(cost(len(proposed)))
                length.end(drafts, {0: whole[at : at + right + 1]})
                spent, tokens, rounds, at = spent + cost(len(proposed)), tokens + right + 1, rounds + 1, at + right + 1
            length.close()
    return spent / tokens, tokens / rounds


class Busy:
    """A clock of a machine on which bursts of other work halve the speed, and some rounds are stalled."""

    def __init__(self, seed: int) -> None:
        self.draws, self.now, self.burst = random.Random(seed), 0.0, False

    def perf_counter(self) -> float:
        """The time in seconds."""
        return self.now

    def go_on(self, cost: float) -> None:
        """Let a round of such a cost pass."""
        if self.draws.random() < 0.1:
            self.burst = not self.burst
        stalled = 5 if self.draws.random() < 0.02 else 1
        self.now += 0.05 * cost * self.draws.lognormvariate(0, 0.1) * (2 if self.burst else 1) * stalled


if __name__ == "__main__":
    sys.exit(main())
