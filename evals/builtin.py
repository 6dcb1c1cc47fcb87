"""The embedded models and the embedded adapter, by name; entry points in ``pyproject.toml`` name them too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decoding.evals import miniature

if TYPE_CHECKING:
    import torch

__all__ = ["ADAPTERS", "INDUCED", "MODELS", "load_amateur", "load_expert"]


def load_expert(dtype: torch.dtype, **placed: Any) -> tuple[Any, Any]:
    """The embedded expert and its tokenizer; ``placed`` is what ``from_pretrained`` is told of devices."""
    return _load("expert", dtype, placed)


def load_amateur(dtype: torch.dtype, **placed: Any) -> tuple[Any, Any]:
    """The embedded amateur and its tokenizer, as :func:`load_expert`."""
    return _load("amateur", dtype, placed)


def _load(name: str, dtype: torch.dtype, placed: dict[str, Any]) -> tuple[Any, Any]:
    if not (miniature.folder(name) / "config.json").is_file():
        raise FileNotFoundError(f"its folder {miniature.folder(name)} holds no model")
    return miniature.load(name, dtype=dtype, **placed)


INDUCED = miniature.folder("induced")

MODELS = {"expert": load_expert, "amateur": load_amateur}
ADAPTERS = {"induced": INDUCED}
