"""``decoding metrics`` as a user runs it: output, exit codes, and one line on what is wrong."""

import json

import pytest
from command_results import refused

from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.metrics import diversity, repetition

ROWS = [
    {"prefix_text": "Once", "reference_text": " upon a time", "output": " a b a b a b", "n": 1},
    {"prefix_text": "Tom", "reference_text": " went home then", "output": " went c d e f"},
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


def test_a_table_with_a_row_a_field(file, capfd):
    assert main(["metrics", file, "--field", "output", "--field", "reference_text"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert f"{diversity([row['output'] for row in ROWS]):.2f}" in out
    assert out.count("100.00") == 2  # what people wrote repeats nothing, in either mode


def test_json_is_also_what_the_folder_gets(file, tmp_path, capfd):
    names = ["repetition", "distinct", "self-bleu", "bleu", "chrf", "rouge"]
    options = [word for name in names for word in ("--metric", name)]
    assert main(["metrics", file, *options, "--json", "--output", str(tmp_path / "out")]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    (record,) = json.loads(out)
    assert [record] == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["texts"] == 2
    assert record["metrics"]["rep-2"] == repetition([row["output"] for row in ROWS], 2)
    assert {"distinct-2", "self-BLEU", "BLEU", "chrF", "rougeL"} <= set(record["metrics"])


@pytest.mark.skipif(not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is absent")
def test_metrics_that_ask_a_model(file, capfd):
    command = ["metrics", file, "--metric", "coherence", "--metric", "perplexity", "--metric", "mauve"]
    assert main([*command, "--model", "expert", "--json"]) == 0
    (record,) = json.loads(capfd.readouterr().out)
    assert record["metrics"]["coherence"] < 0
    assert record["metrics"]["perplexity"] > 1
    assert 0 < record["metrics"]["MAUVE"] <= 100


def test_plain_text_has_one_text_a_line(tmp_path, capfd):
    path = tmp_path / "plain.txt"
    path.write_text("今天天气今天天气\n很好\n")
    assert main(["metrics", str(path), "--units", "characters", "--json"]) == 0
    (record,) = json.loads(capfd.readouterr().out)
    assert (record["texts"], record["units"]) == (2, "characters")
    assert record["metrics"]["rep-2"] > 0


def test_a_row_for_each_value_of_a_field(tmp_path, capfd):
    path = tmp_path / "samples.jsonl"
    texts = {"greedy": ["a b a b a b", ""], "beam": ["c d e f", "g h"]}
    rows = [{"strategy": name, "text": text} for name, given in texts.items() for text in given]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["metrics", str(path), "--field", "text", "--by", "strategy", "--json"]) == 0
    records = json.loads(capfd.readouterr().out)
    assert [record["name"] for record in records] == ["samples:text:greedy", "samples:text:beam"]
    assert [record["metrics"]["diversity"] for record in records] == [diversity(given) for given in texts.values()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "blue"], "did you mean bleu"),
        (["--field", "outputs"], "column outputs: is missing; the row has prefix_text, reference_text, output"),
        (["--field", "n"], "row 1 (line 1), column n: is int, not text; --field names"),
        (["--units", "syllables"], "units='syllables'"),
        (["--metric", "perplexity"], "give --model"),
        (["--metric", "bleu", "--reference", "absent"], "has no references"),
        (["--metric", "coherence", "--prefix", "absent", "--model", "expert"], "has no prefixes"),
        (["absent.txt"], "cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(file, options, message, capfd):
    assert message in refused(main(["metrics", file, *options]), *capfd.readouterr())


@pytest.mark.parametrize("content", ["", "not json\n", "[1]\n"])
def test_files_that_hold_no_texts(tmp_path, content, capfd):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert main(["metrics", str(path)]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_help_has_an_example(capfd):
    assert main(["metrics", "--help"]) == 0
    assert "Example: decoding metrics" in capfd.readouterr().out
