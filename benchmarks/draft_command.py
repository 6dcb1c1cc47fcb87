"""What ``drafts.py``, ``draft_costs.py`` and ``draft_lengths.py`` share: options, models, and rows of a file."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import turns
from draft_settings import RANDOM, SETTINGS, Setting, articles, questions
from real_models import cpu_name

__all__ = ["KEY", "RESULTS", "environment", "measured", "numbers", "opened", "parsed"]

KEY = ["setting", "batch", "threads", "device"]  # columns that tell rows of one size from those of another
RESULTS = Path(__file__).parent / "results"


def numbers(text: str) -> list[int]:
    """Numbers with commas between them."""
    return [int(number) for number in text.split(",")]


def parsed(parser: argparse.ArgumentParser, settings: Iterable[str], new_tokens: int) -> argparse.Namespace:
    """The command line, with the options that all of them have.

    Args:
        parser: with the others.
        settings: that there are.
        new_tokens: unless the command line says otherwise.
    """
    known = list(settings)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"), help="folder of small models")
    parser.add_argument("--adapter", type=Path, help="folder of the LoRA amateur of SmolLM2")
    parser.add_argument("--settings", type=lambda text: text.split(";"), default=known, help="between ;")
    parser.add_argument("--threads", type=numbers, default=[2])
    parser.add_argument("--prompts", type=int, default=8, help="texts of a setting; batches take the first")
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    for name in options.settings:
        if name not in known:
            parser.error(f"--settings {name}: expected some of {'; '.join(known)}")
    return options


def measured(
    rows_of: Callable[[str, int], list[dict[str, Any]]], batches: Sequence[int], columns: list[str],
    options: argparse.Namespace,
) -> int:  # fmt: skip
    """Write the rows of each setting and batch with each number of threads; 1 where a size was left out.

    A setting whose model or data are not at hand is passed over with a line.
    """
    import torch

    left_out = 0
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.settings:
            if name in SETTINGS and (reason := why_not(SETTINGS[name], options)):
                print(f"{name}: left out, {reason}")
                continue
            left_out |= turns.written(
                lambda batch, _, name=name: rows_of(name, batch), [(batch, 0) for batch in batches], columns,
                options.output, keep=KEY,
            )  # fmt: skip
    return left_out


def why_not(setting: Setting, options: argparse.Namespace) -> str:
    """Why a setting cannot be measured here; empty where it can."""
    from decoding.models.releases import RELEASES, is_fetched

    if setting.model in RELEASES and not is_fetched(setting.model):
        return f"{setting.model} was not fetched (decoding fetch {setting.model})"
    if setting.model.startswith("stories") and not (options.models / setting.model).is_dir():
        return f"{options.models / setting.model} is missing"
    if setting.texts in (articles, questions) and not options.data.is_dir():
        return f"{options.data} is missing"
    return ""


def opened(setting: Setting, options: argparse.Namespace) -> tuple[Any, Any]:
    """A setting's model and its tokenizer, which the model with random weights has not."""
    if setting.model == RANDOM:
        return random_model(options.layers, options.width, options.device), None
    in_models = options.models / setting.model
    return loaded(str(in_models) if in_models.is_dir() else setting.model, options.device)


@functools.lru_cache(maxsize=1)
def random_model(layers: int, width: int, device: str) -> Any:
    """A Llama with random weights."""
    return turns.llama(layers, width, max(1, width // 256), device, "float32")


@functools.lru_cache(maxsize=1)
def loaded(name: str, device: str) -> tuple[Any, Any]:
    """A model and its tokenizer; one is kept."""
    import decoding

    model, tokenizer = decoding.load(name, device=device, dtype="float32")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def environment(device: str) -> dict[str, Any]:
    """The columns that say where it was measured, with the processor's name."""
    found = turns.environment(device)
    return found if device.startswith("cuda") else {**found, "device": cpu_name()}
