"""The notebook-style example of docs/isotropy.md runs, and prints what it says."""

import re
from pathlib import Path

import pytest

from decoding.evals import miniature

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "isotropy.md"


def test_the_example_runs_and_prints_what_it_says(tmp_path, monkeypatch, capsys):
    """The report's figures are those of tests/evals/isotropy/test_report.py; to draw them takes a third of the time."""
    monkeypatch.setattr("decoding.evals.isotropy.report.as_svg", lambda figure: "<svg></svg>")
    if not (miniature.folder("expert") / "config.json").is_file():
        pytest.skip("the embedded models have not been trained here")
    pytest.importorskip("matplotlib", reason="figures need matplotlib: the extra report")
    monkeypatch.chdir(tmp_path)
    cells = re.findall(
        r"```python\n(.*?)```\n((?:\n(?: {4}[^\n]*\n)+)?)", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict[str, object] = {}
    said = 0
    for code, output in cells:
        exec(code, names)
        printed = capsys.readouterr().out
        if output:
            said += 1
            assert " ".join(printed.split()) == " ".join(output.split())
    assert (len(cells), said) == (4, 2)
    assert "<h1>" in (tmp_path / "isotropy.html").read_text(encoding="utf-8")
