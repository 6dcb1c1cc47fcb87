"""The embedded expert, exported: what it is given in tests, how its folder is loaded and what it generates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import decoding
from decoding.evals import miniature

__all__ = ["EXPERT", "NEW", "PROMPT", "generated", "loaded", "two_prompts"]

NEW = 6
PROMPT = miniature.prompts()[0]
EXPERT = miniature.folder("expert")


def two_prompts() -> dict[str, torch.Tensor]:
    """A batch for ``generate``."""
    encoded = AutoTokenizer.from_pretrained(EXPERT)([PROMPT, "Long ago"], return_tensors="pt", padding=True)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def loaded(folder: Path | str, trust: bool = True) -> Any:
    """The model of a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32).eval()


def generated(model: Any, inputs: dict[str, torch.Tensor], strategy: Any = None, **options: Any) -> torch.Tensor:
    """Tokens of a strategy, or of the model's own ``generate``."""
    if strategy is None:
        return model.generate(**inputs, max_new_tokens=NEW, **options)
    return decoding.generate(model, **inputs, max_new_tokens=NEW, strategy=strategy, **options)
