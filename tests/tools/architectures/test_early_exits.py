"""The check of early exits sees what is wrong, and a sample of the page's other tables is as it says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import transformers

from decoding import DoLa
from decoding.tools.architectures import early_exits, other_inputs_search
from decoding.tools.architectures.early_exits import check
from decoding.tools.architectures.other_inputs import other_input_types
from decoding.tools.architectures.reference import Prompt, prompts, reference_steps
from decoding.tools.architectures.tiny import tiny_model
from decoding.tools.architectures.trial import try_cache, try_other_inputs

PAGE = Path(__file__).parents[3] / "docs" / "architectures.md"


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare the first tokens alone: in the recomputation each takes passes over every candidate's whole text."""
    monkeypatch.setattr(other_inputs_search, "STEPS", 2)
    monkeypatch.setattr(early_exits, "STEPS", 2)


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("change", [{"layers": (2, 3)}, {"alpha": 0.5}])
def test_exits_that_are_wrong_are_seen(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Off(DoLa):
        def __new__(cls, *args: Any, **kwargs: Any) -> Any:
            return dataclasses.replace(DoLa(*args, **kwargs), **change)

    monkeypatch.setattr(early_exits.decoding, "DoLa", Off)
    found = check(tiny_model("llama"))
    assert not found.exact
    assert "differs from full recomputation: " in found.reason


def test_continuing_from_the_cache_is_recomputing() -> None:
    model, prompt = tiny_model("llama"), prompts(0)[0]
    steps = reference_steps(model, prompt, padding=3, forced=[20, 21])
    recomputed = reference_steps(model, Prompt([*prompt.text, 20, 21], {}))[-1]
    assert len(steps) == 3
    assert float((steps[-1].logits - recomputed.logits).abs().max()) < 1e-4
    assert [len(step.hidden) for step in steps] == [len(prompt.text), 1, 1]


# Encoders of text and of sound, no early exit where the cache itself differs, images before the text and positions of
# three axes, images that layers attend to, and no early exit where the head's logits are changed.
SAMPLE = ["t5", "whisper", "prophetnet", "qwen2_vl", "mllama", "chameleon"]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", [*SAMPLE, "fp8"])
def test_a_type_is_as_the_page_says(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," not in text:
        pytest.skip(f"the page was made with another transformers than {transformers.__version__}")
    row = try_cache(name) if name == "fp8" else try_other_inputs(name)
    further = text.split("\n## ", 1)[1]
    line = next(line for line in further.splitlines() if line.startswith(f"| {name} |"))
    verdicts = [cell.verdict for cell in row.cells.values()]
    assert not row.not_tried
    assert [cell.strip() for cell in line.split("|")[2 : 2 + len(verdicts)]] == verdicts


def test_the_other_tables_have_every_type() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if f"transformers {transformers.__version__}," in text:
        further = text.split("\n## ", 1)[1]
        types = [line.split("|")[1].strip() for line in further.splitlines() if line.startswith("| ")]
        named = [name for name in types if name not in ("type", "quanto", "hqq", "fp8")]
        assert sorted(named) == list(other_input_types())
