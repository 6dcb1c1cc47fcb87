"""Models and adapters by name: the embedded ones and those that installed packages bring along.

A package offers them in its ``pyproject.toml``:

    [project.entry-points."decoding.models"]
    my-model = "my_package.models:load_it"      # a function of (dtype, **placement) that returns (model, tokenizer)

    [project.entry-points."decoding.adapters"]
    my-amateur = "my_package.models:FOLDER"     # the pathlib.Path of the folder of a LoRA adapter
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from decoding.entry_points import EntryPointTable

__all__ = ["BUILT_IN", "BUILT_IN_ADAPTERS"]

_EMBEDDED = "decoding.evals.builtin"

BUILT_IN: EntryPointTable[Callable[..., tuple[Any, Any]]] = EntryPointTable(
    "decoding.models", "model", {"expert": f"{_EMBEDDED}:load_expert", "amateur": f"{_EMBEDDED}:load_amateur"}
)
BUILT_IN_ADAPTERS: EntryPointTable[Path] = EntryPointTable(
    "decoding.adapters", "adapter", {"induced": f"{_EMBEDDED}:INDUCED"}
)
