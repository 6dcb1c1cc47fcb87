"""Units of text that metrics count: words between spaces, characters, or the tokens of a tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from decoding.errors import OptionError, one_line
from decoding.models.builtin import BUILT_IN
from decoding.models.loading import DTYPES
from decoding.models.quiet import quiet

__all__ = ["UNITS", "Splitter", "Units", "splitter"]

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
            sentencepiece model (``FILE.model``, needs the sentencepiece package); a folder or hub name with a
            tokenizer, or an embedded model; or such a function itself.

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
    path = Path(units).expanduser()
    try:
        if path.is_file():
            return _pieces(path)
        with quiet():
            if units in BUILT_IN:
                return _tokens(BUILT_IN[units](DTYPES["float32"])[1])
            if not path.is_dir() and units.count("/") != 1:
                raise OSError("there is no such file or folder")
            return _tokens(AutoTokenizer.from_pretrained(str(path) if path.is_dir() else units))
    except Exception as error:  # of any kind, from the reader of a broken file
        raise OptionError(
            f"units={units!r}: must be {', '.join(UNITS)}, a sentencepiece model FILE.model, or the folder or "
            f"name of a tokenizer ({one_line(error)})"
        ) from error


def _pieces(path: Path) -> Splitter:
    from sentencepiece import SentencePieceProcessor  # an optional package

    processor = SentencePieceProcessor(model_file=str(path))
    return lambda text: processor.encode(text, out_type=str)


def _tokens(tokenizer: Any) -> Splitter:
    return lambda text: tokenizer.tokenize(text, add_special_tokens=False)
