"""What drafts and lazy readers save: time per token against transformers' greedy search, and against no drafts.

    python benchmarks/drafts.py [--data DIR] [--models DIR] [--settings "NAME;NAME"] [--batches 1,4,8] [--threads 1,2]

Settings: context-aware decoding and greedy search with the context in the prompt, on articles of XSum and questions of
HaluEval (of --data), by prompt lookup; contrastive decoding and LOL on the embedded models, on stories3M (of --models)
and on SmolLM2 with a LoRA amateur (--adapter, or else one with random weights); contrastive search with an exit and
with an assistant; LOL and contrastive search on SmolLM2 also on the questions with the knowledge in the prompt. With
--draft-tokens auto calls begin with what those before them have learnt, a first turn that does not count among them.
The settings "given" are of a model with random weights (--layers, --width) and drafts that are right
with a given probability: what a round costs, whoever drafts. What is not at hand is left out, with a line.

In one process the methods take turns on the same prompts: transformers' greedy search (of the prompt with its context,
where there is one), the strategy with every reader at every token (``lazy`` off), the strategy as it is, and the
strategy with each kind of drafts. All but the first must choose the same tokens, or the benchmark fails. Time per token
is that of decoding (the prompt and the first token left out), all rows' tokens counted; texts end where they end.
Ratios are medians over the repeats, turn by turn. What needs no clock is in the file too: passes of the model for a
token of a row (without those of who drafts; a pass that several readers share is one), passes of an amateur of other
weights (with those in which it drafts), tokens a round, drafts accepted, and the share of readings that lazy readers
left out. The first times the second are passes a round: of contrastive
search one where the round's chain was read in the round before, and two where not. Sizes already in the file are
replaced, others kept.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
from pathlib import Path
from typing import Any

from draft_command import RESULTS, environment, measured, numbers, opened, parsed
from draft_runs import EAGER, GREEDY, PLAIN, Run, ratio, run_all
from draft_settings import SETTINGS, no_strategy, search
from turns import LeftOut, percentile_columns, percentiles

OTHER_TOKENS = [False]  # whether some method has chosen others than without drafts
COLUMNS = [
    "setting", "method", "batch", "prompts", "new_tokens", *percentile_columns("ms_per_token"), "ratio_to_greedy",
    "ratio_to_no_drafts", "passes_per_token", "amateur_passes_per_token", "tokens_per_round", "drafts_accepted",
    "readings_left_out", "first_token_s", "same_tokens", "repeats", "threads", "device", "torch", "transformers",
    "python",
]  # fmt: skip


def main() -> int:
    """Run the benchmark; 1 where a size had to be left out, or tokens were others."""
    options = parse()
    left_out = measured(functools.partial(compare, options=options), options.batches, COLUMNS, options)
    return left_out or int(OTHER_TOKENS[0])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=numbers, default=[1, 4, 8])
    parser.add_argument(
        "--draft-tokens",
        type=lambda text: int(text) if text.isdecimal() else text,
        default="auto",
        help="drafts of a round, or auto",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8, help="of the model with random weights")
    parser.add_argument("--width", type=int, default=512, help="likewise")
    parser.add_argument("--output", type=Path, default=RESULTS / "drafts.csv")
    return parsed(parser, SETTINGS, new_tokens=64)


def compare(name: str, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods of a setting with batches of one size, taking turns."""
    import torch

    setting = SETTINGS[name]
    model, tokenizer = opened(setting, options)
    texts = list(setting.texts(options))[: options.prompts]
    batches = [texts[first : first + batch] for first in range(0, len(texts) - batch + 1, batch)]
    methods = {GREEDY: None, EAGER: None, PLAIN: None, **setting.drafts}
    if setting.strategy in (no_strategy, search):
        del methods[EAGER]
    runs: dict[str, list[Run]] = {method: [] for method in methods}
    for repeat in range(-1, options.repeats):
        for method in methods:
            found = run_all(setting, method, methods[method], batches, model, tokenizer, options)
            if not found.count:
                raise LeftOut("every text ends with its first token")
            if repeat >= 0:
                runs[method].append(found)
    expected = runs[PLAIN][0].tokens
    right = {method: all(result.tokens == expected for result in results) for method, results in runs.items()}
    OTHER_TOKENS[0] |= not all(right[method] for method in methods if method != GREEDY)
    print(f"\n{name}, batch {batch}, {torch.get_num_threads()} threads, {len(texts)} prompts")
    titles = ["ms/token", "x greedy", "x plain", "passes", "amateur's", "a round", "accepted", "left out"]
    print(f"{'':24}{''.join(f'{title:>10}' for title in titles)}")
    rows = []
    for method, results in runs.items():
        times = [result.ms_per_token for result in results]
        to_greedy, to_plain = ratio(results, runs[GREEDY]), ratio(results, runs[PLAIN])
        last = results[-1]
        print(
            f"{method:24}{statistics.median(times):10.2f}{to_greedy:10.2f}{to_plain:10.2f}{last.passes_per_token:10.2f}"
            f"{last.amateur_passes_per_token:10.2f}{last.per_round:10.2f}{last.accepted:10.2f}{last.left_out:10.2f}"
            f"{'' if method == GREEDY or right[method] else '  OTHER TOKENS'}"
        )
        rows.append(
            {
                "setting": name, "method": method, "batch": batch, "prompts": len(texts),
                "new_tokens": options.new_tokens, **percentiles("ms_per_token", times),
                "ratio_to_greedy": f"{to_greedy:.3f}", "ratio_to_no_drafts": f"{to_plain:.3f}",
                "passes_per_token": f"{last.passes_per_token:.3f}",
                "amateur_passes_per_token": f"{last.amateur_passes_per_token:.3f}",
                "tokens_per_round": f"{last.per_round:.2f}",
                "drafts_accepted": f"{last.accepted:.3f}",
                "readings_left_out": f"{last.left_out:.3f}",
                "first_token_s": f"{statistics.median(result.first_s for result in results):.3f}",
                "same_tokens": method == GREEDY or right[method],
                "repeats": options.repeats, **environment(options.device),
            }
        )  # fmt: skip
    return rows


if __name__ == "__main__":
    sys.exit(main())
