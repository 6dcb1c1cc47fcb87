"""The engines of this process: what they admit, and their models."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

from decoding.serving.vllm.settings import Settings

__all__ = ["ENGINES", "MODELS", "RunningEngine"]


@dataclass(frozen=True)
class RunningEngine:
    """An engine whose requests this process admits.

    Attributes:
        settings: what it was started with.
        model_config: vLLM's configuration of its model.
        rewinds_seeds: whether a request with a seed may read its prompt in parts. vLLM's V1 runner ends the whole
            engine at the first such request on a CPU, where random generators have no offset.
        has_one_strategy: whether requests have the engine's own strategy and no other one. vLLM's V1 runner asks no
            processor where there are drafts.
        compilation: vLLM's configuration of captured graphs; None where rows of a step are known in any case.
    """

    settings: Settings
    model_config: Any
    rewinds_seeds: bool
    has_one_strategy: bool = False
    compilation: Any = None

    @property
    def scores_prompts(self) -> bool:
        """Whether requests may ask for log-probabilities of their prompts: not where a graph is all that runs."""
        return self.compilation is None or self.compilation.cudagraph_mode.mixed_mode().name != "FULL"


# Both by the identity that an engine's vLLM configuration has, as long as that lives.
ENGINES: dict[str, RunningEngine] = {}
# Where the sampler's processor finds its model.
MODELS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
