"""TruthfulQA's multiple choice: this library, one forward pass per answer, and lm-eval, side by side in one run.

    python benchmarks/truthfulqa_mc.py [--data TruthfulQA.csv] [--tokenizer PATH] [--prompt-tokens 600]

Each method runs in a process of its own that holds one random-weight Llama (8 layers x 512, vocabulary 32k); the
processes take turns. All score the answers of the same questions behind the same few-shot prompt, each answer once:

- one pass per answer, as the public scripts do it: prompt and answer through the model, log-softmax of all positions;
- lm-eval: its own ``HFLM`` over the same model in memory, its ``loglikelihood`` requests, at the best of several batch
  sizes;
- ``decoding eval truthfulqa``'s task through its runner, samples written and synced to a file; the reading of the
  few-shot prompt counts.

The few-shot prompt is that of ``--style``; ``--prompt-tokens`` lengthens it by the data's last questions with their
best answers. Without ``--data``, questions are made up of words, with as many words and answers as TruthfulQA's have on
average. Every method's MC1 and MC2 are compared question by question.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import (
    ENVIRONMENT,
    Runs,
    Worker,
    llama,
    paired_ratio,
    percentile_columns,
    percentiles,
    serve,
    take_turns,
    write_csv,
)

OURS, PER_ANSWER, LM_EVAL = "decoding", "one pass per answer", "lm-eval"
SHARED = Path(__file__).resolve().parents[2] / "shared"  # data and models that lie beside the repository
COLUMNS = [
    "method", "questions", "answers", "prompt_tokens", "answer_tokens", *percentile_columns("seconds"),
    "ms_per_answer", "times_slower_than_decoding", "largest_difference_mc2", "different_mc1", "peak_memory_mb",
    "repeats", "layers", "width", "dtype", *ENVIRONMENT,
]  # fmt: skip


def main() -> None:
    """Run the benchmark, or, with ``--worker``, one method of it."""
    options = parse()
    if options.worker:
        return work(options)
    batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
    found = {size: once(f"{LM_EVAL}, batch {size}", options) for size in batch_sizes}
    best = min(found, key=lambda size: found[size])
    for size, seconds in found.items():
        print(f"lm-eval, batch {size}: {seconds:.1f} s")
    methods = [OURS, PER_ANSWER, f"{LM_EVAL}, batch {best}"]
    starts = {method: (lambda environment, method=method: start(method, options, environment)) for method in methods}
    rows = table(*take_turns(starts, options.repeats), options)
    if options.output.exists():  # what was measured with other prompts stays
        with options.output.open(newline="") as file:
            rows += [row for row in csv.DictReader(file) if row["prompt_tokens"] != str(rows[0]["prompt_tokens"])]
        rows.sort(key=lambda row: int(row["prompt_tokens"]))
    write_csv(rows, COLUMNS, options.output)
    print(f"\nwritten: {options.output}")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = SHARED / "data/truthfulqa/TruthfulQA.csv", SHARED / "models/stories3M"
    data, tokenizer = (str(path) if path.exists() else None for path in here)
    parser.add_argument("--data", default=data, help="TruthfulQA.csv; by default that beside the repository, if any")
    parser.add_argument("--tokenizer", default=tokenizer, help="a folder; by default the embedded one's")
    parser.add_argument("--questions", type=int, default=10, help="the first so many")
    parser.add_argument("--style", default="dola", help="of the prompt")
    parser.add_argument("--prompt-tokens", type=int, default=0, help="of the prompt before the question, at least")
    parser.add_argument("--batch-sizes", default="4,8,16", help="that lm-eval is tried with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "truthfulqa_mc.csv")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def once(method: str, options: argparse.Namespace) -> float:
    """Seconds of one call in a process of its own."""
    worker = start(method, options)
    seconds = worker.run()["seconds"]
    worker.stop()
    return float(seconds)


def table(runs: Runs, facts: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print and return one row a method."""
    ours = runs[OURS][0]
    print(f"\n{options.questions} questions, {ours['answers']} answers, {options.layers} x {options.width}")
    print(f"{'':24}{'s':>8}{'ms/answer':>11}{'x decoding':>12}{'MC2 differs by':>16}{'MC1 differs on':>16}")
    rows = []
    for method, results in runs.items():
        seconds = [result["seconds"] for result in results]
        median = statistics.median(seconds)
        ratio = paired_ratio(results, runs[OURS], "seconds")
        mc2 = max(abs(a - b) for a, b in zip(results[0]["mc2"], ours["mc2"], strict=True))
        mc1 = sum(a != b for a, b in zip(results[0]["mc1"], ours["mc1"], strict=True))
        per_answer = 1000 * median / ours["answers"]
        print(f"{method:24}{median:8.2f}{per_answer:11.1f}{ratio:12.1f}{mc2:16.1e}{mc1:16d}")
        told = facts[method]
        rows.append(
            {
                "method": method, "questions": options.questions, **percentiles("seconds", seconds),
                "ms_per_answer": f"{per_answer:.2f}",
                "times_slower_than_decoding": f"{ratio:.2f}", "largest_difference_mc2": f"{mc2:.1e}",
                "different_mc1": mc1, "repeats": options.repeats, "layers": options.layers, "width": options.width,
                "dtype": options.dtype, "peak_memory_mb": f"{told['peak_memory_mb']:.0f}",
                **{name: told[name] for name in ENVIRONMENT},
                **{name: ours[name] for name in ("answers", "prompt_tokens", "answer_tokens")},
            }
        )  # fmt: skip
    return rows


