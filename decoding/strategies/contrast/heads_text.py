"""Attention heads as text, and those of a file that ``decoding heads`` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from decoding.errors import OptionError, shown
from decoding.files import expanded

__all__ = ["best_heads", "heads_as_text", "heads_from_text"]

Head = tuple[int, int]  # layer and head, each counted from 0


def heads_as_text(heads: Sequence[Head]) -> str:
    """Write heads as a command line has them, ``5.0+5.3`` (layer.head)."""
    return "+".join(f"{layer}.{head}" for layer, head in heads)


def heads_from_text(text: str, name: str = "heads") -> dict[int, list[int]]:
    """Read heads by layer.

    Args:
        text: ``5.0+5.3`` (layer.head); or the file that ``decoding heads --output`` wrote, for the heads that it names,
            or ``FILE:20`` for the 20 with the highest scores in it.
        name: of the parameter, for messages.

    Raises:
        OptionError: it is neither, or the file has fewer heads with a score above 0.
    """
    try:
        return _by_layer(text)
    except ValueError:
        pass
    path, _, count = text.rpartition(":")
    if not (path and count.strip().isdecimal()):
        path, count = text, ""
    found = _read(name, text, path.strip())
    if not count:
        if not found["heads"]:
            raise OptionError(f"{name}={shown(text)}: the file names no head, since none had a score above 0")
        return _by_layer(found["heads"])
    best, wanted = best_heads(found["scores"]), int(count)
    if not 1 <= wanted <= len(best):
        raise OptionError(
            f"{name}={shown(text)}: the file has {len(best)} heads with a score above 0; must be 1 to {len(best)}"
        )
    return _by_layer(heads_as_text(best[:wanted]))


def best_heads(scores: Sequence[Sequence[float]]) -> list[Head]:
    """Heads with a score above 0, the highest first; of equal ones that of the lower layer and number.

    Args:
        scores: by layer, of each head; empty for a layer without attention.
    """
    scored = [(-score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row) if score > 0]
    return [(layer, head) for _, layer, head in sorted(scored)]


def _by_layer(text: str) -> dict[int, list[int]]:
    heads: dict[int, list[int]] = {}
    for item in text.split("+"):
        layer, _, head = item.partition(".")
        heads.setdefault(int(layer), []).append(int(head))
    return heads


def _read(name: str, text: str, path: str) -> dict[str, Any]:
    """The heads and the scores of a file that ``decoding heads`` wrote."""
    expected = OptionError(
        f"{name}={shown(text)}: must be layers and heads such as 5.0+5.3 (layer.head), or the file heads.json that "
        "decoding heads writes, or heads.json:N for its N best heads"
    )
    try:
        file = expanded(path)
        if file.suffix != ".json" or not file.is_file():
            raise expected
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["heads"]:
            _by_layer(content["heads"])
        best_heads(content["scores"])
    except OptionError:
        raise
    except (OSError, RuntimeError) as error:  # a name that cannot be one, no home folder
        raise expected from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OptionError(f"{name}={shown(text)}: the file is none that decoding heads wrote") from error
    return dict(content)
