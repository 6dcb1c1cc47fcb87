"""Rows of data files, and every fault that a file can have, named in one line."""

import csv
import gzip
import json
import sys

import pytest

from decoding.errors import InputError
from decoding.rows import documents, iter_rows, iter_texts, read_rows, rows_of


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


# --- parquet ---------------------------------------------------------------------------------------------------------


def parquet(path, rows):
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.bin"])
def test_parquet_rows_are_those_of_json_lines(tmp_path, name):
    rows = [
        {"The Question": f"{i}?", "targets": {"choices": ["No", "Yes"], "labels": [1, 0]}, "n": i, "none": None}
        for i in range(5)
    ]
    found = read_rows(parquet(tmp_path / name, rows))
    lines = read_rows(written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert [(row.number, row.fields, row.columns) for row in found] == [
        (row.number, row.fields, row.columns) for row in lines
    ]
    assert [row.line for row in found] == [None] * 5
    assert found[2].text("the_question") == "2?"
    with pytest.raises(InputError, match=rf"^{tmp_path / name}, row 1, column none: is missing"):
        found[0].text("none")


@pytest.mark.parametrize("left", [4, 8, 200])
def test_a_parquet_file_that_is_cut_off_is_one_line(tmp_path, left):
    path = parquet(tmp_path / "a.parquet", [{"a": "text" * 100}])
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=rf"^{path}: cannot be read as parquet \(") as raised:
        read_rows(path)
    assert "\n" not in str(raised.value)


def test_parquet_whose_pages_are_damaged_is_one_line(tmp_path):
    path = parquet(tmp_path / "a.parquet", [{"a": f"{i} some text"} for i in range(50)])
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: cannot be read"):
        read_rows(path)


def test_text_in_parquet_that_is_not_utf_8_is_one_line(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    broken = pyarrow.StringArray.from_buffers(
        1, pyarrow.array([0, 4], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"caf\xe9")
    )
    write_table(pyarrow.table({"a": broken}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as parquet \("):
        read_rows(tmp_path / "a.parquet")


def test_without_pyarrow_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "a.parquet", [{"a": "1"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        InputError, match=rf"^{path}: parquet files need pyarrow .*; pip install 'contrastive-decoding\[eval\]'$"
    ):
        read_rows(path)
    # Nothing else needs it.
    assert texts(written(tmp_path, "a.csv", "a\n1\n"), "a") == ([("1",)], [])


# --- a row at a time -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.jsonl.gz"])
def test_rows_are_read_as_they_are_needed(tmp_path, name):
    """The first row is there although a later one is broken, in a file longer than a buffer."""
    good = {"csv": "word,b\n", "txt": "word\n"}.get(name.split(".")[1], '{"text": "word"}\n') * 20_000
    last = {"csv": '"\n', "txt": "caf\udce9"}.get(name.split(".")[1], "{\n")
    content = (("text,b\n" if name == "a.csv" else "") + good + last).encode("utf-8", "surrogateescape")
    rows = iter_rows(written(tmp_path, name, gzip.compress(content) if name.endswith("gz") else content))
    assert next(rows).text("text") == "word"
    with pytest.raises(InputError, match=r"line 2000[12]|\(line 20001\)"):
        [row.text("text") for row in rows]


def test_a_line_separator_inside_json_is_no_line_end(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"a": "one\u2028two"}\n{"a": "three\x85"}\n')
    assert texts(path, "a") == ([("one\u2028two",), ("three\x85",)], [])


def test_the_limit_on_csv_fields_stays_that_of_the_process(tmp_path):
    path = written(tmp_path, "a.csv", "a\n" + "x" * 200_000 + "\ny\n")
    limit = csv.field_size_limit()
    rows = iter_rows(path)
    assert len(next(rows).text("a")) == 200_000
    assert csv.field_size_limit() == limit
    assert next(rows).text("a") == "y"


# --- texts -----------------------------------------------------------------------------------------------------------


def test_texts_are_the_lines_of_a_file_or_a_column_of_a_table(tmp_path):
    columns = ("prompt", "Some Text")
    assert list(iter_texts(written(tmp_path, "a.txt", "one\r\n\n[two\n"), columns)) == ["one", "[two"]
    assert list(iter_texts(written(tmp_path, "a.tokens", "a,b\n{c\n"), columns)) == ["a,b", "{c"]
    expected = ["one", "", "[two"]
    rows = [
        {"some_text": "one", "prompt": None},
        {"some_text": "no", "prompt": ""},
        {"some_text": None, "prompt": "[two"},
    ]
    lines = "\n".join(map(json.dumps, rows))
    assert list(iter_texts(written(tmp_path, "a.jsonl", lines), columns)) == expected
    assert list(iter_texts(written(tmp_path, "a.JSONL.gz", gzip.compress(lines.encode())), columns)) == expected
    assert list(iter_texts(written(tmp_path, "a.csv", "some text\none\n[two\n"), columns)) == ["one", "[two"]
    assert list(iter_texts(parquet(tmp_path / "a.parquet", rows), columns)) == expected


def test_a_row_without_text_is_named(tmp_path):
    path = written(tmp_path, "a.jsonl", '{"text": 3, "b": "x"}')
    with pytest.raises(InputError, match=r"row 1 \(line 1\): has no text in text; the row has text, b; name it$"):
        list(iter_texts(path, ("text",), "name it"))
    for name in ("a.txt", "a.csv"):
        path = written(tmp_path, name, b"text\n\xff\xfe caf\xe9\n")
        with pytest.raises(InputError, match=r"column text: has byte 0xff at character 1"):
            list(iter_texts(path, ("text",)))


def test_a_column_is_found_whatever_its_case(tmp_path):
    (row,) = read_rows(written(tmp_path, "a.csv", "Best Answer\nyes\n"))
    assert row.text("Best Answer") == row.text("best_answer") == row.text("BEST ANSWER") == "yes"
    assert "best answer" in row
    with pytest.raises(InputError, match="column Best Answer: is wrong"):
        raise row.fault("best_answer", "is wrong")
