"""Requests on vLLM: each strategy against plain requests on plain vLLM, side by side in one run.

    python benchmarks/serving.py
    python benchmarks/serving.py --methods "DoLa, 1 layer;contrastive decoding"

needs an environment with vLLM and this library (docs/vllm.md). Sixty-four requests of mixed lengths are given at once.
A method is an engine in a process of its own; the processes take turns. Measured are requests a second, and CPU seconds
of the process a new token; the ratio to plain vLLM is of the latter, by turns. Prefix caching is off, so that no turn
is spared what another has read. ``--methods`` measures some of them, beside plain vLLM, and leaves the other rows.

The models are random Llamas, the amateur about a tenth of the expert; ``--model`` and ``--amateur`` name real ones. One
request after the other, as a server without batches answers them, goes through ``decoding.generate``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import ENVIRONMENT, Worker, llama, paired_ratio, percentile_columns, percentiles, run, serve, take_turns

PLAIN = "plain vLLM"
LAYERS, AMATEUR = "plain requests, 4 layers shown", "plain requests, with an amateur"
GROUPS = "plain requests, second prompts"
DOLA, DOLA_ONE = "DoLa, 4 layers", "DoLa, 1 layer"
CONTRASTIVE, LOL = "contrastive decoding", "LOL, 1 layer"
CONTEXT, SEARCH = "context-aware", "contrastive search, k 4"
MIXED = "mixed: plain, DoLa, contrastive, LOL"
ONE_BY_ONE = "DoLa, one after the other"
METHODS = (PLAIN, LAYERS, AMATEUR, GROUPS, DOLA, DOLA_ONE, CONTRASTIVE, LOL, CONTEXT, SEARCH, MIXED, ONE_BY_ONE)
KEY = ["method", "requests", "context", "layers", "width", "device", "dtype", "threads"]
COLUMNS = [
    "method", "requests", "context", *percentile_columns("cpu_ms_per_token"), "ratio_to_plain",
    *percentile_columns("requests_per_s"), "repeats", "layers", "width", "dtype", "vllm", *ENVIRONMENT,
]  # fmt: skip


def main() -> int:
    """Run the benchmark, or, with ``--worker``, one method of it; 1 where it could not be run."""
    options = parse()
    return run(options, work, lambda *size: compare(*size, options), options.sizes, COLUMNS, keep=KEY)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        type=lambda text: [tuple(map(int, size.split("x"))) for size in text.split(",")],
        default=[(64, 128)],
        help="requests x longest prompt, e.g. 64x128",
    )
    parser.add_argument("--new-tokens", type=int, default=48, help="of the longest answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--model", help="folder of a real expert, in place of a random one")
    parser.add_argument("--amateur", help="folder of its amateur; without one, methods with an amateur are left out")
    parser.add_argument(
        "--methods", type=named, default=list(METHODS), help=f"with ; between them, of: {'; '.join(METHODS)}"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "serving.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def named(text: str) -> list[str]:
    """The methods that a text names."""
    methods = [method.strip() for method in text.split(";")]
    for method in methods:
        if method not in METHODS:
            raise argparse.ArgumentTypeError(f"{method!r}: must be of {'; '.join(METHODS)}")
    return methods


def compare(requests: int, context: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            for name, layers, width in (
                ("expert", options.layers, options.width),
                ("amateur", max(1, options.layers // 2), max(64, options.width * 5 // 32 // 64 * 64)),
            ):
                llama(layers, width, max(1, width // 64), "cpu", options.dtype).save_pretrained(f"{folder}/{name}")
            made = {"model": f"{folder}/expert", "amateur": f"{folder}/amateur"}  # for this size alone
            options = argparse.Namespace(**{**vars(options), **made})
        methods = [
            method
            for method in METHODS
            if method in (PLAIN, *options.methods)
            and (options.amateur or method not in (AMATEUR, CONTRASTIVE, LOL, MIXED))
        ]
        starts = {method: functools.partial(start, method, requests, context, options) for method in methods}
        runs, facts = take_turns(starts, options.repeats)
    print(f"\n{requests} requests, prompts up to {context} tokens, answers up to {options.new_tokens}")
    print(f"{'':40}{'CPU ms/token':>14}{'x plain':>10}{'requests/s':>12}")
    rows = []
    for method, results in runs.items():
        ratio = paired_ratio(results, runs[PLAIN], "cpu_ms_per_token")
        median = statistics.median(result["cpu_ms_per_token"] for result in results)
        speed = statistics.median(result["requests_per_s"] for result in results)
        print(f"{method:40}{median:14.2f}{ratio:10.2f}{speed:12.2f}")
        rows.append(
            {
                "method": method, "requests": requests, "context": context,
                **percentiles("cpu_ms_per_token", [result["cpu_ms_per_token"] for result in results]),
                "ratio_to_plain": f"{ratio:.3f}",
                **percentiles("requests_per_s", [result["requests_per_s"] for result in results]),
                "repeats": options.repeats, "layers": results[0]["depth"], "width": results[0]["width"],
                "dtype": options.dtype, "vllm": results[0]["vllm"],
                **{name: facts[method][name] for name in ENVIRONMENT},
            }
        )  # fmt: skip
    return rows


def start(
    method: str, requests: int, context: int, options: argparse.Namespace, environment: dict[str, str] | None = None
) -> Worker:
    """A process that runs one method."""
    task = {"method": method, "requests": requests, "context": context}
    names = ("new-tokens", "model", "amateur", "device", "dtype")
    values = {name: getattr(options, name.replace("-", "_")) for name in names}
    passed = [f"--{name}={value}" for name, value in values.items() if value is not None]
    return Worker([sys.executable, __file__, "--worker", json.dumps(task), *passed], environment)


def work(options: argparse.Namespace) -> None:
    """The worker: start the engine, then give it all requests for each line read."""
    task = json.loads(options.worker)
    with open(f"{options.model}/config.json") as file:
        config = json.load(file)
    prompts, lengths = requests_of(task["requests"], task["context"], options.new_tokens, config["vocab_size"])
    makes = one_by_one if task["method"] == ONE_BY_ONE else on_vllm
    answer, version = makes(task["method"], prompts, lengths, config, options)

    def call() -> dict[str, Any]:
        began, cpu = time.perf_counter(), time.process_time()
        tokens = answer()
        return {
            "cpu_ms_per_token": 1000 * (time.process_time() - cpu) / tokens,
            "requests_per_s": len(prompts) / (time.perf_counter() - began),
            "depth": config["num_hidden_layers"], "width": config["hidden_size"], "vllm": version,
        }  # fmt: skip

    serve(call, options.device)


def requests_of(number: int, context: int, new_tokens: int, vocab_size: int) -> tuple[list[list[int]], list[int]]:
    """Prompts of an eighth of ``context`` to all of it, and lengths of answers of a third of ``new_tokens`` to all."""
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(max(2, context // 8), context + 1, (number,), generator=generator).tolist()
    answers = torch.randint(max(1, new_tokens // 3), new_tokens + 1, (number,), generator=generator).tolist()
    prompts = [torch.randint(10, vocab_size, (length,), generator=generator).tolist() for length in lengths]
    return prompts, answers


def on_vllm(
    method: str, prompts: list[list[int]], lengths: list[int], config: dict[str, Any], options: argparse.Namespace
) -> tuple[Any, str]:
    """A function that answers all requests on an engine and returns the number of new tokens; vLLM's version."""
    defaults = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_LOGGING_LEVEL": "ERROR",
    }  # fmt: skip
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import vllm

    depth = config["num_hidden_layers"]
    high = list(range(depth // 2, depth))
    settings: dict[str, Any] = {"layers": [high[0], high[len(high) // 3], high[2 * len(high) // 3], high[-1]]}
    if method in (AMATEUR, CONTRASTIVE, LOL, MIXED):
        settings |= {"layers": [depth // 2], "amateur": options.amateur}
    if method == SEARCH:
        settings = {"layers": [], "candidates": 4}
    if method in (CONTEXT, GROUPS):
        settings = {"layers": [], "second_prompts": True}
    seats = len(prompts) * {SEARCH: 5, CONTEXT: 2}.get(method, 1)
    longest = max(map(len, prompts)) + max(lengths) + 8
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token = 2 * depth * heads * head_dim * 4
    more: dict[str, Any] = {"kv_cache_memory_bytes": int(1.5 * per_token * seats * (longest + 32))}
    if method != PLAIN:
        more |= {
            "hf_overrides": {"architectures": [f"Contrast{config['architectures'][0]}"]},
            "additional_config": {"contrast": settings},
        }
    llm = vllm.LLM(
        options.model, dtype=options.dtype, enforce_eager=True, skip_tokenizer_init=True, block_size=32,
        max_model_len=longest, max_num_seqs=seats, enable_prefix_caching=False,
        distributed_executor_backend="uni", **more,
    )  # fmt: skip
    params = [
        vllm.SamplingParams(
            temperature=0, max_tokens=length, ignore_eos=True, detokenize=False,
            extra_args=fields_of(method, i, prompt, settings),
        )
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]  # fmt: skip

    def answer() -> int:
        outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return answer, vllm.__version__


def fields_of(method: str, number: int, prompt: list[int], settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a request asks for."""
    lower = settings["layers"]
    fields = {
        DOLA: {"strategy": "dola", "layers": lower},
        DOLA_ONE: {"strategy": "dola", "layers": lower[-1:]},
        CONTRASTIVE: {"strategy": "contrastive-decoding"},
        LOL: {"strategy": "lol", "lower_layers": lower},
        CONTEXT: {"strategy": "context-aware", "prompt_without_context": prompt[len(prompt) // 2 :]},
        SEARCH: {"strategy": "contrastive-search"},
    }
    if method == MIXED:
        return (None, {"strategy": "dola", "layers": lower}, fields[CONTRASTIVE], fields[LOL])[number % 4]
    return fields.get(method)


def one_by_one(
    method: str, prompts: list[list[int]], lengths: list[int], config: dict[str, Any], options: argparse.Namespace
) -> tuple[Any, str]:
    """A function that answers one request after the other; no version of vLLM."""
    import torch
    from transformers import AutoModelForCausalLM

    import decoding

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    depth = config["num_hidden_layers"]
    high = list(range(depth // 2, depth))
    strategy = decoding.DoLa([high[0], high[len(high) // 3], high[2 * len(high) // 3], high[-1]])

    def answer() -> int:
        for prompt, length in zip(prompts, lengths, strict=True):
            ids = torch.tensor([prompt])
            decoding.generate(
                model,
                ids,
                attention_mask=torch.ones_like(ids),
                strategy=strategy,
                max_new_tokens=length,
                do_sample=False,
            )
        return sum(lengths)

    return answer, ""


if __name__ == "__main__":
    sys.exit(main())
