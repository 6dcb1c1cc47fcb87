"""What the isotropy analysis costs, side by side in one run.

    python benchmarks/isotropy.py

Three questions, on one random-weight Llama (8 layers x 512, states of 9 layers):

1. pass: the streaming pass, and the whole analysis with what follows it (which costs the same however many texts there
   were), against the forward passes alone (the same batches, no head). Texts of 256 tokens.
2. states: what is done with the states, apart from the forward passes. The sums of the streaming pass against looking
   at every pair, once within texts and once over all tokens. The same states for all; texts of 256 tokens.
3. memory: peak memory of an analysis of 1,000 and of 20,000 texts of 10 tokens, in fresh processes, less what the
   process had before the analysis. In batches of 2,048 tokens, so that the 1,000 fill the sample and a batch after it.

Each method runs in a process of its own; the processes of a question take turns. Medians over the repeats, ratios pair
by pair.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from turns import (
    ENVIRONMENT,
    MEASURE_MEMORY,
    Worker,
    environment,
    llama,
    paired_ratio,
    peak_memory_mb,
    percentile_columns,
    percentiles,
    serve,
    take_turns,
    write_csv,
)

FORWARD, STREAMING, ANALYSIS = "forward passes alone", "streaming pass", "whole analysis"
SUMS, PAIRS_WITHIN = "sums: mean cosines", "pairs within texts"
EVERYTHING, PAIRS = "sums: all that is kept", "pairs of all tokens"
MEMORY = "whole analysis, memory"
QUESTIONS = ("pass", "states", "memory")
VOCAB = 32000
COLUMNS = [
    "question", "method", "texts", "tokens_a_text", *percentile_columns("ms"), "against", "ratio",
    "memory_mb", "repeats", "layers", "width", "dtype", *ENVIRONMENT,
]  # fmt: skip


def main() -> None:
    """Run the benchmark, or, with ``--worker``, one method of it."""
    options = parse()
    if options.worker:
        return work(options)
    rows = []
    if "pass" in options.questions:
        methods = dict.fromkeys((FORWARD, STREAMING, ANALYSIS), FORWARD)
        rows += times("pass", methods, options.texts, options)
    if "states" in options.questions:
        against = {SUMS: SUMS, PAIRS_WITHIN: SUMS, EVERYTHING: EVERYTHING, PAIRS: EVERYTHING}
        rows += times("states", against, options.state_texts, options)
    if "memory" in options.questions:
        rows += memory(options)
    if options.output.exists():  # what was not asked stays
        with options.output.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["question"] not in options.questions]
        rows.sort(key=lambda row: QUESTIONS.index(row["question"]))
    write_csv(rows, COLUMNS, options.output)
    print(f"\nwritten: {options.output}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=lambda text: text.split(","), default=list(QUESTIONS))
    parser.add_argument("--texts", type=int, default=160, help="of question 1")
    parser.add_argument("--state-texts", type=int, default=32, help="of question 2")
    parser.add_argument("--memory-texts", type=lambda text: [int(n) for n in text.split(",")], default=[1000, 20000])
    parser.add_argument("--tokens", type=int, default=256, help="a text, of questions 1 and 2")
    parser.add_argument("--short", type=int, default=10, help="tokens a text, of question 3")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="of question 3")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "isotropy.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def times(question: str, methods: dict[str, str], texts: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The methods of a question, taking turns, each with the method that it is compared with."""
    starts = {method: functools.partial(start, method, texts, options.tokens, options) for method in methods}
    runs, _ = take_turns(starts, options.repeats)
    print(f"\n{question}: {texts} texts of {options.tokens} tokens, {options.layers} x {options.width}")
    rows = []
    for method, against in methods.items():
        results = runs[method]
        whole = [result["ms_per_token"] * texts * options.tokens for result in results]
        ratio = paired_ratio(results, runs[against])
        print(f"{method:26}{statistics.median(whole):10.0f} ms{ratio:9.2f} x {against}")
        rows.append(
            {
                "question": question, "method": method, "texts": texts, "tokens_a_text": options.tokens,
                **percentiles("ms", whole, digits=1),
                "against": against, "ratio": f"{ratio:.3f}", "repeats": options.repeats, **common(results[0], options),
            }
        )  # fmt: skip
    return rows


