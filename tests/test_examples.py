"""Every script in examples/ runs offline, in this process, and prints what it is there to show."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from decoding.strategies.registry import STRATEGIES

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SHOWN = {
    "contrastive_search": "contrastive search (4% of its word pairs are repeated)",
    "contrasts_side_by_side": "What is the Melmar bear afraid of? The Melmar bear is afraid of herons. (true: herons)",
    "own_strategy": "A: The Rosond mouse is afraid of nets.",
    "score_answers": "over 9 tokens: The Fermar bear eats ants.",
    "stream_by_hand": "Long ago a stubborn gardener walked to the ...",
}


@pytest.mark.parametrize("name", SHOWN)
def test_it_runs_and_shows_what_it_is_for(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a script registers is known in this test only.
    monkeypatch.setattr(STRATEGIES, "_registered", {})
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out


def test_every_example_is_short_and_tested() -> None:
    lines = {script.stem: script.read_text(encoding="utf-8").count("\n") for script in EXAMPLES.glob("*.py")}
    assert set(lines) == set(SHOWN)
    assert max(lines.values()) <= 40
