"""What vLLM calls in each of its processes: it registers a model class beside every causal one that vLLM has."""

from __future__ import annotations

from decoding.serving.vllm.settings import PREFIX

__all__ = ["register"]


def register() -> None:
    """Register ``Contrast<Architecture>`` for the architectures that vLLM knows, with the checks of its settings.

    Classes are made when an engine asks for one. The entry point of group ``vllm.general_plugins``.
    """
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from decoding.serving.vllm.start import checks_beside

    for architecture in list(ModelRegistry.get_supported_archs()):
        if architecture.startswith(PREFIX) or not architecture.endswith(("ForCausalLM", "LMHeadModel")):
            continue
        name = PREFIX + architecture
        if name not in ModelRegistry.models:
            ModelRegistry.register_model(name, f"decoding.serving.vllm.architectures:{name}")
        MODELS_CONFIG_MAP.setdefault(name, checks_beside(MODELS_CONFIG_MAP.get(architecture)))
