"""Record what transformers 4.55.4 chooses on the models of ``decoding fetch``, by contrastive search and by DoLa.

Run with an interpreter that has transformers 4.55.4 and torch, once per model, where the model was fetched:

    python tests/recorded/record_real_models.py smollm2-135m ~/.cache/contrastive-decoding/models/smollm2-135m

Adds (or replaces) the cases of that model in real_models_4_55_4.json beside this file; see
record_contrastive_search.py. transformers 4 reads a config.json of transformers 5 once the parameters of the rotary
embedding have their old names: the model is read from a folder that links the weights and holds such a file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import transformers
from record_contrastive_search import cases_of, load, merge

FILE = Path(__file__).with_name("real_models_4_55_4.json")
PROMPTS = [
    "DeepMind Company is",
    "The old lighthouse keeper climbed the 199 steps every evening, because",
    "Q: What is the capital of Australia?\nA:",
]
SETTINGS: list[dict[str, Any]] = [
    {"penalty_alpha": 0.6, "top_k": 4},
    {"penalty_alpha": 0.4, "top_k": 8},
    {"dola_layers": "low"},
    {"dola_layers": "high", "repetition_penalty": 1.2},
]
NEW_TOKENS = 24


def record(name: str, folder: Path) -> list[dict[str, Any]]:
    """All cases of one model: each prompt alone and all of them as one left-padded batch."""
    with tempfile.TemporaryDirectory() as old:
        for file in folder.iterdir():
            (Path(old) / file.name).symlink_to(file.resolve())
        (Path(old) / "config.json").unlink()
        config = json.loads((folder / "config.json").read_text())
        (Path(old) / "config.json").write_text(json.dumps(as_before_5(config)))
        return cases_of(load(old), name, old, SETTINGS, NEW_TOKENS, PROMPTS)


def as_before_5(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of transformers 5 with the names that transformers 4 reads."""
    rope = config.pop("rope_parameters")
    if "full_attention" in rope:  # Gemma 3
        config["rope_theta"] = rope["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 6
    else:
        config["rope_theta"] = rope["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    return config


if __name__ == "__main__":
    if transformers.__version__ != "4.55.4" or len(sys.argv) != 3:
        raise SystemExit(f"{__doc__}\n(transformers {transformers.__version__} here)")
    merge(FILE, sys.argv[1], record(sys.argv[1], Path(sys.argv[2])))
