"""Contrastive search against greedy search, and against transformers 4.55.4, side by side in one run.

    python benchmarks/contrastive_search.py [--peer-python PATH]

Each method runs in a process of its own that holds one random-weight Llama (8 layers x 512, vocabulary 32k); the
processes take turns, so that a change of the machine's speed meets all of them. Time per token is that of decoding
(prompt and first token left out). Peak memory is that of one call in a fresh process whose allocator gives large blocks
back at once, so that it is what the method asked for and not what the allocator kept. Medians over the repeats, and
ratios pair by pair, go to a table and a CSV file.
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

GREEDY, OURS = "greedy (transformers)", "contrastive search (ours)"
PEER_GREEDY, PEER = "greedy (peer)", "contrastive search (peer)"
KEY = ["layers", "width", "batch", "context", "compile", "dtype", "device", "threads"]
COLUMNS = [
    "layers", "width",
    "method", "batch", "context", "new_tokens", "k", *percentile_columns("ms_per_token"),
    "ratio_to_greedy", "whole_call_s", "peak_memory_mb", "memory_ratio_to_greedy", "repeats", "kv_heads",
    "compile", "dtype", *ENVIRONMENT,
]  # fmt: skip


def main() -> int:
    """Run the benchmark, or, with ``--worker``, one method of it; 1 where a size had to be left out."""
    options = parse()
    return run(options, work, lambda *size: compare(*size, options), options.sizes, COLUMNS, keep=KEY)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter with transformers 4.55.4")
    parser.add_argument(
        "--sizes",
        type=lambda text: [tuple(map(int, size.split("x"))) for size in text.split(",")],
        default=[(1, 512), (1, 3000), (4, 1024)],
        help="batch x context, e.g. 1x512,4x1024",
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--kv-heads", type=int, default=8, help="key heads; fewer than width / 64 is grouped-query")
    parser.add_argument("--prefill-chunk", type=int, help="read the prompt in pieces of so many tokens, to save memory")
    parser.add_argument("--apart", action="store_true", help="one method after the other, for models that fill a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="capture our decode step (docs/compile.md)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "contrastive_search.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(batch: int, context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods at one size, taking turns."""
    methods = {GREEDY: sys.executable, OURS: sys.executable}
    if options.peer_python:
        methods |= {PEER_GREEDY: options.peer_python, PEER: options.peer_python}
    starts = {
        method: functools.partial(start, method, python, batch, context, options) for method, python in methods.items()
    }
    runs, facts = measure(starts, options.repeats, options.device, options.apart)
    if options.peer_python and runs[OURS][0]["tokens"] != runs[PEER][0]["tokens"]:
        print(f"note: tokens of {OURS} and {PEER} differ at batch {batch}, context {context}")
    return report(batch, context, runs, facts, options)


def start(
    method: str,
    python: str,
    batch: int,
    context: int,
    options: argparse.Namespace,
    environment: dict[str, str] | None = None,
) -> Worker:
    """A process that runs one method at one size."""
    task = {"method": method, "batch": batch, "context": context}
    passed = [
        f"--{name}={getattr(options, name.replace('-', '_'))}"
        for name in ("new-tokens", "k", "layers", "width", "head-dim", "kv-heads", "device", "dtype")
    ]
    if options.prefill_chunk:
        passed.append(f"--prefill-chunk={options.prefill_chunk}")
    passed += ["--compile"] * options.compile
    return Worker([python, __file__, "--worker", json.dumps(task), *passed], environment)


def report(
    batch: int,
    context: int,
    runs: dict[str, list[dict[str, Any]]],
    facts: dict[str, dict[str, Any]],
    options: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Print the table of one size; its CSV rows."""
    print(f"\nbatch {batch}, context {context}, {options.new_tokens} new tokens, k = {options.k}")
    print(f"{'':28}{'ms/token':>10}{'x greedy':>10}{'peak MB':>10}{'x greedy':>10}")
    rows = []
    for method, results in runs.items():
        times = [result["ms_per_token"] for result in results]
        median = statistics.median(times)
        ratio = paired_ratio(results, runs[GREEDY])
        memory = facts[method]["peak_memory_mb"]
        memory_ratio = memory / facts[GREEDY]["peak_memory_mb"]
        print(f"{method:28}{median:10.2f}{ratio:10.2f}{memory:10.0f}{memory_ratio:10.2f}")
        rows.append(
            {
                "layers": options.layers, "width": options.width,
                "method": method,
                "batch": batch,
                "context": context,
                "new_tokens": options.new_tokens,
                "k": options.k,
                **percentiles("ms_per_token", times),
                "ratio_to_greedy": f"{ratio:.3f}",
                "peak_memory_mb": f"{memory:.0f}",
                "whole_call_s": f"{statistics.median(r['call_s'] for r in results):.3f}",
                "memory_ratio_to_greedy": f"{memory_ratio:.3f}",
                "repeats": options.repeats, "kv_heads": options.kv_heads,
                "compile": options.compile and method == OURS,
                "dtype": options.dtype,
                **{name: facts[method][name] for name in ENVIRONMENT},
            }
        )  # fmt: skip
    if PEER in runs:
        print(f"ours is {paired_ratio(runs[PEER], runs[OURS]):.2f} times as fast as the peer's contrastive search")
    return rows


def work(options: argparse.Namespace) -> None:
    """The worker: build the model, then run one call for each line read. Runs under the peer's interpreter too."""
    import torch

    task = json.loads(options.worker)
    model = llama(options.layers, options.width, options.kv_heads, options.device, options.dtype, options.head_dim)
    ids = torch.randint(10, 32000, (task["batch"], task["context"]), generator=torch.Generator().manual_seed(1))
    ids = ids.to(options.device)

    def generate(clock: Any) -> Any:
        search = {"penalty_alpha": 0.6, "top_k": options.k}
        common = {
            "attention_mask": torch.ones_like(ids), "max_new_tokens": options.new_tokens, "do_sample": False,
            "stopping_criteria": [clock], "prefill_chunk_size": options.prefill_chunk,
        }  # fmt: skip
        if task["method"] == OURS:
            import decoding

            return decoding.generate(model, ids, compile=options.compile, **common, **search)
        return model.generate(ids, **common, **(search if task["method"] == PEER else {}))

    serve(lambda: timed(generate), options.device)


if __name__ == "__main__":
    sys.exit(main())
