"""What a round takes by its number of drafts, none of which is accepted: in units of a step without drafts.

    python benchmarks/draft_costs.py [--settings "NAME;NAME"] [--batches 1,4] [--threads 1,2] [--new-tokens 12]

The settings are those of ``drafts.py`` that have prompt lookup. Steps without drafts and rounds of 0 to 16 drafts take
turns on the same prompts; a round gives one token. ``draft_lengths.py`` reckons with these costs. Sizes already in the
file are replaced, others kept.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from draft_command import RESULTS, environment, measured, numbers, opened, parsed
from draft_runs import PLAIN, run_all
from draft_settings import LOOKED_UP, SETTINGS
from turns import percentile_columns, percentiles

COUNTS = (0, 1, 2, 3, 4, 6, 7, 8, 12, 15, 16)  # drafts of the rounds that are measured; others lie between them
COLUMNS = [
    "setting", "batch", "drafts", *percentile_columns("ms_per_round"), "cost", "repeats", "threads", "device", "torch",
    "transformers", "python",
]  # fmt: skip


def main() -> int:
    """Measure all settings; 1 where a size had to be left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=numbers, default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "draft_costs.csv")
    options = parsed(parser, LOOKED_UP, new_tokens=12)
    return measured(functools.partial(costs, options=options), options.batches, COLUMNS, options)


def costs(name: str, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The time of rounds of one setting by their number of drafts, none of which is accepted."""
    setting = SETTINGS[name]
    model, tokenizer = opened(setting, options)
    texts = list(setting.texts(options))[:batch]
    times: dict[int | None, list[float]] = {n: [] for n in (None, *COUNTS)}
    for repeat in range(-1, options.repeats):
        for n in times:
            run_options = argparse.Namespace(**{**vars(options), "draft_tokens": max(n or 1, 1)})
            with proposed(n or 0):
                drafts = None if n is None else "prompt-lookup"
                found = run_all(setting, PLAIN, drafts, [texts], model, tokenizer, run_options)
            if repeat >= 0:
                times[n].append(found.ms_per_token * batch)
    plain = statistics.median(times[None])
    print(f"\n{name}, batch {batch}: {plain:.1f} ms a step")
    rows = []
    for n in COUNTS:
        cost = statistics.median(one / step for one, step in zip(times[n], times[None], strict=True))
        print(f"{n:4} drafts {cost:6.2f}")
        rows.append(
            {
                "setting": name, "batch": batch, "drafts": n, **percentiles("ms_per_round", times[n]),
                "cost": f"{cost:.3f}", "repeats": options.repeats, **environment(options.device),
            }
        )  # fmt: skip
    return rows


@contextmanager
def proposed(drafts: int) -> Iterator[None]:
    """Prompt lookup proposes so many tokens, few of which any text goes on with."""
    from decoding.drafts.prompt_lookup import PromptLookup
    from decoding.drafts.proposer import drafts_of

    def propose(self: Any, texts: Any, most: Sequence[int]) -> Any:
        return drafts_of([range(3, 3 + min(n, drafts)) for n in most], self.device)

    with patch.object(PromptLookup, "propose", propose):
        yield


if __name__ == "__main__":
    sys.exit(main())
