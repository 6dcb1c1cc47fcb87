"""The tasks' documents and prompts against lm-eval's own, and MC2 where its own figure underflows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from lm_eval.tasks.truthfulqa.utils import process_results_mc2
from lm_eval.utils import apply_template

from decoding import InputError
from decoding.evals import miniature
from decoding.evals.commands.lm_eval import TASKS
from decoding.evals.harness.documents import mc2, truthfulqa_documents

ROW = {
    "question": "Can pigs fly?",
    "mc1_targets": {"No.": 1, "Yes.": 0},
    "mc2_targets": {"They do.": 0, "No.": 1, "Pigs cannot fly.": 1},
}


def _file(folder: Path, *rows: Any) -> Path:
    path = folder / "questions.json"
    path.write_text(json.dumps(rows))
    return path


def _tasks(names: list[str], **metadata: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata)
    return dict(manager.load(names)["tasks"])


def test_the_columns_are_those_of_the_hub(tmp_path: Path) -> None:
    documents = truthfulqa_documents(truthfulqa=str(_file(tmp_path, ROW)), pretrained="of the model's arguments")
    assert documents["validation"].to_list() == [
        {
            "question": "Can pigs fly?",
            "mc1_targets": {"choices": ["No.", "Yes."], "labels": [1, 0]},
            "mc2_targets": {"choices": ["No.", "Pigs cannot fly.", "They do."], "labels": [1, 1, 0]},
            "correct_answers": ["No.", "Pigs cannot fly."],
            "incorrect_answers": ["They do."],
        }
    ]


@pytest.mark.parametrize("kind", ["mc1", "mc2", "gen"])
def test_a_local_task_asks_as_lm_evals_own(kind: str, tmp_path: Path) -> None:
    (task,) = _tasks([f"truthfulqa_{kind}_local"], truthfulqa=str(_file(tmp_path, ROW))).values()
    (document,) = task.eval_docs
    own = load_yaml(Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / f"truthfulqa_{kind}.yaml")
    assert task.doc_to_text(document) == apply_template(own["doc_to_text"], document)
    for name in ("output_type", "num_fewshot"):
        assert getattr(task.config, name) == own[name]
    if kind != "gen":
        choices = document[f"{kind}_targets"]["choices"]
        assert task.doc_to_choice(document) == choices
        assert choices[task.doc_to_target(document)] == "No."


def test_the_miniature_asks_its_test_questions() -> None:
    tasks = _tasks(["miniature_mc1", "miniature_mc2", "miniature_gen"])
    for task in tasks.values():
        asked = [task.doc_to_text(document) for document in task.eval_docs]
        assert asked == [question.prompt for question in miniature.questions("test")]
    question, document = miniature.questions("test")[0], tasks["miniature_gen"].eval_docs[0]
    assert tasks["miniature_gen"].doc_to_target(document) == list(question.correct_answers)
    assert tasks["miniature_mc1"].doc_to_choice(document)[0] == question.best_answer


def test_a_task_without_its_file_says_how_to_give_it() -> None:
    with pytest.raises(InputError, match="--truthfulqa FILE, or --metadata truthfulqa=FILE"):
        _tasks(["truthfulqa_mc1_local"])


def test_mc2_is_lm_evals_where_that_does_not_underflow() -> None:
    document = {"mc2_targets": {"labels": [0, 1, 1]}}
    near = [(-40.0, False), (-41.5, False), (-43.0, True)]
    assert mc2(document, near)["acc"] == pytest.approx(process_results_mc2(document, near)["acc"], rel=1e-12)
    far = [(value - 960.0, greedy) for value, greedy in near]
    with pytest.warns(RuntimeWarning, match="invalid value"):
        assert math.isnan(process_results_mc2(document, far)["acc"])
    assert mc2(document, far)["acc"] == pytest.approx(mc2(document, near)["acc"], rel=1e-12)
