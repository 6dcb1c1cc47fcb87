"""Units of text that metrics count: words between spaces, characters, or the tokens of a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from decoding.errors import OptionError, one_line
from decoding.files import expanded
from decoding.models.builtin import BUILT_IN
from decoding.models.gguf import is_gguf
from decoding.models.identity import tokenizer_digest
from decoding.models.loading import load_tokenizer
from decoding.models.quiet import quiet
from decoding.models.releases import RELEASES

__all__ = ["UNITS", "Splitter", "Units", "splitter", "units_identity"]

Splitter = Callable[[str], Sequence[str]]

# The papers split at whitespace; texts in scripts without spaces need characters (code points) or a tokenizer.
UNITS: dict[str, Splitter] = {
    "whitespace": str.split,
    "characters": lambda text: "".join(text.split()),
}
Units = str | Splitter


def splitter(units: Units) -> Splitter:
    """The function from a text to its units.

    Args:
        units: "whitespace"; "characters" (Unicode code points without whitespace: a Thai vowel sign is one); a
            sentencepiece model (``FILE.model``, needs the sentencepiece package); a folder, hub name or ``.gguf`` file
            with a tokenizer, or an embedded or fetched model; or such a function itself.

    Raises:
        OptionError: it is none of these.

    Example:
        >>> splitter("characters")("ま た ね")
        'またね'
    """
    if callable(units):
        return units
    if not isinstance(units, (str, Path)):
        raise OptionError(f"units={units!r}: expected a name, a file or folder, or a function from text to units")
    units = str(units)
    if units in UNITS:
        return UNITS[units]
    path = expanded(units)
    try:
        if path.is_file() and not is_gguf(units):
            return _pieces(path)
        return _tokens(_tokenizer(units))
    except Exception as error:  # of any kind, from the reader of a broken file
        raise OptionError(
            f"units={units!r}: must be {', '.join(UNITS)}, a sentencepiece model FILE.model, or the folder or "
            f"name of a tokenizer ({one_line(error)})"
        ) from error


def units_identity(units: str) -> str:
    """The name of units as results have it, with a digest of the file or tokenizer that it stands for.

    Raises:
        OptionError: there are no such units.
    """
    if units in UNITS:
        return units
    splitter(units)  # which says what is wrong
    path = expanded(units)
    is_file = path.is_file() and not is_gguf(units)
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if is_file else tokenizer_digest(_tokenizer(units))
    return f"{units} ({content})"


def _pieces(path: Path) -> Splitter:
    from sentencepiece import SentencePieceProcessor  # an optional package

    processor = SentencePieceProcessor(model_file=str(path))
    return lambda text: processor.encode(text, out_type=str)


def _tokenizer(units: str) -> Any:
    """The tokenizer of an embedded or fetched model, a .gguf file, a folder or a hub name."""
    if units in BUILT_IN or units in RELEASES or is_gguf(units):
        return load_tokenizer(units)
    path = expanded(units)
    if not path.is_dir() and units.count("/") != 1:
        raise OSError("there is no such file or folder")
    with quiet():  # a folder may hold a tokenizer alone
        return AutoTokenizer.from_pretrained(str(path) if path.is_dir() else units)


def _tokens(tokenizer: Any) -> Splitter:
    return lambda text: tokenizer.tokenize(text, add_special_tokens=False)
