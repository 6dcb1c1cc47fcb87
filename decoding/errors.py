"""The errors of this library: few classes, each message one line that says what was given and what is accepted."""

from __future__ import annotations

__all__ = ["DecodingError", "InputError", "ModelError", "OptionError"]


class DecodingError(ValueError):
    """Base of every error that this library raises on purpose."""


class OptionError(DecodingError):
    """A hyper-parameter is out of range, or a generation option cannot be honoured by the strategy."""


class InputError(DecodingError):
    """The prompt, mask or cache given cannot be decoded from."""


class ModelError(DecodingError):
    """The model, or the folder it should come from, cannot serve the strategy."""
