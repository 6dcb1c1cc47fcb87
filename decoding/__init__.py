"""Contrastive search and the contrastive decoding family for Hugging Face ``generate()``."""

from decoding.contrastive_search import ContrastiveSearch
from decoding.errors import DecodingError, InputError, ModelError, OptionError
from decoding.generation import generate
from decoding.processors import ContrastiveSearchLogitsProcessor, StrategyLogitsProcessor
from decoding.reading import Reading
from decoding.strategy import Session, Strategy
from decoding.stream import Stream

__version__ = "0.1.0"

__all__ = [
    "ContrastiveSearch",
    "ContrastiveSearchLogitsProcessor",
    "DecodingError",
    "InputError",
    "ModelError",
    "OptionError",
    "Reading",
    "Session",
    "Strategy",
    "StrategyLogitsProcessor",
    "Stream",
    "generate",
]
