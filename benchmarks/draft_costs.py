"""What a round takes by its number of drafts, none of which is accepted: in units of a step without drafts.

    python benchmarks/draft_costs.py [--settings "NAME;NAME"] [--batches 1,4] [--threads 1,2] [--new-tokens 12]

The settings are those of ``drafts.py`` that have prompt lookup. Steps without drafts and rounds of 0 to 16 drafts take
turns on the same prompts; a round gives one token. ``draft_lengths.py`` reckons with these costs. Sizes already in the
file are replaced, others kept.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from draft_runs import PLAIN, run_all
from draft_settings import LOOKED_UP, SETTINGS, Setting
from drafts import KEY, loaded, why_not
from real_models import cpu_name
from turns import percentile_columns, percentiles, written

COUNTS = (0, 1, 2, 3, 4, 6, 7, 8, 12, 15, 16)  # drafts of the rounds that are measured; others lie between them
COLUMNS = [
    "setting", "batch", "drafts", *percentile_columns("ms_per_round"), "cost", "repeats", "threads", "device", "torch",
    "transformers", "python",
]  # fmt: skip


def main() -> int:
    """Measure all settings; 1 where one had to be left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=lambda text: [int(number) for number in text.split(",")], default=[1])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "draft_costs.csv")
    options = parsed(parser, LOOKED_UP, new_tokens=12)

    def one(name: str) -> int:
        return written(
            lambda batch, _: costs(name, batch, options), [(batch, 0) for batch in options.batches], COLUMNS,
            options.output, keep=KEY,
        )  # fmt: skip

    return of_each_setting(one, options)


def parsed(parser: argparse.ArgumentParser, settings: Sequence[str], new_tokens: int) -> argparse.Namespace:
    """The command line, with the options that this benchmark shares with ``draft_lengths.py``.

    Args:
        parser: with the options of one of the two.
        settings: that there are.
        new_tokens: unless the command line says otherwise.
    """
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"), help="folder of small models")
    parser.add_argument("--adapter", type=Path, help="folder of the LoRA amateur of SmolLM2")
    parser.add_argument("--settings", type=lambda text: text.split(";"), default=list(settings), help="between ;")
    parser.add_argument("--threads", type=lambda text: [int(number) for number in text.split(",")], default=[2])
    parser.add_argument("--prompts", type=int, default=8, help="texts of a setting")
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.settings:
        if name not in settings:
            parser.error(f"--settings {name}: expected some of {'; '.join(settings)}")
    return options


def of_each_setting(one: Callable[[str], int], options: argparse.Namespace) -> int:
    """Call a function of each setting's name, with each number of threads; 1 where a setting had to be left out."""
    import torch

    left_out = 0
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.settings:
            if name in SETTINGS and (reason := why_not(SETTINGS[name], options)):
                print(f"{name}: left out, {reason}")
                left_out = 1
            else:
                left_out |= one(name)
    return left_out


def environment() -> dict[str, Any]:
    """The columns that say where it was measured."""
    import torch
    import transformers

    return {
        "threads": torch.get_num_threads(), "device": cpu_name(), "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
    }  # fmt: skip


def opened(setting: Setting, options: argparse.Namespace) -> tuple[Any, Any]:
    """A setting's model and tokenizer."""
    in_models = options.models / setting.model
    return loaded(str(in_models) if in_models.is_dir() else setting.model, options.device)


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
                "cost": f"{cost:.3f}", "repeats": options.repeats, **environment(),
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
