"""Contrastive search and the contrastive decoding family for Hugging Face ``generate()``."""

from decoding.amateur import Prompt
from decoding.context_aware import ContextAware
from decoding.contrastive_decoding import ContrastiveDecoding
from decoding.contrastive_search import ContrastiveSearch
from decoding.dola import DoLa
from decoding.errors import DecodingError, DecodingWarning, InputError, ModelError, OptionError, OutOfMemoryError
from decoding.explanation import explain_contrastive_search
from decoding.export import export
from decoding.generation import generate
from decoding.lol import LOL
from decoding.processors import (
    ContrastiveDecodingLogitsProcessor,
    ContrastiveSearchLogitsProcessor,
    DoLaLogitsProcessor,
    LOLLogitsProcessor,
    StrategyLogitsProcessor,
)
from decoding.reading import Reading
from decoding.scorer import Scorer, Scores
from decoding.scoring import score
from decoding.strategy import Session, Strategy
from decoding.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "LOL",
    "ContextAware",
    "ContrastiveDecoding",
    "ContrastiveDecodingLogitsProcessor",
    "ContrastiveSearch",
    "ContrastiveSearchLogitsProcessor",
    "DecodingError",
    "DecodingWarning",
    "DoLa",
    "DoLaLogitsProcessor",
    "InputError",
    "LOLLogitsProcessor",
    "ModelError",
    "OptionError",
    "OutOfMemoryError",
    "Prompt",
    "Reading",
    "Scorer",
    "Scores",
    "Session",
    "Strategy",
    "StrategyLogitsProcessor",
    "Stream",
    "explain_contrastive_search",
    "export",
    "generate",
    "score",
]
