"""Reading texts: files, built-in data, tokens, batches."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decoding.errors import InputError, OptionError
from decoding.evals.isotropy.settings import Settings
from decoding.evals.isotropy.texts import EncodedText, TextFile, batches, data_sets, encoded_texts, stories


class Letters:
    """One token a letter; 1 begins a text and 2 ends it."""

    all_special_ids = (1, 2)
    bos_token_id = 1

    def __call__(self, text, **_):
        return {"input_ids": [1, *(ord(letter) for letter in text), 2]}


def written(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_text_file_gives_its_lines(tmp_path):
    file = TextFile(written(tmp_path / "a.txt", "one", "", "  two  ", "дом"))
    assert list(file) == list(file) == ["one", "two", "дом"]
    assert file.count() == 3


@pytest.mark.parametrize("field", [None, "reference_text"])
def test_json_lines_give_a_field(tmp_path, field):
    rows = [json.dumps({"id": 1, "prefix_text": "no", "reference_text": "yes"})] * 2
    assert list(TextFile(written(tmp_path / "a.jsonl", *rows), field)) == ["yes", "yes"]


@pytest.mark.parametrize(
    ("name", "line", "field", "message"),
    [
        ("absent.txt", None, None, r"absent.txt: cannot be read"),
        ("a.txt", "", None, "holds no text"),
        ("a.jsonl", '{"text": "a"', None, r"a.jsonl, line 2, column 13: is no valid JSON"),
        ("a.jsonl", "1", None, "line 2: is int; expected an object"),
        ("a.csv", "text,b\nc,d,e", None, r"row 1 \(line 3\): 3 fields, 2 columns"),
        ("a.parquet", "no", None, "a.parquet: cannot be read as parquet"),
        (
            "a.jsonl",
            '{"body": "a"}',
            None,
            r"row 1 \(line 2\): has no text in text or .*; the row has body; name its column with --field",
        ),
        ("a.jsonl", '{"text": 3}', "text", r"row 1 \(line 2\): has no text in text;"),
    ],
)
def test_bad_data_is_one_line_that_says_where(tmp_path, name, line, field, message):
    if line is not None:
        written(tmp_path / name, "", line)
    with pytest.raises(InputError, match=message) as error:
        data_sets([str(tmp_path / name)], field)
    assert len(str(error.value).splitlines()) == 1


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.txt: is UTF-16, or no text at all"):
        TextFile(tmp_path / "a.txt").count()


def test_data_sets_have_names(tmp_path):
    for name in ("first", "sec,ond"):
        written(tmp_path / f"{name}.txt", "a text", "another")
    first, second = tmp_path / "first.txt", tmp_path / "sec,ond.txt"
    assert list(data_sets([str(first), str(second)], None)) == ["first", "sec,ond"]
    found = data_sets([f"de={first},fr={first}", f"xx={first}", "stories"], None)
    assert list(found) == ["de", "fr", "xx", "stories"]
    assert [count for _, count in found.values()] == [2, 2, 2, len(stories())]
    with pytest.raises(OptionError, match="de: given twice"):
        data_sets([f"de={first}", f"de={first}"], None)
    with pytest.raises(OptionError, match="must be FILE"):
        data_sets([f"={first}"], None)


def test_the_built_in_stories_differ_and_stay_the_same():
    assert stories(20) == stories(20)
    assert len(set(stories(20))) == 20
    assert all(len(text.split()) > 100 for text in stories(20))


def test_tokens_are_cut_and_ends_left_out():
    texts = encoded_texts([" abcde ", "x", "ab"], Letters(), Settings(), 4)
    found = [(text.index, text.ids, text.kept, text.whole) for text in texts]
    assert found == [(0, [1, 97, 98, 99], [True] * 4, 6), (1, [], [], 0), (2, [1, 97, 98], [True] * 3, 3)]


@pytest.mark.parametrize("wanted", [Settings(skip_bos=True), Settings(skip_special=True)])
def test_left_out_tokens_are_read_but_do_not_count(wanted):
    (text,) = encoded_texts(["abc"], Letters(), wanted, 9)
    assert (text.ids, text.kept) == ([1, 97, 98, 99], [False, True, True, True])


def test_a_limit_on_texts_counts_texts_only():
    found = list(encoded_texts(["ab", "", "cd", "ef", "gh"], Letters(), Settings(max_texts=3), 9))
    assert [text.text for text in found] == ["ab", "", "cd", "ef"]


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(1, 60))
def test_batches_hold_every_text_once_and_keep_to_their_size(lengths, size):
    texts = [EncodedText(index, "", [5] * length, [True] * length, length) for index, length in enumerate(lengths)]
    made = list(batches(texts, size))
    assert sorted(text.index for batch in made for text in batch) == list(range(len(lengths)))
    for batch in made:
        assert len(batch) == 1 or len(batch) * max(len(text.ids) for text in batch) <= size


def test_batches_are_read_as_they_are_needed():
    def endless():
        index = 0
        while True:
            yield EncodedText(index, "", [5] * (1 + index % 7), [True], 1)
            index += 1

    made = batches(endless(), 64)
    batch = next(made)
    assert len({len(text.ids) for text in batch}) == 1  # of about the same length: little padding
    assert max(text.index for text in batch) < 64 * 64
