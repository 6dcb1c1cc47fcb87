"""What the benchmarks share: methods in processes of their own that take turns, and what is made of their times.

Runs under any interpreter with torch and transformers: nothing of this library is imported here.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

# A worker's allocator gives blocks from this size on back at once, so that its peak is what a method asked for.
MEASURE_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}


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
        self.facts: dict[str, Any] = {}
        self._answer()  # ready

    def run(self) -> dict[str, Any]:
        """One call of ``generate``."""
        self._ask("run")
        return self._answer()

    def stop(self) -> dict[str, Any]:
        """End the process; its peak memory and versions, also kept as ``facts``."""
        self._ask("stop")
        self.facts = self._answer()
        self.process.wait()
        return self.facts

    def _ask(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"a worker ended early (exit code {self.process.wait()}); its message stands above")


def take_turns(workers: dict[str, Worker], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """The answers of all workers, one after the other, so that a change of the machine's speed meets all of them."""
    runs: dict[str, list[dict[str, Any]]] = {method: [] for method in workers}
    for repeat in range(repeats + 1):
        for method, worker in workers.items():
            result = worker.run()
            if repeat > 0:  # the first turn warms up
                runs[method].append(result)
    for worker in workers.values():
        worker.stop()
    return runs


def paired_ratio(results: list[dict[str, Any]], others: list[dict[str, Any]], measure: str = "ms_per_token") -> float:
    """The median over the repeats of time against time of the same turn."""
    pairs = zip(results, others, strict=True)
    return statistics.median(one[measure] / other[measure] for one, other in pairs)


def quantile(values: list[float], q: float) -> float:
    """The q-quantile, linear between the two nearest."""
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def timed(generate: Callable[[Any], Any]) -> dict[str, Any]:
    """Time per token of one call, prompt and first token left out, and its last tokens.

    Args:
        generate: is given a stopping criterion that notes the time of each token (it waits for a GPU), and returns the
            tokens.
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
    per_token = (clock.times[-1] - clock.times[0]) / (len(clock.times) - 1)
    return {"ms_per_token": 1000 * per_token, "call_s": seconds, "tokens": tokens[:, -8:].tolist()}


def serve(call: Callable[[], dict[str, Any]], device: str) -> None:
    """Run ``call`` for each line read, until "stop"; then tell peak memory and versions."""
    import torch
    import transformers

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        print(json.dumps(call()), flush=True)
    facts = {
        "peak_memory_mb": peak_memory_mb(device),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine() + " cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(facts), flush=True)


def peak_memory_mb(device: str) -> float:
    """The peak so far: of the GPU's allocations, or of this process."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
