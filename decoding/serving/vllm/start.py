"""What is checked when an engine starts, before it loads weights."""

from __future__ import annotations

import weakref
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from decoding.errors import OptionError
from decoding.serving.vllm.admission import admission_of
from decoding.serving.vllm.engines import ENGINES, RunningEngine
from decoding.serving.vllm.settings import Settings, check_vocabularies, readers_of

__all__ = ["checks_beside"]

# Ways of drafting from the text alone. The others read hidden states, or have a model of their own.
DRAFTS_FROM_TEXT = ("ngram", "ngram_gpu", "suffix")
GROUP_SCHEDULER = "decoding.serving.vllm.scheduler.GroupScheduler"


def checks_beside(checks: type[VerifyAndUpdateConfig] | None) -> type[VerifyAndUpdateConfig]:
    """The class of checks that vLLM runs for an architecture: its own checks, then those of the settings here."""

    class ContrastChecks(checks or VerifyAndUpdateConfig):  # type: ignore[misc]
        @classmethod
        def verify_and_update_config(cls, vllm_config: Any) -> None:
            super().verify_and_update_config(vllm_config)
            if not vllm_config.instance_id:
                from vllm.utils import random_uuid

                vllm_config.instance_id = random_uuid()
            settings, amateur_config = readers_of(vllm_config)
            check_engine(vllm_config, settings)
            lacks_tokens = amateur_config is not None and check_vocabularies(
                vllm_config.model_config, str(settings.readers.amateur), amateur_config
            )
            if settings.readers.followers or lacks_tokens:  # it knows the tokens of prompts
                vllm_config.scheduler_config.scheduler_cls = GROUP_SCHEDULER
                vllm_config.scheduler_config.async_scheduling = False
            rewinds = vllm_config.use_v2_model_runner or not current_platform.is_cpu()
            fixed = vllm_config.speculative_config is not None and not vllm_config.use_v2_model_runner
            compilation = None if vllm_config.use_v2_model_runner else vllm_config.compilation_config
            model_config, instance_id = vllm_config.model_config, vllm_config.instance_id
            ENGINES[instance_id] = RunningEngine(settings, model_config, rewinds, fixed, compilation)
            weakref.finalize(vllm_config, ENGINES.pop, instance_id, None)
            if not fixed:
                model_config.logits_processors = [*(model_config.logits_processors or ()), admission_of(instance_id)]

    return ContrastChecks


def check_engine(vllm_config: Any, settings: Settings) -> None:
    """Refuse ways of serving that strategies do not have.

    Raises:
        OptionError: names the way, and the way out.
    """
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise OptionError(
            "pipeline parallelism: strategies need all layers on each device; use tensor_parallel_size, with "
            "pipeline_parallel_size=1"
        )
    if vllm_config.parallel_config.use_ubatching:
        raise OptionError(
            "microbatches: strategies need a step's tokens in one pass; leave enable_dbo and ubatch_size out"
        )
    if vllm_config.model_config.enable_prompt_embeds and (settings.readers.followers or settings.readers.amateur):
        raise OptionError(
            "enable_prompt_embeds: an amateur, second prompts and candidates are read by their tokens; leave it out"
        )
    if settings.readers.adapter and vllm_config.lora_config is None:
        raise OptionError(
            f"amateur={settings.readers.amateur!r} is a LoRA adapter: start the engine with enable_lora, and "
            "max_lora_rank at least the adapter's"
        )
    if settings.readers.adapter and current_platform.is_cpu() and vllm_config.lora_config.max_loras < 2:
        raise OptionError(
            "max_loras=1: on a CPU vLLM gives requests without an adapter the last of its places for adapters, which "
            "must stay empty; must be at least 2"
        )
    if vllm_config.lora_config is not None and not settings.readers.adapter:
        raise OptionError(
            "enable_lora: adapters are served as an engine's amateur alone; merge the adapter into the model"
        )
    if settings.readers.followers:
        _check_groups(vllm_config, settings)
    drafts = vllm_config.speculative_config
    if drafts is None:
        return
    if drafts.method not in DRAFTS_FROM_TEXT:
        raise OptionError(
            f"speculative decoding by {drafts.method!r}: strategies read the hidden states that it drafts from; use "
            f"{' or '.join(map(repr, DRAFTS_FROM_TEXT))}, which draft from the text"
        )
    if not vllm_config.use_v2_model_runner and settings.default is None:
        raise OptionError(
            "speculative decoding with the V1 model runner: requests cannot have strategies of their own; give the "
            'engine one ("strategy" in its settings), leave drafts out, or set VLLM_USE_V2_MODEL_RUNNER=1'
        )


def _check_groups(vllm_config: Any, settings: Settings) -> None:
    """Refuse what the scheduler of groups does not have."""
    asked = (
        "candidates" if settings.readers.candidates else "an adapter" if settings.readers.adapter else "second_prompts"
    )
    if vllm_config.speculative_config is not None:
        raise OptionError(f"{asked}: groups of requests have no drafts; leave speculative decoding out")
    if vllm_config.kv_transfer_config is not None:
        raise OptionError(f"{asked}: groups of requests are not moved between engines; leave kv_transfer out")
    scheduler = vllm_config.scheduler_config.scheduler_cls
    if scheduler not in (None, GROUP_SCHEDULER):
        raise OptionError(f"{asked}: groups have a scheduler of their own; leave scheduler_cls={scheduler!r} out")
    if vllm_config.model_config.enforce_eager:
        return
    if settings.readers.candidates:
        raise OptionError("candidates: contrastive search needs enforce_eager: captured steps keep no hidden states")
    if not vllm_config.use_v2_model_runner:
        raise OptionError(
            f"{asked}: groups of requests need enforce_eager with the V1 model runner; or set "
            "VLLM_USE_V2_MODEL_RUNNER=1"
        )
