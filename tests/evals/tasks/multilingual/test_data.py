"""Documents in the formats that they are published in, and what is said of others."""

import gzip
import json
from pathlib import Path

import pytest

from decoding.errors import DecodingError, InputError, OptionError
from decoding.evals.tasks.multilingual.data import Passage, Source, articles, passages, problems, sources, translations

SHARED = Path(__file__).resolve().parents[5] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="the published data are not part of the repository")


def lines(path, *rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_folder_has_a_file_a_language(tmp_path):
    for name in ("de.jsonl", "ar.txt", "notes.md", "vi.jsonl"):
        (tmp_path / name).touch()
    assert list(sources(str(tmp_path), None)) == ["de", "ar"]
    assert sources(str(tmp_path), ["ar"]) == {"ar": Source(tmp_path / "ar.txt")}
    with pytest.raises(OptionError, match=r"--languages fr: .* has no file of it; it has de, ar"):
        sources(str(tmp_path), ["fr"])


def test_a_mapping_names_files():
    assert sources("de=a.jsonl, fr=b.jsonl", None) == {"de": Source(Path("a.jsonl")), "fr": Source(Path("b.jsonl"))}
    with pytest.raises(OptionError, match="expected LANGUAGE=FILE"):
        sources("de=a.jsonl,b.jsonl", None)


def test_one_file_is_of_the_one_language_asked(tmp_path):
    file = tmp_path / "texts.jsonl"
    assert sources(str(file), ["de"]) == {"de": Source(file)}
    for asked in (None, ["de", "fr"]):
        with pytest.raises(OptionError, match="name its language"):
            sources(str(file), asked)


def test_a_folder_without_languages(tmp_path):
    with pytest.raises(OptionError, match="has no file of any language"):
        sources(str(tmp_path), None)


def test_passages_have_prefixes_or_are_whole_texts(tmp_path):
    file = lines(tmp_path / "de.jsonl", {"prefix_text": "Ein", "reference_text": " Haus"}, {"text": "Ein Baum"})
    assert passages(Source(file)) == ([Passage("Ein", " Haus"), Passage("", "Ein Baum")], [])
    plain = tmp_path / "th.txt"
    plain.write_text("ไทย\n\nไทย ไทย\n", encoding="utf-8")
    assert passages(Source(plain))[0] == [Passage("", "ไทย"), Passage("", "ไทย ไทย")]


def test_a_bad_row_is_named_or_left_out(tmp_path):
    file = lines(tmp_path / "de.jsonl", {"text": "gut"}, {"text": "  "}, {"title": "x"})
    with pytest.raises(InputError, match=r"row 2 \(line 2\), column text: is empty"):
        passages(Source(file))
    good, bad = passages(Source(file), skip_bad=True)
    assert (len(good), len(bad)) == (1, 2)


def test_pairs_of_files_are_translations_in_either_direction(tmp_path):
    (tmp_path / "tatoeba.deu-eng.deu").write_text("Ein Haus.\nEin Baum.\n")
    (tmp_path / "tatoeba.deu-eng.eng").write_text("A house.\nA tree.\n")
    found = sources(str(tmp_path), None, "en")
    assert list(found) == ["de"]
    assert translations(found["de"], "de", "en")[0] == [
        Passage("Ein Haus.", "A house."),
        Passage("Ein Baum.", "A tree."),
    ]
    back = sources(str(tmp_path), ["en"], "de")["en"]
    assert translations(back, "en", "de")[0][0] == Passage("A house.", "Ein Haus.")
    (tmp_path / "tatoeba.deu-eng.eng").write_text("A house.\n")
    with pytest.raises(InputError, match=r"has 2 lines and .* 1"):
        translations(found["de"], "de", "en")


def test_problems_may_be_gzipped(tmp_path):
    problem = {
        "task_id": "T/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "def check(c):\n    assert c() == 1\n",
    }
    file = tmp_path / "problems.jsonl.gz"
    file.write_bytes(gzip.compress((json.dumps(problem) + "\n").encode()))
    (found,) = problems(file)[0]
    exec(found.program("    return 1\n"), {})
    with pytest.raises(AssertionError):
        exec(found.program("    return 2\n"), {})
    file.write_bytes(gzip.compress(b"{}" * 100)[:-12])
    with pytest.raises(InputError, match="cannot be read"):
        problems(file)


@needs_shared
def test_published_data_are_read():
    assert len(sources(str(SHARED / "open_ended" / "wit"), None)) == 16
    for code, source in sources(str(SHARED / "open_ended" / "wit"), None).items():
        found, bad = passages(source, skip_bad=True)
        assert len(found) >= 7, code
        assert len(bad) <= 1, code
    pairs = sources(str(SHARED / "parallel"), None, "en")
    assert len(pairs) == 15
    assert len(translations(pairs["ja"], "ja", "en")[0]) > 900
    assert len(translations(Source(SHARED / "translation" / "iwslt14_de-en_test1000.jsonl"), "de", "en")[0]) == 1000
    (example,) = articles(SHARED / "summarization" / "xsum_train_one-shot-1.json")[0]
    assert example.text.endswith("\n\nSummarization: ")
    assert len(problems(SHARED / "code" / "HumanEval.jsonl.gz")[0]) == 164


def test_summaries_have_the_names_of_their_data_sets(tmp_path):
    file = lines(
        tmp_path / "en.jsonl",
        {"document": "Long.", "summary": "Short."},
        {"article": "Long.", "highlights": "Short."},
        {"context": "\n\nArticle:\nLong.\n\nSummarization: ", "completion": "Short."},
    )
    assert articles(file)[0] == [Passage("\n\nArticle:\nLong.\n\nSummarization: ", "Short.")] * 3
    with pytest.raises(DecodingError, match="column document: is missing"):
        articles(lines(tmp_path / "other.jsonl", {"text": "x"}))
