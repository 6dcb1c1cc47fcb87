"""The embedded models, by name."""

from __future__ import annotations

from typing import Any

import torch

from decoding.evals import miniature


def _miniature(name: str) -> Any:
    def load(dtype: torch.dtype, **placed: Any) -> tuple[Any, Any]:
        if not (miniature.folder(name) / "config.json").is_file():
            raise FileNotFoundError(f"its folder {miniature.folder(name)} holds no model")
        return miniature.load(name, dtype=dtype, **placed)

    return load
