"""The contrastive family against greedy search, side by side in one run.

    python benchmarks/contrast.py

Contrastive decoding with a separate amateur of about a tenth of the expert's size, DoLa, and LOL with a LoRA amateur
and a guidance text: fused (one forward pass a token for all three readings) and unfused (three). Guidance away from a
negative prompt as long as the prompt, against transformers' guidance_scale (the same tokens, two passes a token), and a
weighted contrast of three readers with the same weights: the expert, the expert after a text, the expert without two
layers.

Each method runs in a process of its own that holds one random-weight Llama; the processes take turns. Time per token is
that of decoding. Memory is the peak of one call in a fresh process less what the process had before it made the model,
against the expert's weights and the caches of three readings.
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
    peak_memory_mb,
    percentile_columns,
    percentiles,
    run,
    serve,
    timed,
)

GREEDY, CONTRASTIVE = "greedy (transformers)", "contrastive decoding"
DOLA, DOLA_EIGHT = "DoLa high", "DoLa, 8 candidate layers"
FUSED, UNFUSED = "LOL fused", "LOL unfused"
GUIDANCE, THEIR_GUIDANCE = "guidance", "guidance (transformers)"
THREE_READERS = "three readers, fused"
METHODS = (GREEDY, CONTRASTIVE, DOLA, DOLA_EIGHT, FUSED, UNFUSED, GUIDANCE, THEIR_GUIDANCE, THREE_READERS)
SCALE = 1.5  # of guidance
VOCAB, GUIDANCE_TOKENS = 32000, 24
KEY = ["layers", "width", "batch", "context", "compile", "dtype", "device", "threads"]
COLUMNS = [
    "method", "batch", "context", "new_tokens", *percentile_columns("ms_per_token"),
    "ratio_to_greedy", "ratio_to_unfused", "ratio_to_transformers", "whole_call_s", "memory_mb",
    "memory_ratio_to_weights_and_three_caches",
    "repeats", "layers", "width", "compile", "dtype", *ENVIRONMENT,
]  # fmt: skip


def main() -> int:
    """Run the benchmark, or, with ``--worker``, one method of it; 1 where a size had to be left out."""
    options = parse()
    return run(options, work, lambda *size: compare(*size, options), options.sizes, COLUMNS, keep=KEY)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        type=lambda text: [tuple(map(int, size.split("x"))) for size in text.split(",")],
        default=[(1, 512), (4, 512)],
        help="batch x context, e.g. 1x512,4x1024",
    )
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--apart", action="store_true", help="one method after the other, for models that fill a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compile", action="store_true", help="capture our decode steps (docs/compile.md)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "contrast.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(batch: int, context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods at one size, taking turns."""
    starts = {method: functools.partial(start, method, batch, context, options) for method in METHODS}
    runs, facts = measure(starts, options.repeats, options.device, options.apart)
    memory = {}
    for method, known in facts.items():
        used = known["peak_memory_mb"] - known["before_mb"]
        memory[method] = (used, used / (known["weights_mb"] + 3 * known["cache_mb"]))
    if runs[GUIDANCE][0]["tokens"] != runs[THEIR_GUIDANCE][0]["tokens"]:
        raise SystemExit("guidance: the tokens are not those of transformers, so their times are not compared")
    to_theirs = paired_ratio(runs[GUIDANCE], runs[THEIR_GUIDANCE])
    print(f"\nbatch {batch}, context {context}, {options.new_tokens} new tokens, {options.layers} x {options.width}")
    print(f"{'':28}{'ms/token':>10}{'x greedy':>10}{'MB':>8}{'of weights + 3 caches':>24}")
    rows = []
    for method, results in runs.items():
        times = [result["ms_per_token"] for result in results]
        median = statistics.median(times)
        ratio, unfused = paired_ratio(results, runs[GREEDY]), paired_ratio(results, runs[UNFUSED])
        used, share = memory[method]
        print(f"{method:28}{median:10.2f}{ratio:10.2f}{used:8.0f}{share:24.2f}")
        rows.append(
            {
                "method": method, "batch": batch, "context": context, "new_tokens": options.new_tokens,
                **percentiles("ms_per_token", times), "ratio_to_greedy": f"{ratio:.3f}",
                "ratio_to_unfused": f"{unfused:.3f}", "memory_mb": f"{used:.0f}",
                "ratio_to_transformers": f"{to_theirs:.3f}" if method == GUIDANCE else "",
                "whole_call_s": f"{statistics.median(r['call_s'] for r in results):.3f}",
                "memory_ratio_to_weights_and_three_caches": f"{share:.3f}", "repeats": options.repeats,
                "layers": options.layers, "width": options.width,
                "compile": options.compile and method not in (GREEDY, THEIR_GUIDANCE), "dtype": options.dtype,
                **{name: facts[method][name] for name in ENVIRONMENT},
            }
        )  # fmt: skip
    print(f"LOL fused is {paired_ratio(runs[UNFUSED], runs[FUSED]):.2f} times as fast as unfused")
    print(f"guidance takes {to_theirs:.2f} of the time of transformers' own")
    return rows


