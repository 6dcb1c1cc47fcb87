"""Record what transformers 4.55.4, the last release with contrastive search in its core, chooses.

Run with an interpreter that has transformers 4.55.4 and torch, once per model folder:

    python tests/recorded/record_contrastive_search.py NAME FOLDER

Adds (or replaces) the cases of that model in contrastive_search_4_55_4.json beside this file. Each case holds token
ids only, so that comparing them needs no tokenizer of either version.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

FILE = Path(__file__).with_name("contrastive_search_4_55_4.json")
PROMPTS = [
    "Once upon a time there was a little",
    "The old man went down to the river because",
    "One day, Lily and her brother found a big box in the garden. They",
    "It was",
]
SETTINGS = [(0.6, 4), (0.6, 8), (0.3, 5), (0.9, 3)]
NEW_TOKENS = 48


def record(name: str, folder: str) -> list[dict[str, Any]]:
    """All cases of one model: greedy and contrastive, each prompt alone and all of them as one left-padded batch."""
    settings = [{}, *({"penalty_alpha": alpha, "top_k": k} for alpha, k in SETTINGS)]
    return cases_of(load(folder), name, folder, settings, NEW_TOKENS)


def load(folder: str) -> Any:
    """The model of a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()


def cases_of(
    model: Any,
    name: str,
    folder: str,
    settings: list[dict[str, Any]],
    max_new_tokens: int,
    prompts: Sequence[str] = PROMPTS,
) -> list[dict[str, Any]]:
    """What ``generate`` chooses on every batch with every setting."""
    cases = []
    for (input_ids, mask), options in itertools.product(batches(model, folder, prompts), settings):
        tokens = model.generate(
            input_ids=torch.tensor(input_ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            **options,
        )
        cases.append(
            {
                "model": name,
                "input_ids": input_ids,
                "attention_mask": mask,
                "max_new_tokens": max_new_tokens,
                **options,
                "tokens": tokens[:, len(input_ids[0]) :].tolist(),
            }
        )
    return cases


def batches(model: Any, folder: str, prompts: Sequence[str]) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Input ids and masks: each prompt alone, then all of them left-padded."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder) / "tokenizer.json"))
    pad = model.generation_config.pad_token_id
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    width = max(map(len, ids))
    padded = [[pad] * (width - len(prompt)) + prompt for prompt in ids]
    masks = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in ids]
    return [*(([prompt], [[1] * len(prompt)]) for prompt in ids), (padded, masks)]


def merge(file: Path, name: str, cases: list[dict[str, Any]]) -> None:
    """Add the cases of a model to a file, in place of those that it had of this model."""
    kept = json.loads(file.read_text())["cases"] if file.exists() else []
    cases = [case for case in kept if case["model"] != name] + cases
    header = {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "dtype": "float32"}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    file.write_text(json.dumps(header)[:-1] + ',\n"cases": [\n' + lines + "\n]}\n")


def main() -> None:
    """Record one model and merge it into the file."""
    if transformers.__version__ != "4.55.4" or len(sys.argv) != 3:
        raise SystemExit(f"{__doc__}\n(transformers {transformers.__version__} here)")
    name, folder = sys.argv[1:]
    merge(FILE, name, record(name, folder))


if __name__ == "__main__":
    main()
