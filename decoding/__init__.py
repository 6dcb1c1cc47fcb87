"""Contrastive search and the contrastive decoding family for Hugging Face ``generate()``.

Names are imported when they are first used, so that ``import decoding`` and the command line's help load no model code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from decoding.lazy import lazy_names
from decoding.versions import __version__

if TYPE_CHECKING:
    from decoding.api import generate, pipeline_kwargs
    from decoding.capabilities.capabilities import open_stream
    from decoding.errors import DecodingError, DecodingWarning, InputError, ModelError, OptionError
    from decoding.exporting import export
    from decoding.generation.logits_processor import StrategyLogitsProcessor
    from decoding.generation.session import Session, StreamSession
    from decoding.generation.strategy import Strategy
    from decoding.generation.warpers import PLessLogitsWarper, TopNSigmaLogitsWarper
    from decoding.models.forward_errors import OutOfMemoryError
    from decoding.models.loading import load
    from decoding.scoring.score import score
    from decoding.scoring.scorer import Scorer, Scores
    from decoding.strategies.context_aware import ContextAware
    from decoding.strategies.contrast.prompt import Prompt
    from decoding.strategies.contrastive_decoding import ContrastiveDecoding
    from decoding.strategies.contrastive_search.adaptive import AdaptiveContrastiveSearch
    from decoding.strategies.contrastive_search.explanation import explain_contrastive_search
    from decoding.strategies.contrastive_search.strategy import ContrastiveSearch
    from decoding.strategies.deco import DeCo
    from decoding.strategies.dola import DoLa
    from decoding.strategies.fsd import FSD
    from decoding.strategies.logits_processors import (
        ContrastiveDecodingLogitsProcessor,
        ContrastiveSearchLogitsProcessor,
        DoLaLogitsProcessor,
        LOLLogitsProcessor,
    )
    from decoding.strategies.lol import LOL
    from decoding.strategies.registry import register
    from decoding.strategies.sled import SLED
    from decoding.strategies.truncation_samplers import PLess, TopNSigma
    from decoding.stream.output import ForwardOutput
    from decoding.stream.stream import Stream

_HOMES = {
    "AdaptiveContrastiveSearch": "decoding.strategies.contrastive_search.adaptive",
    "ContextAware": "decoding.strategies.context_aware",
    "ContrastiveDecoding": "decoding.strategies.contrastive_decoding",
    "ContrastiveDecodingLogitsProcessor": "decoding.strategies.logits_processors",
    "ContrastiveSearch": "decoding.strategies.contrastive_search.strategy",
    "ContrastiveSearchLogitsProcessor": "decoding.strategies.logits_processors",
    "DeCo": "decoding.strategies.deco",
    "DecodingError": "decoding.errors",
    "DecodingWarning": "decoding.errors",
    "DoLa": "decoding.strategies.dola",
    "DoLaLogitsProcessor": "decoding.strategies.logits_processors",
    "FSD": "decoding.strategies.fsd",
    "InputError": "decoding.errors",
    "LOL": "decoding.strategies.lol",
    "LOLLogitsProcessor": "decoding.strategies.logits_processors",
    "ModelError": "decoding.errors",
    "OptionError": "decoding.errors",
    "OutOfMemoryError": "decoding.models.forward_errors",
    "PLess": "decoding.strategies.truncation_samplers",
    "PLessLogitsWarper": "decoding.generation.warpers",
    "Prompt": "decoding.strategies.contrast.prompt",
    "ForwardOutput": "decoding.stream.output",
    "SLED": "decoding.strategies.sled",
    "Scorer": "decoding.scoring.scorer",
    "Scores": "decoding.scoring.scorer",
    "Session": "decoding.generation.session",
    "Strategy": "decoding.generation.strategy",
    "StrategyLogitsProcessor": "decoding.generation.logits_processor",
    "Stream": "decoding.stream.stream",
    "StreamSession": "decoding.generation.session",
    "TopNSigma": "decoding.strategies.truncation_samplers",
    "TopNSigmaLogitsWarper": "decoding.generation.warpers",
    "explain_contrastive_search": "decoding.strategies.contrastive_search.explanation",
    "export": "decoding.exporting",
    "generate": "decoding.api",
    "load": "decoding.models.loading",
    "open_stream": "decoding.capabilities.capabilities",
    "pipeline_kwargs": "decoding.api",
    "register": "decoding.strategies.registry",
    "score": "decoding.scoring.score",
}

__all__ = [
    "FSD",
    "LOL",
    "SLED",
    "AdaptiveContrastiveSearch",
    "ContextAware",
    "ContrastiveDecoding",
    "ContrastiveDecodingLogitsProcessor",
    "ContrastiveSearch",
    "ContrastiveSearchLogitsProcessor",
    "DeCo",
    "DecodingError",
    "DecodingWarning",
    "DoLa",
    "DoLaLogitsProcessor",
    "ForwardOutput",
    "InputError",
    "LOLLogitsProcessor",
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "PLess",
    "PLessLogitsWarper",
    "Prompt",
    "Scorer",
    "Scores",
    "Session",
    "Strategy",
    "StrategyLogitsProcessor",
    "Stream",
    "StreamSession",
    "TopNSigma",
    "TopNSigmaLogitsWarper",
    "__version__",
    "explain_contrastive_search",
    "export",
    "generate",
    "load",
    "open_stream",
    "pipeline_kwargs",
    "register",
    "score",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