def start(
    method: str, batch: int, context: int, options: argparse.Namespace, environment: dict[str, str] | None = None
) -> Worker:
    """A process that runs one method at one size."""
    task = {"method": method, "batch": batch, "context": context}
    passed = [
        f"--{name}={getattr(options, name.replace('-', '_'))}"
        for name in ("new-tokens", "layers", "width", "device", "dtype")
    ]
    passed += ["--compile"] * options.compile
    return Worker([sys.executable, __file__, "--worker", json.dumps(task), *passed], environment)


def work(options: argparse.Namespace) -> None:
    """The worker: build the models, then run one call for each line read."""
    import peft  # noqa: F401 - its import is no method's memory
    import torch

    import decoding

    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    before = peak_memory_mb(options.device)
    task = json.loads(options.worker)
    expert = model_of(options.layers, options.width, options)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in expert.parameters()) / 2**20
    ids = torch.randint(10, VOCAB, (task["batch"], task["context"]), generator=torch.Generator().manual_seed(1))
    ids = ids.to(options.device)
    strategy = strategy_of(task["method"], expert, ids, options)

    def generate(clock: Any) -> Any:
        common = {
            "attention_mask": torch.ones_like(ids), "max_new_tokens": options.new_tokens, "do_sample": False,
            "stopping_criteria": [clock],
        }  # fmt: skip
        if task["method"] == THEIR_GUIDANCE:
            negative = negative_prompts(ids)
            common |= {"negative_prompt_ids": negative, "negative_prompt_attention_mask": torch.ones_like(negative)}
            return expert.generate(ids, **common, guidance_scale=SCALE)
        if strategy is None:
            return expert.generate(ids, **common)
        return decoding.generate(expert, ids, strategy=strategy, compile=options.compile, **common)

    slots = task["batch"] * (task["context"] + GUIDANCE_TOKENS + options.new_tokens)
    cache = 2 * options.layers * slots * options.width * expert.dtype.itemsize / 2**20
    known = {"before_mb": before, "weights_mb": weights, "cache_mb": cache}
    serve(lambda: {**timed(generate), **known}, options.device)


def negative_prompts(ids: Any) -> Any:
    """(batch, context) other tokens for each row, of its length."""
    import torch

    return torch.randint(10, VOCAB, ids.shape, generator=torch.Generator().manual_seed(3)).to(ids.device)


def strategy_of(method: str, expert: Any, ids: Any, options: argparse.Namespace) -> Any:
    """The strategy of a method, with an amateur made for it; None for those of transformers."""
    import torch

    import decoding

    if method in (GREEDY, THEIR_GUIDANCE):
        return None
    if method == GUIDANCE:
        return decoding.Guidance(negative_prompts(ids).tolist(), scale=SCALE)
    if method == THREE_READERS:
        middle = options.layers // 2
        terms = [
            ("expert", 1.5),
            (decoding.Prompt(list(range(10, 10 + GUIDANCE_TOKENS))), -0.25),
            (decoding.Self(skip_layers=[middle - 1, middle]), -0.25),
        ]
        return decoding.WeightedContrast(terms, alpha=0.1)
    if method == CONTRASTIVE:  # about a tenth of the expert's parameters, most of them embeddings as there
        return decoding.ContrastiveDecoding(model_of(max(1, options.layers // 2), options.width * 5 // 32, options))
    if method == DOLA:
        return decoding.DoLa("high")
    if method == DOLA_EIGHT:
        return decoding.DoLa(range(options.layers - 8, options.layers))
    import peft

    config = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, expert, adapter_name="amateur")
    expert.peft_config = {"amateur": config}
    expert.to(device=options.device, dtype=getattr(torch, options.dtype))

    class Unfused(decoding.LOL):
        """LOL with a forward pass for each of its readings."""

        fuse = False

    guidance = torch.randint(10, VOCAB, (GUIDANCE_TOKENS,), generator=torch.Generator().manual_seed(2)).tolist()
    return (decoding.LOL if method == FUSED else Unfused)("amateur", [0.5, 0.75], guidance=guidance)


def model_of(layers: int, width: int, options: argparse.Namespace) -> Any:
    """A random Llama whose query heads all have key heads of their own."""
    return llama(layers, width, max(1, width // 64), options.device, options.dtype)


if __name__ == "__main__":
    sys.exit(main())
