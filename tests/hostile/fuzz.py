"""Fuzzed calls of ``generate``: ``python tests/hostile/fuzz.py --calls 10000 --seed 0``.

Each call is held to the rule of ``tests/support/fuzz_rule.py``; the first that breaks it is minimised and printed. A
call that takes longer than ``--patience`` ends the run with the stack of every thread. In the end a portion of the
calls is made again and again: by then everything has been met once, and resident memory must stay where it is.
"""

from __future__ import annotations

import argparse
import collections
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from fuzz_rule import drawn, fuzz, outcome
from resident_memory import resident

PORTION = 500

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="calls are the same for the same seed")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds that a call may take")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    began = time.time()
    ends: collections.Counter[str] = collections.Counter()
    for portion, start in enumerate(range(0, arguments.calls, PORTION)):
        count = min(PORTION, arguments.calls - start)
        ends += fuzz(count, arguments.seed * 1000 + portion, arguments.patience)
        print(f"{start + count:6} calls {time.time() - began:6.0f} s", flush=True)
    for end, times in ends.most_common():
        print(f"{times:6} {end}")
    again = drawn(PORTION, arguments.seed * 1000)
    for _ in range(5):
        for call in again:
            outcome(call)
        print(f"{len(again)} of them again: {resident() / 2**20:.1f} MiB", flush=True)
