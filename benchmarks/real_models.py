"""What the strategies cost on real pretrained models: time per token against transformers' greedy search.

    python benchmarks/real_models.py [--models NAME,NAME] [--sizes 1x32,4x512] [--threads 1,2]

The models are named as every command names them: a fetched model, a folder, a .gguf file, a hub name; by default they
are all that `decoding fetch` has brought, and without any there is nothing to measure. Each method runs in a process of
its own that holds the model in float32; the processes take turns, so that a change of the machine's speed meets all of
them. Time per token is that of decoding (prompt and first token left out). Medians over the repeats, and ratios turn by
turn, go to a table and a CSV file, in which those of methods and sizes that were not measured now stay. Prompts are
random tokens: what a token costs does not depend on them.

An AVX2 machine is stood in for by the switches of torch, MKL and oneDNN and by the compiler's: ATEN_CPU_CAPABILITY=avx2
MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2 CC="gcc -mno-avx512f"; the column ``cpu_capability`` shows the
first.
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
    Worker,
    paired_ratio,
    percentile_columns,
    percentiles,
    serve,
    take_turns,
    timed,
    written,
)

GREEDY, IN_PLACE = "greedy (transformers)", "greedy (in place)"
SEARCH, CONTRASTIVE, DOLA, LOL = "contrastive search", "contrastive decoding (LoRA)", "DoLa high", "LOL fused"
DECO, SLED = "DeCo", "SLED"
METHODS = (GREEDY, IN_PLACE, SEARCH, CONTRASTIVE, DOLA, DECO, SLED, LOL)
GUIDANCE_TOKENS = 24
KEY = ["model", "method", "batch", "context", "threads", "cpu", "cpu_capability"]
COLUMNS = [
    "model", "method", "batch", "context", "new_tokens", *percentile_columns("ms_per_token"),
    "ratio_to_greedy", "whole_call_s", "repeats", "threads", "cpu", "cpu_capability", "torch", "transformers", "python",
]  # fmt: skip


def main() -> int:
    """Run the benchmark, or, with ``--worker``, one method of it; 1 where a size had to be left out."""
    options = parse()
    if options.worker:
        work(options)
        return 0
    models = options.models or fetched_models()
    if not models:
        print("skipped: no model was fetched (decoding fetch NAME), and --models names none")
    left_out = 0
    for model in models:
        for threads in options.threads:
            one = functools.partial(compare, model, threads, options=options)
            left_out |= written(one, options.sizes, COLUMNS, options.output, keep=KEY)
    return left_out


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), help="by default all that were fetched")
    parser.add_argument(
        "--sizes",
        type=lambda text: [tuple(map(int, size.split("x"))) for size in text.split(",")],
        default=[(1, 32), (1, 512), (1, 4096), (4, 32), (4, 512), (4, 4096)],
        help="batch x context, e.g. 1x32,4x512",
    )
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(METHODS), help="greedy is added")
    parser.add_argument("--threads", type=lambda text: [int(number) for number in text.split(",")], default=[1, 2])
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "real_models.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for method in options.methods:
        if method not in METHODS:
            parser.error(f"--methods {method}: expected some of {', '.join(METHODS)}")
    return options


def fetched_models() -> list[str]:
    """The models that `decoding fetch` has brought, by name."""
    from decoding.models.releases import RELEASES, is_fetched

    return [name for name in RELEASES if is_fetched(name)]


def compare(model: str, threads: int, batch: int, context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods at one size, taking turns."""
    methods = [method for method in METHODS if method == GREEDY or method in options.methods]
    starts = {
        method: functools.partial(start, method, model, threads, batch, context, options.new_tokens)
        for method in methods
    }
    runs, facts = take_turns(starts, options.repeats)
    print(f"\n{model}, batch {batch}, context {context}, {threads} threads, {options.new_tokens} new tokens")
    print(f"{'':36}{'ms/token':>10}{'x greedy':>10}")
    rows = []
    for method, results in runs.items():
        times = [result["ms_per_token"] for result in results]
        median = statistics.median(times)
        ratio = paired_ratio(results, runs[GREEDY])
        print(f"{method:36}{median:10.2f}{ratio:10.2f}")
        rows.append(
            {
                "model": model, "method": method, "batch": batch, "context": context, "new_tokens": options.new_tokens,
                **percentiles("ms_per_token", times), "ratio_to_greedy": f"{ratio:.3f}",
                "whole_call_s": f"{statistics.median(result['call_s'] for result in results):.3f}",
                "repeats": options.repeats, "cpu": results[0]["cpu"], "cpu_capability": results[0]["cpu_capability"],
                **{name: facts[method][name] for name in ("threads", "torch", "transformers", "python")},
            }
        )  # fmt: skip
    return rows


def start(
    method: str,
    model: str,
    threads: int,
    batch: int,
    context: int,
    new_tokens: int,
    environment: dict[str, str] | None = None,
) -> Worker:
    """A process that runs one method at one size."""
    task = {"method": method, "model": model, "threads": threads, "batch": batch, "context": context}
    command = [sys.executable, __file__, "--worker", json.dumps(task), f"--new-tokens={new_tokens}"]
    return Worker(command, {"OMP_NUM_THREADS": str(threads), **(environment or {})})


def work(options: argparse.Namespace) -> None:
    """The worker: load the model, then run one call for each line read."""
    import torch

    import decoding

    task = json.loads(options.worker)
    torch.set_num_threads(task["threads"])
    model, tokenizer = decoding.load(task["model"], dtype="float32")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    shape = (task["batch"], task["context"])
    ids = torch.randint(100, len(tokenizer) - 1000, shape, generator=torch.Generator().manual_seed(1))
    strategy = strategy_of(task["method"], model)

    def generate(clock: Any) -> Any:
        common = {
            "attention_mask": torch.ones_like(ids), "max_new_tokens": options.new_tokens, "do_sample": False,
            "stopping_criteria": [clock],
        }  # fmt: skip
        if strategy is None:
            return model.generate(ids, **common)
        return decoding.generate(model, ids, strategy=strategy, **common)

    known = {"cpu": cpu_name(), "cpu_capability": torch.backends.cpu.get_cpu_capability()}
    serve(lambda: {**timed(generate), **known}, "cpu")


def strategy_of(method: str, model: Any) -> Any:
    """The strategy of a method, with an adapter made for it; None for greedy search."""
    import torch

    import decoding

    if method == GREEDY:
        return None
    if method == IN_PLACE:
        from own_greedy import OwnGreedy

        return OwnGreedy()
    if method == SEARCH:
        return decoding.ContrastiveSearch(penalty_alpha=0.6, top_k=4)
    if method == DOLA:
        return decoding.DoLa("high")
    if method == DECO:
        return decoding.DeCo()
    if method == SLED:
        return decoding.SLED()
    import peft

    torch.manual_seed(0)
    config = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, model, adapter_name="amateur")
    model.peft_config = {"amateur": config}
    model.to(torch.float32)
    if method == CONTRASTIVE:
        return decoding.ContrastiveDecoding("amateur")
    guidance = torch.randint(100, 10000, (GUIDANCE_TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    return decoding.LOL("amateur", [0.25, 0.5, 0.75], guidance=guidance)


def cpu_name() -> str:
    """The processor's name, as Linux tells it; the architecture elsewhere."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    sys.exit(main())
