"""What the benchmarks share: methods in processes of their own that take turns, and what is made of their times.

Runs under any interpreter with torch and transformers: nothing of this library is imported here.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

PERCENTILES = (20, 50, 80)  # of the turns of a method, in the files
ENVIRONMENT = ("device", "threads", "torch", "transformers", "python")  # columns, in the files' order
# A worker's allocator gives blocks from this size on back at once, so that its peak is what a method asked for.
MEASURE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}  # glibc's own first value, fixed


class LeftOut(SystemExit):
    """A size cannot be measured, for the reason that the message says."""


class WorkerEnded(LeftOut):
    """A worker ended before it had answered: a size that did not fit into memory, most often."""


class Worker:
    """A process that runs one method each time it is asked.

    Args:
        command: interpreter, script and options; the script calls :func:`serve`.
        environment: added to this process's.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", **(environment or {})},
        )
        self._answer()  # ready

    def run(self) -> dict[str, Any]:
        """One call of ``generate``."""
        self._ask("run")
        return self._answer()

    def stop(self) -> dict[str, Any]:
        """End the process; its peak memory and versions."""
        self._ask("stop")
        facts = self._answer()
        self.process.wait()
        return facts

    def close(self) -> None:
        """End the process, if it has not ended, whatever it is doing."""
        self.process.kill()
        self.process.wait()

    def _ask(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise WorkerEnded(f"a worker ended early (exit code {self.process.wait()}); its message stands above")


Start = Callable[[dict[str, str] | None], Worker]
Runs = dict[str, list[dict[str, Any]]]


def measure(
    starts: dict[str, Start], repeats: int, device: str, apart: bool = False
) -> tuple[Runs, dict[str, dict[str, Any]]]:
    """Run all methods; their answers, and of each one answer with peak memory and versions.

    Args:
        starts: of each method, what starts its worker in an environment.
        repeats: answers of each, after a first run that warms up.
        device: on a GPU the workers that are timed tell their memory; on a CPU fresh ones do.
        apart: one method after the other, each with the device to itself, and not in turns.
    """
    runs: Runs = {}
    last: dict[str, dict[str, Any]] = {}
    for group in [[method] for method in starts] if apart else [list(starts)]:
        answers, facts = take_turns({method: starts[method] for method in group}, repeats)
        runs |= answers
        last |= {method: {**answers[method][-1], **facts[method]} for method in group}
    if not device.startswith("cuda"):
        for method, start in starts.items():
            answers, facts = take_turns({method: start}, 1, 0, MEASURE_MEMORY)
            last[method] = {**answers[method][-1], **facts[method]}
    return runs, last


def take_turns(
    starts: dict[str, Start], repeats: int, warm_up: int = 1, environment: dict[str, str] | None = None
) -> tuple[Runs, dict[str, dict[str, Any]]]:
    """The answers of all workers, one after the other, so that a change of the machine's speed meets all of them; and
    what each told at its end.
    """
    runs: Runs = {method: [] for method in starts}
    workers: dict[str, Worker] = {}
    try:
        for method, start in starts.items():
            workers[method] = start(environment)
        for repeat in range(-warm_up, repeats):
            for method, worker in workers.items():
                result = worker.run()
                if repeat >= 0:
                    runs[method].append(result)
        return runs, {method: worker.stop() for method, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def run(
    options: Any,
    work: Callable[[Any], None],
    compare: Callable[[int, int], list[dict[str, Any]]],
    sizes: Sequence[Any],
    columns: list[str],
    keep: Sequence[str] = (),
) -> int:
    """Do what a command line asks: run one method (``--worker``), or compare all of them; see :func:`written`."""
    if options.worker:
        work(options)
        return 0
    return written(compare, sizes, columns, options.output, keep)


def written(
    compare: Callable[[int, int], list[dict[str, Any]]],
    sizes: Sequence[Any],
    columns: list[str],
    output: Path,
    keep: Sequence[str] = (),
) -> int:
    """Compare at each size (batch, context) and write the rows; 1 where a size was left out, 0 otherwise.

    Args:
        compare: gives the rows of a size.
        sizes: batch and context of each.
        columns: of the file.
        output: the file.
        keep: columns that tell rows of one size from those of another: rows that the file has of sizes which are not
            measured now stay. Without them it is written anew.
    """
    rows = read_csv(output) if keep else []
    left_out = 0
    for batch, context in sizes:
        try:
            found = compare(batch, context)
            rows = replaced(rows, found, keep) if keep else rows + found
        except LeftOut as reason:
            left_out += 1
            print(f"\nbatch {batch}, context {context}: left out, {reason}", flush=True)
        write_csv(rows, columns, output)  # after each size: a run that is cut short has the others
    print(f"\nwritten: {output}")
    return int(left_out > 0)


def read_csv(output: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark's file; none where it is missing."""
    if not output.exists():
        return []
    with output.open(newline="") as file:
        return list(csv.DictReader(file))


def replaced(rows: list[dict[str, Any]], found: list[dict[str, Any]], keep: Sequence[str]) -> list[dict[str, Any]]:
    """Rows that are not measured anew, by the columns that tell them apart, and those that were."""
    new = {tuple(str(row[name]) for name in keep) for row in found}
    return [row for row in rows if tuple(str(row[name]) for name in keep) not in new] + found


def write_csv(rows: list[dict[str, Any]], columns: list[str], output: Path) -> None:
    """Write the rows of a benchmark, the folder too where it is missing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def llama(layers: int, width: int, kv_heads: int, device: str, dtype: str, head_dim: int = 64) -> Any:
    """A Llama with random weights, made where it runs, that never ends a text; vocabulary 32k."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=max(1, width // head_dim), num_key_value_heads=kv_heads, max_position_embeddings=65536,
    )  # fmt: skip
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def paired_ratio(results: list[dict[str, Any]], others: list[dict[str, Any]], measure: str = "ms_per_token") -> float:
    """The median over the repeats of time against time of the same turn."""
    pairs = zip(results, others, strict=True)
    return statistics.median(one[measure] / other[measure] for one, other in pairs)


def percentile_columns(measure: str) -> list[str]:
    """The columns of a measure: ``ms_per_token_p20``, ``ms_per_token_p50`` and ``ms_per_token_p80``, for instance."""
    return [f"{measure}_p{percent}" for percent in PERCENTILES]


def percentiles(measure: str, values: Sequence[float], digits: int = 3) -> dict[str, str]:
    """The cells of :func:`percentile_columns`, with so many digits after the point."""
    cells = (f"{quantile(values, percent / 100):.{digits}f}" for percent in PERCENTILES)
    return dict(zip(percentile_columns(measure), cells, strict=True))


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between the two nearest."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def timed(generate: Callable[[Any], Any], average: Callable[[list[float]], float] = statistics.fmean) -> dict[str, Any]:
    """Time to the first token of one call, time per token after it, and its last tokens.

    Args:
        generate: is given a stopping criterion that notes the time of each token (it waits for a GPU), and returns the
            tokens.
        average: of the times from token to token.
    """
    import torch
    from transformers import StoppingCriteria

    class Clock(StoppingCriteria):
        """Notes the time at each new token."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            if input_ids.is_cuda:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    clock = Clock()
    began = time.perf_counter()
    tokens = generate(clock)
    seconds = time.perf_counter() - began
    per_token = average([later - earlier for earlier, later in itertools.pairwise(clock.times)])
    return {
        "first_token_s": clock.times[0] - began, "ms_per_token": 1000 * per_token, "call_s": seconds,
        "tokens": tokens[:, -8:].tolist(),
    }  # fmt: skip


def serve(call: Callable[[], dict[str, Any]], device: str) -> None:
    """Run ``call`` for each line read, until "stop"; then tell peak memory and versions."""
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        print(json.dumps(call()), flush=True)
    print(json.dumps({"peak_memory_mb": peak_memory_mb(device), **environment(device)}), flush=True)


def environment(device: str) -> dict[str, Any]:
    """The columns :data:`ENVIRONMENT`: what this process runs on."""
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine() + " cpu"
    versions = (torch.__version__, transformers.__version__, platform.python_version())
    return dict(zip(ENVIRONMENT, (name, torch.get_num_threads(), *versions), strict=True))


def peak_memory_mb(device: str) -> float:
    """The peak so far: of the GPU's allocations, or of this process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
