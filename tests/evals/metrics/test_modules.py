"""The evaluate modules: each folder beside the metrics loads by its path, offline, with its function's figures."""

from pathlib import Path

import pytest

from decoding.evals import metrics, miniature
from decoding.evals.metrics.repetition import distinct, diversity, repetition

evaluate = pytest.importorskip("evaluate")

FOLDER = Path(metrics.__file__).resolve().parent
NAMES = sorted(path.stem for path in FOLDER.glob("*/*.py") if path.stem == path.parent.name)
TEXTS = ["the cat sat on the cat sat", "a dog ran"]
REFERENCES = ["the cat sat on the mat", "a dog ran fast"]
EXPERT = str(miniature.folder("expert"))
PLAIN = ("rep_n", "distinct_n", "self_bleu")
MORE = {
    "bleu": {"references": REFERENCES},
    "chrf": {"references": REFERENCES},
    "rouge": {"references": REFERENCES},
    "coherence": {"references": ["Once upon a time", "Then"], "model": EXPERT},
    "mauve": {"references": REFERENCES, "model": EXPERT},
    "perplexity": {"model": EXPERT},
}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True, raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def loaded(name, tmp_path):
    return evaluate.load(str(FOLDER / name), cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", [*PLAIN, *MORE])
def test_a_module_loads_by_path_and_gives_numbers(name, tmp_path):
    if "model" in MORE.get(name, {}) and not (Path(EXPERT) / "config.json").is_file():
        pytest.skip("the embedded expert is not here")
    found = loaded(name, tmp_path).compute(predictions=TEXTS, **MORE.get(name, {}))
    numbers = [value for value in found.values() if isinstance(value, (int, float))]
    assert numbers
    assert all(value == value for value in numbers)


def test_no_metric_of_the_list_is_missing():
    assert {*PLAIN, *MORE, "pass_at_k"} <= set(NAMES)


def test_figures_are_those_of_the_functions(tmp_path):
    found = loaded("rep_n", tmp_path).compute(predictions=TEXTS, paper_exact=False)
    assert found["rep_3"] == repetition(TEXTS, 3, paper_exact=False)
    assert found["diversity"] == diversity(TEXTS, paper_exact=False)
    assert loaded("distinct_n", tmp_path).compute(predictions=TEXTS, orders=[3]) == {"distinct_3": distinct(TEXTS, 3)}


def test_several_references_pass_the_modules_features(tmp_path):
    found = loaded("bleu", tmp_path).compute(
        predictions=["the cat sat on it"], references=[["x y", "the cat sat on it"]]
    )
    assert found["bleu"] == pytest.approx(100)


def test_pass_at_k_runs_programs_once_that_is_allowed(tmp_path):
    from decoding.errors import OptionError

    module = loaded("pass_at_k", tmp_path)
    given = {
        "predictions": [["x = 1", "x = 2"], ["x = 1", "import os; os._exit(0)"]],
        "references": ["assert x == 1"] * 2,
    }
    with pytest.raises(OptionError, match="allow_code_execution=True"):
        module.compute(**given)
    try:
        found = module.compute(**given, k=[1, 2], allow_code_execution=True)
    except OptionError as error:
        pytest.skip(f"this kernel cannot isolate programs: {error}")
    assert (found["pass@1"], found["pass@2"]) == (0.5, 1)
    assert [row[0] for row in found["outcomes"]] == ["passed", "passed"]
