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
    from decoding.drafts.record import DraftRecord
    from decoding.errors import DecodingError, DecodingWarning, InputError, ModelError, OptionError
    from decoding.explanation.explain import explain
    from decoding.explanation.records import Explanation
    from decoding.exporting import export
    from decoding.generation.logits_processor import StrategyLogitsProcessor
    from decoding.generation.session import Session, StreamSession
    from decoding.generation.strategy import Strategy
    from decoding.generation.warpers import PLessLogitsWarper, TopNSigmaLogitsWarper
    from decoding.models.forward_errors import OutOfMemoryError
    from decoding.models.loading import load
    from decoding.scoring.score import score
    from decoding.scoring.scorer import Scorer
    from decoding.scoring.scores import Scores
    from decoding.scoring.with_inputs import score_batch
    from decoding.strategies.adaptive_context import AdaptiveContext
    from decoding.strategies.audio_contrast import AudioContrast
    from decoding.strategies.context_aware import ContextAware
    from decoding.strategies.contrast.prompt import Prompt
    from decoding.strategies.contrast.reader_kinds import Inputs, LastToken, OtherPrompt, Self
    from decoding.strategies.contrastive_decoding import ContrastiveDecoding
    from decoding.strategies.contrastive_search.adaptive import AdaptiveContrastiveSearch
    from decoding.strategies.contrastive_search.strategy import ContrastiveSearch
    from decoding.strategies.deco import DeCo
    from decoding.strategies.degraded_selves import ExpertContrast, MaskedHeads, SkippedLayers
    from decoding.strategies.documents import Documents
    from decoding.strategies.dola import DoLa
    from decoding.strategies.fsd import FSD
    from decoding.strategies.guidance import Guidance
    from decoding.strategies.image_contrast import ImageContrast
    from decoding.strategies.logits_processors import (
        ContrastiveDecodingLogitsProcessor,
        ContrastiveSearchLogitsProcessor,
        DoLaLogitsProcessor,
        LOLLogitsProcessor,
    )
    from decoding.strategies.lol import LOL
    from decoding.strategies.proxy_tuning import ProxyTuning
    from decoding.strategies.registry import register
    from decoding.strategies.safe_decoding import SafeDecoding
    from decoding.strategies.sled import SLED
    from decoding.strategies.source_contrast import SourceContrast
    from decoding.strategies.truncation_samplers import PLess, TopNSigma
    from decoding.strategies.weighted_contrast import WeightedContrast
    from decoding.stream.output import ForwardOutput
    from decoding.stream.stream import Stream

_HOMES = {
    "AdaptiveContext": "decoding.strategies.adaptive_context",
    "AdaptiveContrastiveSearch": "decoding.strategies.contrastive_search.adaptive",
    "AudioContrast": "decoding.strategies.audio_contrast",
    "ContextAware": "decoding.strategies.context_aware",
    "ContrastiveDecoding": "decoding.strategies.contrastive_decoding",
    "ContrastiveDecodingLogitsProcessor": "decoding.strategies.logits_processors",
    "ContrastiveSearch": "decoding.strategies.contrastive_search.strategy",
    "ContrastiveSearchLogitsProcessor": "decoding.strategies.logits_processors",
    "DeCo": "decoding.strategies.deco",
    "DecodingError": "decoding.errors",
    "DecodingWarning": "decoding.errors",
    "Documents": "decoding.strategies.documents",
    "DoLa": "decoding.strategies.dola",
    "DoLaLogitsProcessor": "decoding.strategies.logits_processors",
    "DraftRecord": "decoding.drafts.record",
    "ExpertContrast": "decoding.strategies.degraded_selves",
    "explain": "decoding.explanation.explain",
    "Explanation": "decoding.explanation.records",
    "export": "decoding.exporting",
    "ForwardOutput": "decoding.stream.output",
    "FSD": "decoding.strategies.fsd",
    "generate": "decoding.api",
    "Guidance": "decoding.strategies.guidance",
    "ImageContrast": "decoding.strategies.image_contrast",
    "InputError": "decoding.errors",
    "Inputs": "decoding.strategies.contrast.reader_kinds",
    "LastToken": "decoding.strategies.contrast.reader_kinds",
    "load": "decoding.models.loading",
    "LOL": "decoding.strategies.lol",
    "LOLLogitsProcessor": "decoding.strategies.logits_processors",
    "MaskedHeads": "decoding.strategies.degraded_selves",
    "ModelError": "decoding.errors",
    "open_stream": "decoding.capabilities.capabilities",
    "OptionError": "decoding.errors",
    "OtherPrompt": "decoding.strategies.contrast.reader_kinds",
    "OutOfMemoryError": "decoding.models.forward_errors",
    "pipeline_kwargs": "decoding.api",
    "PLess": "decoding.strategies.truncation_samplers",
    "PLessLogitsWarper": "decoding.generation.warpers",
    "Prompt": "decoding.strategies.contrast.prompt",
    "ProxyTuning": "decoding.strategies.proxy_tuning",
    "register": "decoding.strategies.registry",
    "SafeDecoding": "decoding.strategies.safe_decoding",
    "score": "decoding.scoring.score",
    "score_batch": "decoding.scoring.with_inputs",
    "Scorer": "decoding.scoring.scorer",
    "Scores": "decoding.scoring.scores",
    "Self": "decoding.strategies.contrast.reader_kinds",
    "Session": "decoding.generation.session",
    "SkippedLayers": "decoding.strategies.degraded_selves",
    "SLED": "decoding.strategies.sled",
    "SourceContrast": "decoding.strategies.source_contrast",
    "Strategy": "decoding.generation.strategy",
    "StrategyLogitsProcessor": "decoding.generation.logits_processor",
    "Stream": "decoding.stream.stream",
    "StreamSession": "decoding.generation.session",
    "TopNSigma": "decoding.strategies.truncation_samplers",
    "TopNSigmaLogitsWarper": "decoding.generation.warpers",
    "WeightedContrast": "decoding.strategies.weighted_contrast",
}

__all__ = [
    "FSD",
    "LOL",
    "SLED",
    "AdaptiveContext",
    "AdaptiveContrastiveSearch",
    "AudioContrast",
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
    "Documents",
    "DraftRecord",
    "ExpertContrast",
    "Explanation",
    "ForwardOutput",
    "Guidance",
    "ImageContrast",
    "InputError",
    "Inputs",
    "LOLLogitsProcessor",
    "LastToken",
    "MaskedHeads",
    "ModelError",
    "OptionError",
    "OtherPrompt",
    "OutOfMemoryError",
    "PLess",
    "PLessLogitsWarper",
    "Prompt",
    "ProxyTuning",
    "SafeDecoding",
    "Scorer",
    "Scores",
    "Self",
    "Session",
    "SkippedLayers",
    "SourceContrast",
    "Strategy",
    "StrategyLogitsProcessor",
    "Stream",
    "StreamSession",
    "TopNSigma",
    "TopNSigmaLogitsWarper",
    "WeightedContrast",
    "__version__",
    "explain",
    "export",
    "generate",
    "load",
    "open_stream",
    "pipeline_kwargs",
    "register",
    "score",
    "score_batch",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
