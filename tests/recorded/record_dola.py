"""Record what DoLa of transformers 4.55.4, the last release with it in its core, chooses.

Run with an interpreter that has transformers 4.55.4 and torch, once per model folder:

    python tests/recorded/record_dola.py NAME FOLDER

Adds (or replaces) the cases of that model in dola_4_55_4.json beside this file; see record_contrastive_search.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import transformers
from record_contrastive_search import cases_of, load, merge

FILE = Path(__file__).with_name("dola_4_55_4.json")
NEW_TOKENS = 32


def record(name: str, folder: str) -> list[dict[str, Any]]:
    """All cases of one model: each prompt alone and all of them as one left-padded batch."""
    model = load(folder)
    depth = model.config.num_hidden_layers
    settings = [
        {"dola_layers": "low"},
        {"dola_layers": "high"},
        {"dola_layers": list(range(1, depth))},
        {"dola_layers": "high", "repetition_penalty": 1.2},
    ]
    return cases_of(model, name, folder, settings, NEW_TOKENS)


if __name__ == "__main__":
    if transformers.__version__ != "4.55.4" or len(sys.argv) != 3:
        raise SystemExit(f"{__doc__}\n(transformers {transformers.__version__} here)")
    merge(FILE, sys.argv[1], record(*sys.argv[1:]))
