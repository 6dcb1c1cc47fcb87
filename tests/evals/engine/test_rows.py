"""Rows of data files, and every fault that a file can have, named in one line."""

import json

import pytest

from decoding.errors import InputError
from decoding.evals.engine.rows import documents, read_rows, rows_of


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path, *columns, skip_bad=False):
    return documents(read_rows(path), lambda row: tuple(row.text(column) for column in columns), skip_bad)


ROWS = [("Is it?", "Yes, it is;\nno"), ("Why?", 'Because "so"')]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'The Question,answer\nIs it?,"Yes, it is;\nno"\n\nWhy?,"Because ""so"""\n'),
        ("bom.csv", '\ufeffThe Question,answer\r\nIs it?,"Yes, it is;\nno"\r\nWhy?,"Because ""so"""'),
        ("a.json", json.dumps([{"The Question": q, "answer": a} for q, a in ROWS], indent=2)),
        ("a.txt", "\n".join(json.dumps({"The Question": q, "answer": a}) for q, a in ROWS) + "\n"),
    ],
)
def test_forms_are_told_apart_by_content(tmp_path, name, content):
    assert texts(written(tmp_path, name, content), "the_question", "answer") == (ROWS, [])


def test_a_text_file_has_a_row_a_line(tmp_path):
    path = written(tmp_path, "a.txt", b"[a, one\n\n{two}\ncaf\xe9\n")
    made, bad = texts(path, "text", skip_bad=True)
    assert made == [("[a, one",), ("{two}",)]
    assert bad == [
        f"{path}, row 3 (line 4), column text: has byte 0xe9 at character 4, which is not UTF-8; save it as UTF-8"
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,\n", r"row 1 \(line 2\), column b: is empty"),
        ("a,b\n1,2\n\n1\n", r"row 2 \(line 4\), column b: is missing; the row has a"),
        ('a,b\n"1\n1",2\n1, \n', r"row 2 \(line 4\), column b: is empty"),
        ("a,c\n1,2\n", r"row 1 \(line 2\), column b: is missing; the row has a, c"),
        ("a,b\n1,2,3\n", r"row 1 \(line 2\): 3 fields, 2 columns"),
        ('a,b\n1,"2\n', "line 2: is no valid CSV"),
        (b"a,b\n1,2\n1,caf\xe9 x\n", r"row 2 \(line 3\), column b: has byte 0xe9 at character 4, which is not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "is UTF-16"),
        ("", "holds no rows"),
        ("a,b\n", "holds no rows"),
        ('[{"a": "1", "b": 2}]', "row 1, column b: is int, not text"),
        ('[{"a": "1", "b": null}]', "row 1, column b: is missing"),
        ('[{"a": "1", "b": "\\ud800"}]', "row 1, column b: has a lone surrogate at character 1"),
        ("[1]", "row 1: is int; expected an object"),
        ('[{"a": "1",\n "b" 2}]', r"line 2, column 6: is no valid JSON"),
        ('{"a": "1", "b": "2"}\n{"a": "1"\n', r"line 2, column 10: is no valid JSON"),
        (b'{"a": "1", "b": "\xff"}\n', r"row 1 \(line 1\), column b: has byte 0xff at character 1"),
    ],
)
def test_a_fault_is_named_by_file_row_and_column(tmp_path, content, message):
    path = written(tmp_path, "data.csv", content)
    with pytest.raises(InputError, match=f"^{path}.*{message}") as raised:
        texts(path, "a", "b")
    assert "\n" not in str(raised.value)


def test_bad_rows_can_be_left_out_and_are_reported(tmp_path):
    path = written(tmp_path, "data.csv", b"a,b\n1,2\n,2\n3,\xff\n4,5\n")
    made, bad = texts(path, "a", "b", skip_bad=True)
    assert made == [("1", "2"), ("4", "5")]
    assert [line.split(": ")[0] for line in bad] == [
        f"{path}, row 2 (line 3), column a",
        f"{path}, row 3 (line 4), column b",
    ]


def test_a_file_without_one_good_row_is_no_data(tmp_path):
    path = written(tmp_path, "data.csv", "a,c\n1,2\n3,4\n")
    with pytest.raises(InputError, match=r"none of its 2 rows can be used; .*column b: is missing"):
        texts(path, "a", "b", skip_bad=True)


@pytest.mark.parametrize("source", ["absent.csv", "./absent", "/no/such/place", "a/b/c"])
def test_a_path_that_leads_nowhere(source):
    with pytest.raises(InputError, match="there is no such file or folder"):
        rows_of(source)


def test_an_empty_name_is_no_folder():
    with pytest.raises(InputError, match="name of the data is empty"):
        rows_of(" ")


def test_a_hub_name_that_cannot_be_loaded():
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"^nobody/nothing: no data of this name could be loaded \("):
        rows_of("nobody/nothing:configuration")


def test_a_folder_goes_through_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "data").mkdir()
    datasets.Dataset.from_list([{"a": "test"}]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    datasets.Dataset.from_list([{"a": "1"}, {"a": "2"}]).to_parquet(
        tmp_path / "data" / "validation-00000-of-00001.parquet"
    )
    rows = rows_of(str(tmp_path))
    assert [(row.number, row.text("a")) for row in rows] == [(1, "1"), (2, "2")]  # of the validation split
