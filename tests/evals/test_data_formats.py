"""Whatever reads data reads the same from CSV, JSON, JSON lines and parquet."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decoding.cli.options import prompts_of
from decoding.errors import InputError
from decoding.evals.harness.documents import truthfulqa_documents
from decoding.evals.isotropy import TextFile
from decoding.evals.metrics.table import texts_of
from decoding.evals.tasks import factor
from decoding.evals.tasks.halueval.data import load as load_halueval
from decoding.evals.tasks.knowledge_conflict.data import load as load_conflicts
from decoding.evals.tasks.multilingual import data as multilingual
from decoding.evals.tasks.truthfulqa.data import load
from decoding.induce import read_examples

QUESTION = {
    "Question": "Is it so?",
    "Best Answer": "It is not",
    "Correct Answers": "It is not; No",
    "Incorrect Answers": "Yes; It is",
}
TARGETS = {"choices": ["No.", "Yes."], "labels": [1, 0]}
QA = {"knowledge": "k", "question": "Q?", "right_answer": "r", "hallucinated_answer": "h"}
DIALOGUE = {"knowledge": "k", "dialogue_history": "[Human]: Q?", "right_response": "r", "hallucinated_response": "h"}
SUMMARY = {"document": "d", "right_summary": "r", "hallucinated_summary": "h"}
CONFLICT = {"question": "Q?", "context": "c", "answer": "a", "memory": "m", "agreeing_context": "g", "others": "o"}
PROBLEM = {"task_id": "a/1", "prompt": "def f():", "entry_point": "f", "test": "def check(f): pass"}
FACTOR = {"full_prefix": "p.", "turncated_prefixes": "t.", "completion": "c", "contradiction_0": "d"}


def metrics_of(path: Path) -> Any:
    return [(row.texts, row.prefixes) for row in texts_of(path, ["output"], None, "prefix_text", "none", settings=None)]  # type: ignore[arg-type]


def without_file(read: Callable[[str], Any]) -> Callable[[Path], Any]:
    """A reader by name, whose documents are compared without the file that they name."""
    return lambda path: read(str(path))[0]


READERS: dict[str, tuple[Callable[[Path], Any], dict[str, Any]]] = {
    "truthfulqa": (without_file(load), QUESTION),
    "truthfulqa targets": (
        without_file(load),
        {"question": "Is it so?", "mc1_targets": TARGETS, "mc2_targets": TARGETS},
    ),
    "harness": (lambda path: truthfulqa_documents(str(path))["validation"].to_list(), QUESTION),
    "factor": (without_file(factor.load), FACTOR),
    "halueval": (without_file(load_halueval), QA),
    "halueval dialogue": (without_file(load_halueval), DIALOGUE),
    "halueval summarization": (without_file(load_halueval), SUMMARY),
    "conflicts": (without_file(load_conflicts), CONFLICT),
    "passages": (lambda path: multilingual.passages(multilingual.Source(path)), {"prefix_text": "a", "text": "b"}),
    "translations": (
        lambda path: multilingual.translations(multilingual.Source(path), "de", "en"),
        {"de": "Ja", "en": "Yes"},
    ),
    "articles": (multilingual.articles, {"document": "d", "summary": "s"}),
    "problems": (multilingual.problems, PROBLEM),
    "induce": (read_examples, QA),
    "isotropy": (lambda path: list(TextFile(path)), {"id": "1", "text": "some text"}),
    "prompts": (lambda path: prompts_of(None, path), {"prompt": "Once"}),
    "metrics": (metrics_of, {"output": "a text", "prefix_text": "p"}),
}


def written(path: Path, row: dict[str, Any]) -> Path:
    """A file of two such rows in the format of its name."""
    rows = [row, {name: f"{value} again" if isinstance(value, str) else value for name, value in row.items()}]
    lines = "\n".join(map(json.dumps, rows))
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows, indent=1), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", READERS)
def test_all_formats_give_the_same(name: str, tmp_path: Path) -> None:
    read, row = READERS[name]
    expected = read(written(tmp_path / "data.jsonl", row))
    assert len(expected[0] if isinstance(expected, tuple) else expected) in (1, 2)
    flat = all(isinstance(value, str) for value in row.values())
    for suffix in (".parquet", ".json", ".jsonl.gz", *([".csv"] if flat else [])):
        assert read(written(tmp_path / f"data{suffix}", row)) == expected, suffix


@pytest.mark.parametrize("name", READERS)
def test_a_broken_parquet_file_is_one_line(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "data.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=rf"^{path}: cannot be read as parquet \(") as raised:
        READERS[name][0](path)
    assert "\n" not in str(raised.value)
