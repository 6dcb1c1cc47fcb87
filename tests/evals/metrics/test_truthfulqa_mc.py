"""TruthfulQA's multiple choice as an evaluate module that loads by its path, offline."""

import math
from pathlib import Path

import pytest

from decoding.evals import metrics

evaluate = pytest.importorskip("evaluate")

FOLDER = Path(metrics.__file__).resolve().parent / "truthfulqa_mc"
SCORES = [[-1.0, -2.0, -3.0], [-900.0, -901.0, -899.0]]
LABELS = [[1, 0, 1], [0, 1, 1]]


@pytest.fixture
def module(tmp_path):
    return evaluate.load(str(FOLDER), cache_dir=str(tmp_path))


def test_figures_are_means_over_questions(module):
    found = module.compute(predictions=SCORES, references=LABELS)
    first = (1 + math.exp(-2)) / (1 + math.exp(-1) + math.exp(-2))
    second = (math.exp(-2) + 1) / (math.exp(-1) + math.exp(-2) + 1)
    assert found["mc1"] == 0.5  # the best is the first true one: -1 against -2, -901 against -900
    assert found["mc2"] == pytest.approx((first + second) / 2, rel=1e-12)
    assert found["mc3"] == 0.5


def test_the_best_answer_can_be_named(module):
    assert module.compute(predictions=SCORES, references=LABELS, best=[2, 2])["mc1"] == 0.5
    assert module.compute(predictions=SCORES, references=LABELS, best=[0, 2])["mc1"] == 1


@pytest.mark.parametrize(
    ("scores", "labels", "best", "message"),
    [
        ([[-1.0, -2.0]], [[1]], None, "question 1: 2 scores with labels .1."),
        ([[-1.0, -2.0]], [[1, 1]], None, "both among them"),
        ([[-1.0, -2.0]], [[1, 2]], None, "both among them"),
        ([[-1.0, -2.0]], [[1, 0]], [1], "question 1: answer 1 is none of its true ones"),
        ([[-1.0, -2.0]], [[1, 0]], [5], "question 1: answer 5 is none of its true ones"),
    ],
)
def test_what_is_not_accepted(module, scores, labels, best, message):
    with pytest.raises(ValueError, match=message):
        module.compute(predictions=scores, references=labels, best=best)
