"""Contrastive search at long contexts against greedy search: does its price per token grow with the context?

    python benchmarks/long_context.py [--contexts 1024,4096] [--prefill-chunk 1024]

Each method runs in a process of its own that holds one random-weight Llama (4 layers x 256, vocabulary 32k). Its first
call reads the prompt, which gives the time to the first token; every later call continues the cache of the one before,
so that a prompt whose reading takes a minute is read once, and the processes take turns on the tokens behind it. A
turn's time per token is the median of its tokens: once in a call the cache that it continues is copied to larger
storage, which in turns as short as these would count for four tokens where a text has hundreds. Peak memory is that of
one call in a fresh process whose allocator gives large blocks back at once. Medians over the turns, and ratios turn by
turn, go to a table and a CSV file; sizes already in the file are replaced, others kept.

Of such a model the hidden states are an eighth of keys and values; of an 8B Llama a sixteenth. What contrastive search
reads beside greedy search weighs more here than there.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from turns import (
    ENVIRONMENT,
    Worker,
    llama,
    measure,
    paired_ratio,
    percentile_columns,
    percentiles,
    run,
    serve,
    timed,
)

GREEDY, LOOP, OURS, WINDOW = (
    "greedy (transformers)",
    "greedy (our loop)",
    "contrastive search",
    "contrastive search, window",
)
KEY = ["context", "prefill_chunk", "layers", "width", "k", "device", "dtype"]
COLUMNS = [
    "context", "prefill_chunk", "method", "layers", "width", "kv_heads", "k", "max_history", "new_tokens", "turns",
    *percentile_columns("ms_per_token"), "ratio_to_greedy", "ratio_to_our_greedy",
    "first_token_s", "first_token_ratio", "peak_memory_mb", "memory_ratio", "memory_beside_greedy_mb",
    "dtype", *ENVIRONMENT,
]  # fmt: skip


def main() -> int:
    """Run the benchmark, or, with ``--worker``, one method of it; 1 where a context had to be left out."""
    options = parse()
    sizes = [(1, context) for context in options.contexts]
    return run(options, work, lambda _, context: compare(context, options), sizes, COLUMNS, keep=KEY)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--contexts", type=lambda text: [int(length) for length in text.split(",")], default=[1024, 4096, 16384, 32768]
    )
    parser.add_argument("--prefill-chunk", type=int, help="read the prompt in pieces of so many tokens")
    parser.add_argument("--max-history", type=int, default=1024, help="of the method with a window")
    parser.add_argument("--new-tokens", type=int, default=16, help="of each turn")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "long_context.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods at one context, taking turns."""
    methods = (GREEDY, LOOP, OURS, WINDOW)
    starts = {method: functools.partial(start, method, context, options) for method in methods}
    runs, facts = measure(starts, options.turns, options.device)
    print(f"\ncontext {context}, prompt read in {options.prefill_chunk or 'one'} piece(s), k = {options.k}")
    print(f"{'':28}{'ms/token':>10}{'x greedy':>10}{'first s':>10}{'x greedy':>10}{'peak MB':>10}{'x greedy':>10}")
    return [_row(method, context, runs, facts, options) for method in methods]


def start(method: str, context: int, options: argparse.Namespace, environment: dict[str, str] | None = None) -> Worker:
    """A process that runs one method at one context."""
    task = json.dumps({"method": method, "context": context})
    names = ("new-tokens", "k", "layers", "width", "kv-heads", "max-history", "device", "dtype")
    passed = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in names]
    if options.prefill_chunk:
        passed.append(f"--prefill-chunk={options.prefill_chunk}")
    return Worker([sys.executable, __file__, "--worker", task, *passed], environment)


def work(options: argparse.Namespace) -> None:
    """The worker: build the model, read the prompt when first asked, and go on from there each time."""
    import torch

    task = json.loads(options.worker)
    model = llama(options.layers, options.width, options.kv_heads, options.device, options.dtype)
    method = _method(model, task["method"], options)
    ids = torch.randint(10, 32000, (1, task["context"]), generator=torch.Generator().manual_seed(1)).to(options.device)
    method(ids[:, :64], max_new_tokens=2)  # finds out how the model branches, starts the threads
    so_far: dict[str, Any] = {"sequences": ids, "past_key_values": None}

    def generate(clock: Any) -> Any:
        output = method(
            so_far["sequences"],
            past_key_values=so_far["past_key_values"],
            max_new_tokens=options.new_tokens + 1,
            prefill_chunk_size=options.prefill_chunk if so_far["past_key_values"] is None else None,
            stopping_criteria=[clock],
        )
        so_far.update(sequences=output.sequences, past_key_values=output.past_key_values)
        return output.sequences

    serve(lambda: timed(generate, statistics.median), options.device)


def _method(model: Any, name: str, options: argparse.Namespace) -> Any:
    """What generates by a method, as a function of tokens and options of ``generate``."""
    import torch
    from own_greedy import OwnGreedy

    import decoding

    strategies = {
        GREEDY: None,
        LOOP: OwnGreedy(),
        OURS: decoding.ContrastiveSearch(penalty_alpha=0.6, top_k=options.k),
        WINDOW: decoding.ContrastiveSearch(0.6, options.k, max_history=options.max_history),
    }

    def generate(ids: Any, **kwargs: Any) -> Any:
        return decoding.generate(
            model, ids, strategy=strategies[name], attention_mask=torch.ones_like(ids), do_sample=False,
            return_dict_in_generate=True, **kwargs,
        )  # fmt: skip

    return generate


def _row(
    method: str, context: int, runs: dict[str, Any], facts: dict[str, dict[str, Any]], options: argparse.Namespace
) -> dict[str, Any]:
    """Print one line of the table; its CSV row."""
    times = [result["ms_per_token"] for result in runs[method]]
    median = statistics.median(times)
    ratio = paired_ratio(runs[method], runs[GREEDY])
    first, memory = facts[method]["first_token_s"], facts[method]["peak_memory_mb"]
    first_ratio, memory_ratio = first / facts[GREEDY]["first_token_s"], memory / facts[GREEDY]["peak_memory_mb"]
    print(f"{method:28}{median:10.2f}{ratio:10.2f}{first:10.2f}{first_ratio:10.2f}{memory:10.0f}{memory_ratio:10.2f}")
    return {
        "context": context, "prefill_chunk": options.prefill_chunk or "", "method": method,
        "layers": options.layers, "width": options.width, "kv_heads": options.kv_heads, "k": options.k,
        "max_history": options.max_history if method == WINDOW else "",
        "new_tokens": options.new_tokens, "turns": options.turns,
        **percentiles("ms_per_token", times),
        "ratio_to_greedy": f"{ratio:.3f}",
        "ratio_to_our_greedy": f"{paired_ratio(runs[method], runs[LOOP]):.3f}",
        "first_token_s": f"{first:.3f}", "first_token_ratio": f"{first_ratio:.3f}",
        "peak_memory_mb": f"{memory:.0f}", "memory_ratio": f"{memory_ratio:.3f}",
        "memory_beside_greedy_mb": f"{memory - facts[GREEDY]['peak_memory_mb']:.0f}",
        "dtype": options.dtype,
        **{name: facts[method][name] for name in ENVIRONMENT},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
