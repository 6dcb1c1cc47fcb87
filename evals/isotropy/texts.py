"""Texts to analyse: files, read bit by bit, and batches of them in tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding.errors import InputError, OptionError
from decoding.evals.isotropy.settings import Settings
from decoding.files import expanded
from decoding.rows import is_table, iter_texts

__all__ = ["BUILT_IN_DATA", "EncodedText", "TextFile", "batches", "data_sets", "encoded_texts", "stories"]

FIELDS = ("text", "reference_text", "content", "sentence")  # searched in this order where no field is named
BATCHES_SORTED = 8  # number of batches whose texts are sorted by length together: little padding, bounded memory


class TextFile:
    """The texts of a file, one a line, or a column of a table; each iteration reads it again.

    Args:
        path: the file; CSV, JSON, JSON lines and parquet by their endings are tables, others have a text a line.
        field: name of the column; None takes the first there is of ``text``, ``reference_text``, ``content`` and
            ``sentence``.

    Raises:
        InputError: it cannot be read, or a row is broken or lacks the column; raised while iterating.
    """

    def __init__(self, path: str | Path, field: str | None = None) -> None:
        self.path = expanded(path)
        self.columns = FIELDS if field is None else (field,)

    def __iter__(self) -> Iterator[str]:
        for text in iter_texts(self.path, self.columns, "name its column with --field"):
            yield text.strip()

    def count(self) -> int:
        """The number of its texts, each of which is checked.

        Raises:
            InputError: as iterating, or it has none.
        """
        count = sum(1 for _ in self)
        if not count:
            expected = "rows" if is_table(self.path) else "one text a line; tables end in .csv, .jsonl or .parquet"
            raise InputError(f"--data {self.path}: holds no text; expected {expected}")
        return count


def stories(count: int = 300) -> list[str]:
    """Stories of the embedded models' world that they were not trained on."""
    from decoding.evals.miniature.stories import Storyteller
    from decoding.evals.miniature.world import make_world

    towns = tuple(entity.name for entity in make_world().entities if entity.kind == "town")
    rng = random.Random("isotropy")
    return [Storyteller(rng, towns).story(rng.randint(35, 70)) for _ in range(count)]


BUILT_IN_DATA = {"stories": stories}


def data_sets(options: Sequence[str], field: str | None) -> dict[str, tuple[Iterable[str], int]]:
    """Data sets with their number of texts by name, from ``--data`` options; every line of every file is checked.

    Args:
        options: each ``FILE``, ``NAME=FILE``, several of the latter with commas between, or a built-in name.
        field: see :class:`TextFile`.

    Raises:
        OptionError: a name given twice.
        InputError: see :class:`TextFile`.
    """
    sets: dict[str, tuple[Iterable[str], int]] = {}
    for option in options:
        parts = option.split(",")
        for part in parts if all("=" in item for item in parts) else [option]:
            name, equals, path = part.partition("=")
            if not equals:
                name, path = (part if part in BUILT_IN_DATA else Path(part).stem), part
            if not name.strip() or not path.strip():
                raise OptionError(f"--data {part!r}: must be FILE, NAME=FILE, or {', '.join(BUILT_IN_DATA)}")
            if name in sets:
                raise OptionError(f"--data {name}: given twice; names must differ: NAME=FILE")
            if path in BUILT_IN_DATA:
                texts = BUILT_IN_DATA[path]()
                sets[name] = texts, len(texts)
            else:
                file = TextFile(path, field)
                sets[name] = file, file.count()
    return sets


@dataclass(frozen=True)
class EncodedText:
    """One text in tokens.

    Attributes:
        index: its place in the data.
        text: the text.
        ids: its tokens, at most ``max_length``.
        kept: True for the tokens that count.
        whole: number of tokens without that limit.
    """

    index: int
    text: str
    ids: list[int]
    kept: list[bool]
    whole: int


def encoded_texts(texts: Iterable[str], tokenizer: Any, settings: Settings, max_length: int) -> Iterator[EncodedText]:
    """Texts in tokens, in their order; as in the paper, a text of fewer than two characters has no tokens.

    The tokenizer's own BOS token is read and counts towards ``max_length``; an end token that it adds is left out.

    Raises:
        InputError: an item that is no text.
    """
    special = set(tokenizer.all_special_ids)
    ends = special - {tokenizer.bos_token_id}
    read = 0
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(f"text {index} is of type {type(text).__name__}; must be a string")
        text = text.strip()
        if len(text) < 2:
            yield EncodedText(index, text, [], [], 0)
            continue
        ids = list(tokenizer(text, verbose=False)["input_ids"])
        while ids and ids[-1] in ends:
            ids.pop()
        whole = len(ids)
        ids = ids[:max_length]
        kept = [not (settings.skip_special and token in special) for token in ids]
        if settings.skip_bos and kept:
            kept[0] = False
        yield EncodedText(index, text, ids, kept, whole)
        read += 1
        if read == settings.max_texts:
            return


def batches(texts: Iterable[EncodedText], batch_tokens: int) -> Iterator[list[EncodedText]]:
    """Texts of about the same length together, at most so many tokens with padding, or one text."""
    texts = iter(texts)
    while True:
        window, tokens = [], 0
        for text in texts:
            window.append(text)
            tokens += len(text.ids)
            if tokens >= BATCHES_SORTED * batch_tokens:
                break
        if not window:
            return
        batch: list[EncodedText] = []
        for text in sorted(
            window, key=lambda text: -len(text.ids)
        ):  # the longest first: memory runs out early or never
            if batch and (len(batch) + 1) * len(batch[0].ids) > batch_tokens:
                yield batch
                batch = []
            batch.append(text)
        yield batch
