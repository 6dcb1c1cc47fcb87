"""Fuzzed calls of ``generate``: ``python tests/hostile/fuzz.py --calls 10000 --seed 0``.

Each call is held to the rule of ``tests/support/fuzz_rule.py``; the first that breaks it is minimised and printed. A
call that takes longer than ``--patience`` ends the run with the stack of every thread. Calls come in portions, after
each of which the resident memory is printed: it grows while models and libraries are met for the first time, and must
stay where it is from then on.
"""

from __future__ import annotations

import argparse
import collections
import gc
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers
from fuzz_rule import fuzz
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
        gc.collect()
        print(f"{start + count:6} calls {time.time() - began:6.0f} s {resident() / 2**20:6.0f} MiB", flush=True)
    for end, times in ends.most_common():
        print(f"{times:6} {end}")
