"""POPE's questions about images, and which of them thresholds are chosen on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from decoding.errors import OptionError
from decoding.files import expanded
from decoding.rows import Row, documents, rows_of

__all__ = ["PROMPT", "Question", "calibration_split", "checked_prompt", "load"]

PROMPT = "{question} Please answer this question with one word."


def checked_prompt(prompt: str) -> str:
    """A prompt with a place for the question.

    Raises:
        OptionError: it has none.
    """
    if "{question}" not in prompt:
        raise OptionError(f"--prompt {prompt!r}: must have {{question}} where the question stands")
    return prompt


@dataclass(frozen=True)
class Question:
    """One question about an image.

    Attributes:
        id: the row's number from 1.
        image: the file, or its bytes where the data hold them.
        image_hash: 16 hexadecimal digits of the file's bytes.
        question: its text.
        answer: "yes" or "no".
        where: file and row that it comes from, for messages.
    """

    id: str
    image: Path | bytes
    image_hash: str
    question: str
    answer: str
    where: str = field(default="", compare=False)


def load(source: str, images: Path | None = None, skip_bad: bool = False) -> tuple[list[Question], list[str]]:
    """POPE's questions, and one line for each that was left out.

    Args:
        source: such as ``coco_pope_adversarial.json``, with the columns image, text (or question), and label (or
            answer): a file, or a hub name.
        images: the folder of the images; None is that of the file.
        skip_bad: leave bad rows out instead of raising.

    Raises:
        InputError: no such data, or a bad row without ``skip_bad``, named by file, row and column.
    """
    folder = expanded(source).parent if images is None else expanded(images)
    hashes: dict[Path, str] = {}

    def question(row: Row) -> Question:
        text = row.first_text(("text", "question")) or row.text("text")
        column = "label" if "label" in row else "answer" if "answer" in row else "label"
        answer = row.text(column).strip().lower()
        if answer not in ("yes", "no"):
            raise row.fault(column, f"is {answer!r}; must be yes or no")
        given = row.value("image")
        if isinstance(given, Mapping) and isinstance(given.get("bytes"), bytes):  # as the hub's parquet files have it
            content: bytes = given["bytes"]
            return Question(str(row.number), content, _hash(content), text, answer, row.where)
        path = folder / row.checked("image", given)
        if path not in hashes:
            try:
                hashes[path] = _hash(path.read_bytes())
            except OSError as error:
                raise row.fault("image", f"{path} cannot be read; --images DIR says where the images are") from error
        return Question(str(row.number), path, hashes[path], text, answer, row.where)

    return documents(rows_of(source), question, skip_bad)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def calibration_split(questions: Sequence[Question], count: int, seed: int) -> tuple[list[Question], list[Question]]:
    """Questions to choose thresholds on, and the others: all questions about an image are on one side.

    Args:
        questions: all of them.
        count: at least so many are to choose on.
        seed: of the draw of images.

    Raises:
        OptionError: no image would be left for the report.
    """
    images = sorted({question.image_hash for question in questions})
    random.Random(f"calibration {seed}").shuffle(images)
    chosen: set[str] = set()
    for image in images:
        if sum(question.image_hash in chosen for question in questions) >= count:
            break
        chosen.add(image)
    first, others = (
        [question for question in questions if (question.image_hash in chosen) is wanted] for wanted in (True, False)
    )
    if not others:
        raise OptionError(
            f"--calibration {count}: the data have {len(questions)} questions about {len(images)} images; some images "
            "must be left for the report"
        )
    return first, others
