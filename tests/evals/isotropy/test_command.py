"""``decoding isotropy``."""

import json

import pytest
from command_results import refused

from decoding.evals import miniature
from decoding.evals.cli import main

pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("The old clockmaker smiled at the cat.\nTom went home.\n\nA ship came in.\n", encoding="utf-8")
    return str(path)


def test_results_and_report_are_written_and_shown(texts, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("decoding.evals.isotropy.report.as_svg", lambda figure: "<svg></svg>")  # test_report.py's
    output = tmp_path / "out"
    arguments = ["isotropy", "--model", "expert", "--model", "amateur", "--data", f"en={texts}"]
    assert main([*arguments, "--output", str(output)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert max(map(len, [line for line in out.splitlines() if not line.startswith("written")])) <= 80
    (file,) = output.glob("results_*.json")
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["task"], record["mode"]) == ("isotropy", "full")
    assert record["versions"]["torch"]
    assert record["times"]["seconds"] > 0
    assert [(result["model"], result["data"]) for result in record["results"]] == [
        ("expert", "en"), ("amateur", "en")
    ]  # fmt: skip
    for result in record["results"]:
        assert result["counts"]["texts"] == 3
        assert result["settings"]["max_length"] == 256
        last = result["layers"][-1]
        assert last["isotropy"]["value"] == pytest.approx(1 - last["within"]["raw"])
        assert f"{result['verdict']['text'][:40]}" in " ".join(out.split())
        assert f"{last['isotropy']['value']:.3f}" in out
    assert "amateur" in (output / "isotropy.html").read_text(encoding="utf-8")


def test_json_is_printed_alone(texts, capfd):
    assert main(["isotropy", "--data", texts, "--layers", "0,-1", "--json"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    (result,) = json.loads(out)["results"]
    assert [layer["layer"] for layer in result["layers"]] == [0, 4]
    assert result["data"] == "texts"


def test_the_paper_mode_reads_the_last_layer(texts, capfd):
    assert main(["isotropy", "--data", texts, "--paper", "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["mode"] == "paper"
    settings = record["results"][0]["settings"]
    assert (settings["layers"], settings["max_texts"], settings["max_length"]) == ([-1], 2000, 256)
    assert len(record["results"][0]["layers"]) == 1


def test_without_matplotlib_a_line_names_the_extra_and_the_results_are_written(texts, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("decoding.evals.engine.pages.can_plot", lambda: False)
    assert main(["isotropy", "--data", texts, "--output", str(tmp_path / "out")]) == 0
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 1
    assert "contrastive-decoding[report]" in err
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "absent.txt"], "absent.txt: cannot be read"),
        (["--layers", "first"], "expected all, last, or numbers"),
        (["--layers", "9"], "must be 0 (the embeddings) to 4"),
        (["--paper", "--skip-bos"], "--paper fixes skip-bos"),
        (["--paper", "--max-length", "32"], "--paper fixes max-length"),
        (["--model", "expert", "--model", "expert"], "given twice"),
        (["--model", "./absent"], "no such folder"),
        (["--sample-tokens", "100"], "must be a whole number from 256"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, message, capfd):
    assert message in refused(main(["isotropy", *arguments]), *capfd.readouterr())


def test_help_has_an_example(capfd):
    assert main(["isotropy", "--help"]) == 0
    assert "Example: decoding isotropy" in capfd.readouterr().out