def memory(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of an analysis of few and of many texts."""
    print(f"\nmemory: texts of {options.short} tokens")
    rows = []
    for texts in options.memory_texts:
        worker = start(MEMORY, texts, options.short, options, MEASURE_MEMORY)
        result = worker.run()
        used = worker.stop()["peak_memory_mb"] - result["before_mb"]
        rows.append(
            {
                "question": "memory", "method": ANALYSIS, "texts": texts, "tokens_a_text": options.short,
                "ms_p50": f"{result['ms_per_token'] * texts * options.short:.0f}", "memory_mb": f"{used:.1f}",
                "against": f"{options.memory_texts[0]} texts", "ratio": "", "repeats": 1, **common(result, options),
            }
        )  # fmt: skip
        rows[-1]["ratio"] = f"{used / float(rows[0]['memory_mb']):.3f}"
        print(f"{texts:>8} texts{used:10.0f} MB{rows[-1]['ratio']:>9} x {rows[-1]['against']}")
    return rows


def common(result: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The columns that tell model and machine."""
    return {"layers": options.layers, "width": options.width, "dtype": options.dtype, **result["facts"]}


def start(
    method: str, texts: int, tokens: int, options: argparse.Namespace, environment: dict[str, str] | None = None
) -> Worker:
    """A process that runs one method."""
    task = json.dumps({"method": method, "texts": texts, "tokens": tokens})
    passed = [
        f"--{name}={getattr(options, name.replace('-', '_'))}"
        for name in ("layers", "width", "device", "dtype", "batch-tokens")
    ]
    return Worker([sys.executable, __file__, "--worker", task, *passed], environment)


def work(options: argparse.Namespace) -> None:
    """The worker: build the model, then run the method once for each line read."""
    import torch

    torch.set_grad_enabled(False)
    task = json.loads(options.worker)
    model = llama(options.layers, options.width, options.width // 64, options.device, options.dtype)
    call = method_of(task["method"], model, task["texts"], task["tokens"], options.batch_tokens)
    before = peak_memory_mb(options.device)
    facts = environment(options.device)

    def once() -> dict[str, Any]:
        began = time.perf_counter()
        call()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return {"ms_per_token": 1000 * seconds / task["texts"] / task["tokens"], "before_mb": before, "facts": facts}

    serve(once, options.device)


def method_of(method: str, model: Any, count: int, tokens: int, batch_tokens: int) -> Callable[[], Any]:
    """One call of a method on ``count`` texts of so many tokens each; ``batch_tokens`` are those of question 3."""
    from decoding.evals.isotropy import Settings, analyse
    from decoding.evals.isotropy.analysis import StreamingPass
    from decoding.evals.isotropy.states import layer_numbers, read_states
    from decoding.evals.isotropy.texts import batches, encoded_texts

    settings, layers = Settings(), layer_numbers(model, None)

    def read() -> Iterator[Any]:
        encoded = encoded_texts(texts(count, tokens), Numbers(), settings, tokens)
        return batches(encoded, settings.batch_tokens)

    if method == FORWARD:

        def forward() -> None:
            for batch in read():
                read_states(model, [text.ids for text in batch], layers[-1:])

        return forward
    if method == STREAMING:
        return lambda: list(StreamingPass(model, Numbers(), layers, settings).over(texts(count, tokens)))
    if method == ANALYSIS:
        return lambda: analyse(model, Numbers(), texts(count, tokens))
    if method == MEMORY:
        analyse(model, Numbers(), texts(8, tokens))  # what a first call loads and keeps is not the analysis's own
        return lambda: analyse(model, Numbers(), texts(count, tokens), Settings(batch_tokens=batch_tokens))
    read_once = [(batch, read_states(model, [text.ids for text in batch], layers)) for batch in read()]
    if method == EVERYTHING:

        def take() -> None:
            one = StreamingPass(model, Numbers(), layers, settings)
            for batch, states in read_once:
                one.take(batch, states)

        return take
    of_batches = [states for _, states in read_once]
    return {
        SUMS: lambda: sums(of_batches),
        PAIRS_WITHIN: lambda: pairs_within(of_batches),
        PAIRS: lambda: pairs_of_all(of_batches),
    }[method]


def sums(of_batches: list[list[Any]]) -> list[float]:
    """Mean cosine within texts and across them, layer by layer, from sums of unit vectors."""
    import torch

    from decoding.evals.isotropy.sums import CosineSums

    found = []
    for layer in zip(*of_batches, strict=True):
        kept = CosineSums(layer[0].shape[-1], layer[0].device)
        for states in layer:
            kept.add(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))
        within = kept.within()
        found += [within.value if within else 0.0, kept.across() or 0.0]
    return found


def pairs_within(of_batches: list[list[Any]]) -> list[float]:
    """Mean cosine within texts, layer by layer, from the cosines of all pairs of a text."""
    import torch

    found = []
    for layer in zip(*of_batches, strict=True):
        total, pairs = 0.0, 0
        for states in layer:
            units = torch.nn.functional.normalize(states, dim=-1)
            batch, length = states.shape[:2]
            total += float((units @ units.mT).sum(dtype=torch.float64)) - batch * length
            pairs += batch * length * (length - 1)
        found.append(total / pairs)
    return found


def pairs_of_all(of_batches: list[list[Any]]) -> list[float]:
    """Mean cosine over all pairs of tokens, layer by layer, a block of the matrix of cosines at a time."""
    import torch

    found = []
    for layer in zip(*of_batches, strict=True):
        units = [torch.nn.functional.normalize(states.flatten(0, 1), dim=-1) for states in layer]
        total = sum(float((left @ right.T).sum(dtype=torch.float64)) for left in units for right in units)
        count = sum(map(len, units))
        found.append((total - count) / (count * (count - 1)))
    return found


class Numbers:
    """A tokenizer of texts that are token ids, such as "5 17 3"."""

    all_special_ids: tuple[int, ...] = ()
    bos_token_id = None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """The ids of a text."""
        return {"input_ids": [int(word) for word in text.split()]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The words of a text."""
        return [str(token) for token in ids]


def texts(count: int, tokens: int) -> Iterator[str]:
    """Random texts, made one at a time."""
    import random

    rng = random.Random(1)
    for _ in range(count):
        yield " ".join(str(rng.randrange(10, VOCAB)) for _ in range(tokens))


if __name__ == "__main__":
    main()
