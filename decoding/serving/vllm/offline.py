"""Batches of prompts with ``vllm.LLM``, each prompt with a strategy of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from decoding.serving.vllm.engine import engine_of, plain_errors, request_fields, require_vllm

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

__all__ = ["load_llm", "sampling_params"]


def load_llm(
    model: str,
    *,
    amateur: str | None = None,
    layers: Sequence[int | float] | str | None = None,
    strategy: str | Mapping[str, Any] | None = None,
    second_prompts: bool = False,
    candidates: int = 0,
    **options: Any,
) -> LLM:
    """Start an engine whose requests may have strategies.

    Args:
        model: a built-in or fetched model, a folder, or a name on the hub.
        amateur: likewise, for strategies that contrast two models.
        layers: lower layers that requests may read; see :func:`decoding.serving.vllm.engine.engine_of`.
        strategy: of requests that name none, such as ``"dola:alpha=0.2"``.
        second_prompts: whether requests may read a second prompt (context-aware decoding, guidance).
        candidates: the most candidates that a request's contrastive search may have; 0 for none.
        options: of ``vllm.LLM``, such as ``dtype`` and ``max_model_len``.

    Raises:
        OptionError: vLLM is not installed, or an option that is out of range.
        ModelError: a model that is not there or that vLLM cannot serve so, or an amateur of other tokens.

    Example:
        >>> llm = load_llm("expert", amateur="amateur", dtype="float32")
        >>> llm.generate(["The old clockmaker"], sampling_params("contrastive-decoding:beta=1", max_tokens=64))
    """
    require_vllm()
    from vllm import LLM

    given = {name: options.pop(name) for name in ("hf_overrides", "additional_config") if name in options}
    trusts = bool(options.get("trust_remote_code", False))
    engine = engine_of(
        model, amateur=amateur, layers=layers, strategy=strategy, second_prompts=second_prompts, candidates=candidates,
        trust_remote_code=trusts, **given,
    )  # fmt: skip
    with plain_errors():
        return LLM(**{**options, **engine.options})


def sampling_params(
    strategy: str | Mapping[str, Any] | None = None, *, temperature: float = 0.0, **options: Any
) -> SamplingParams:
    """Make vLLM's sampling parameters of a request with a strategy.

    The engine checks the strategy when the request enters it; vLLM makes a ``VLLMValidationError`` of what is wrong.

    Args:
        strategy: such as ``"dola:layers=8;10,alpha=0.2"`` or ``{"strategy": "dola", "alpha": 0.2}``; "none" for the
            model's own logits; None for the engine's own strategy. The amateur is the engine's.
        temperature: 0 takes the most probable token, as :func:`decoding.generate` does.
        options: of ``vllm.SamplingParams``, such as ``max_tokens``.

    Raises:
        OptionError: vLLM is not installed, or something that is no strategy.
    """
    require_vllm()
    from vllm import SamplingParams

    fields = {} if strategy is None else request_fields(strategy)
    extra = {**(options.pop("extra_args", None) or {}), **fields}
    return SamplingParams(temperature=temperature, extra_args=extra or None, **options)
