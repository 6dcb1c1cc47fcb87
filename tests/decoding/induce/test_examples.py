"""Reading hallucinated answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from decoding import InputError
from decoding.induce import Example, read_examples

HALUEVAL = Path(__file__).parents[4] / "shared/data/halueval"


def _file(folder: Path, *records: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


def test_each_kind_of_record(tmp_path: Path) -> None:
    path = _file(
        tmp_path,
        {"knowledge": "k", "question": "Q1? ", "right_answer": "r", "hallucinated_answer": " w1"},
        {"ID": "2", "user_query": "Q2", "chatgpt_response": "w2", "hallucination": "yes"},
        {"ID": "3", "user_query": "Q3", "chatgpt_response": "right", "hallucination": "no"},
        {"prompt": "Q4", "answer": "w4"},
        {"question": "Q5", "answer": "right", "incorrect_answer": "w5"},
    )
    assert read_examples(path) == [Example(f"Q{i}?" if i == 1 else f"Q{i}", f"w{i}") for i in (1, 2, 4, 5)]


def test_a_json_list_is_read_as_well(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"question": "q", "hallucinated_answer": "w"}], indent=1), encoding="utf-8")
    assert read_examples(path) == [Example("q", "w")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"question": "q"}',
            r"row 1 \(line 1\): has no hallucinated answer; the row has question; expected one of hallucinated_",
        ),
        ('{"hallucinated_answer": "w"}', r"row 1 \(line 1\): has no question"),
        ('{"question": "q", "answer": "a"}\n{"question"', r"line 2, column 12: is no valid JSON"),
        ("[1]", r"row 1: is int; expected an object"),
        ('{"question": "q", "answer": "a", "hallucination": "no"}', r"holds no hallucinated answer"),
        ("", r"holds no rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.jsonl: cannot be read"):
        read_examples(tmp_path / "nowhere.jsonl")


@pytest.mark.skipif(not HALUEVAL.is_dir(), reason="HaluEval lies outside the repository and is not here")
def test_halueval_is_read_as_it_is_published() -> None:
    qa = read_examples(HALUEVAL / "qa_one-turn_data.json")
    assert len(qa) == 500
    assert qa[0].answer == "First for Women was started first."
    general = read_examples(HALUEVAL / "general_data.json")
    records = [json.loads(line) for line in (HALUEVAL / "general_data.json").read_text(encoding="utf-8").splitlines()]
    assert len(general) == sum(record["hallucination"] == "yes" for record in records) > 500