def start(method: str, options: argparse.Namespace, environment: dict[str, str] | None = None) -> Worker:
    """A process that runs one method."""
    names = ("questions", "style", "prompt-tokens", "layers", "width", "device", "dtype")
    passed = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in names]
    passed += [f"--{name}={getattr(options, name)}" for name in ("data", "tokenizer") if getattr(options, name)]
    return Worker([sys.executable, __file__, "--worker", method, *passed], environment)


def work(options: argparse.Namespace) -> None:
    """The worker: build model and questions, then score all answers for each line read."""
    from transformers import AutoTokenizer

    from decoding.evals import miniature
    from decoding.evals.tasks.truthfulqa.data import load
    from decoding.evals.tasks.truthfulqa.prompts import prompt_of
    from decoding.scoring.score import tokens_of

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or miniature.folder("expert"))
    every = load(options.data)[0] if options.data else made_up()
    questions, others = every[: options.questions], every[options.questions :]
    prompt = prompt_of(options.style, tokenizer)
    while len(tokenizer(prompt.prefix)["input_ids"]) < options.prompt_tokens:
        shown = others.pop()
        shot = prompt.text(shown.question) + prompt.answer(shown.best_answer)
        prompt = dataclasses.replace(prompt, prefix=f"{shot}\n\n")
    heads = max(1, options.width // 64)
    model = llama(options.layers, options.width, heads, options.device, options.dtype)
    tokens = [
        tokens_of(prompt.text(question.question), [prompt.answer(answer) for answer in question.answers], tokenizer)
        for question in questions
    ]
    facts = {
        "answers": sum(len(question.answers) for question in questions),
        "prompt_tokens": round(statistics.mean(len(before) for before, _ in tokens)),
        "answer_tokens": round(statistics.mean(len(answer) for _, after in tokens for answer in after), 1),
    }
    method, _, batch = options.worker.partition(", batch ")
    call = {OURS: with_decoding, PER_ANSWER: with_a_pass_per_answer, LM_EVAL: with_lm_eval}[method](
        model, tokenizer, questions, prompt, int(batch or 1)
    )

    def timed() -> dict[str, Any]:
        began = time.perf_counter()
        figures = call()
        return {"seconds": time.perf_counter() - began, "mc1": figures[0], "mc2": figures[1], **facts}

    serve(timed, options.device)


Figures = tuple[list[float], list[float]]


def with_decoding(model: Any, tokenizer: Any, questions: Any, prompt: Any, _batch: int) -> Callable[[], Figures]:
    """The task of ``decoding eval truthfulqa``, through the runner, samples and results on disk."""
    from decoding.evals.engine.configurations import configured
    from decoding.evals.engine.runner import run
    from decoding.evals.tasks.truthfulqa.multiple_choice import MultipleChoice
    from decoding.strategies.registry import parse_strategy

    def call() -> Figures:
        task = MultipleChoice(model, tokenizer, questions, prompt)
        configurations = configured([parse_strategy("greedy")], model, tokenizer, "random", task=task.settings)
        with tempfile.TemporaryDirectory() as folder:
            run(task, configurations, output=Path(folder))
            lines = (Path(folder) / f"samples_{task.name}.jsonl").read_text().splitlines()
        metrics = [json.loads(line)["metrics"] for line in lines]
        return [row["MC1"] for row in metrics], [row["MC2"] for row in metrics]

    return call


def with_a_pass_per_answer(
    model: Any, tokenizer: Any, questions: Any, prompt: Any, _batch: int
) -> Callable[[], Figures]:
    """Prompt and answer through the model, one answer at a time, log-softmax of every position."""
    import torch

    @torch.inference_mode()
    def score(question: Any, answer: str) -> float:
        before = tokenizer(prompt.text(question), return_tensors="pt")["input_ids"].to(model.device)
        whole = tokenizer(prompt.text(question) + prompt.answer(answer), return_tensors="pt")["input_ids"]
        whole = whole.to(model.device)
        log_probs = model(whole).logits[0].log_softmax(-1)[before.shape[1] - 1 : -1]
        return float(log_probs.gather(1, whole[0, before.shape[1] :, None]).sum())

    return lambda: figures(
        questions, [[score(question.question, answer) for answer in question.answers] for question in questions]
    )


def with_lm_eval(model: Any, tokenizer: Any, questions: Any, prompt: Any, batch: int) -> Callable[[], Figures]:
    """lm-eval's own model class, over the model in memory."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    requests = [
        Instance("loglikelihood", {}, (prompt.text(question.question), prompt.answer(answer)), index)
        for question in questions
        for index, answer in enumerate(question.answers)
    ]

    def call() -> Figures:
        scores = iter([score for score, _ in harness.loglikelihood(requests, disable_tqdm=True)])
        return figures(questions, [[next(scores) for _ in question.answers] for question in questions])

    return call


def figures(questions: Any, scores: list[list[float]]) -> Figures:
    """MC1 and MC2 of each question."""
    from decoding.evals.metrics.multiple_choice import mc1, mc2

    first, second = [], []
    for question, values in zip(questions, scores, strict=True):
        of = dict(zip(question.answers, values, strict=True))
        first.append(mc1(of[question.mc1.true[0]], [of[answer] for answer in question.mc1.false]))
        second.append(mc2([of[answer] for answer in question.mc2.true], [of[answer] for answer in question.mc2.false]))
    return first, second


def made_up() -> list[Any]:
    """Questions of words, of TruthfulQA's mean lengths: 10 words a question, 3 true and 4 false answers of 9 words."""
    from decoding.evals.tasks.truthfulqa.data import Question, Targets

    generator = random.Random(0)
    words = [
        "the", "of", "what", "is", "in", "you", "if", "a", "do", "to", "happens", "people", "world", "have", "most",
        "long", "many", "when", "country", "does",
    ]  # fmt: skip

    def sentence(count: int) -> str:
        return " ".join(generator.choice(words) for _ in range(count)).capitalize()

    made = []
    for number in range(1000):
        true, false = ([f"{sentence(9)} {i}." for i in range(count)] for count in (3, 4))
        targets = Targets((true[0],), tuple(false)), Targets(tuple(true), tuple(false))
        made.append(Question(str(number), sentence(10) + "?", true[0], tuple(true), tuple(false), *targets))
    return made


if __name__ == "__main__":
    main()
