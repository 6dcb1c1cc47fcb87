"""Contrastive search and the contrastive decoding family for Hugging Face ``generate()``."""

__version__ = "0.1.0"
