"""``Contrast<Architecture>`` for the architectures of vLLM, made when one is asked for: vLLM's class with readers."""

from __future__ import annotations

from typing import Any

from decoding.serving.vllm.settings import PREFIX

__all__: list[str] = []


def __getattr__(name: str) -> Any:
    """The class of an architecture: `ContrastLlamaForCausalLM` is vLLM's `LlamaForCausalLM` with readers."""
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm.model_executor.models import ModelRegistry

    from decoding.serving.vllm.model import ReadersMixin

    architecture = name.removeprefix(PREFIX)
    if architecture not in ModelRegistry.models:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}: vLLM has no {architecture}")
    model_class = ModelRegistry.models[architecture].load_model_cls()
    made = type(name, (ReadersMixin, model_class), {"__module__": __name__, "__doc__": model_class.__doc__})
    globals()[name] = made
    return made
