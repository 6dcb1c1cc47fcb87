"""lm-eval's own TruthfulQA tasks and model class against ``decoding.score``, question by question.

Two questions a model; ``LM_EVAL_QUESTIONS=817 pytest -s`` takes so many, asks the expert those of TruthfulQA as well,
and prints what was found: the table of docs/lm-eval.md.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import decoding
from decoding.evals import miniature
from decoding.evals.harness.documents import truthfulqa_documents

SHARED = Path(__file__).resolve().parents[4] / "shared"
QUESTIONS = int(os.environ.get("LM_EVAL_QUESTIONS", "2"))
# Each model and each file of questions; for the table the expert reads TruthfulQA too.
MODELS = ["expert on the miniature", "stories3M", *(["expert"] if "LM_EVAL_QUESTIONS" in os.environ else [])]
# Sums of up to 100 log-probabilities of some -8 nats each, added up in another order: their float32 rounding is 1e-4.
NATS = 1e-3
SMALLEST_NORMAL = math.log(np.finfo(np.float64).tiny)  # -708.4: below it np.exp loses digits, below -745 all of them


@dataclass
class Found:
    """Differences between the two, by question."""

    nats: float = 0.0  # the largest difference of an answer's log-likelihood
    mc2: float = 0.0  # of a question's MC2
    mc1_differs: list[int] = field(default_factory=list)
    underflow: list[int] = field(default_factory=list)  # of lm-eval's MC2
    lowest: float = 0.0  # log-likelihood of a question's likeliest answer, which decides whether MC2 underflows
    other_tokens: list[int] = field(default_factory=list)  # the tokenizer joins prompt and answer
    no_room: list[int] = field(default_factory=list)  # lm-eval cuts the prompt on its left


def _of_lm_eval(model: Any, tokenizer: Any, file: Path) -> list[dict[str, Any]]:
    """The samples of both tasks, as lm-eval 0.4.13 ships them but for where their data come from."""
    tasks = []
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / "truthfulqa" / f"{name}.yaml")
        for key in ("dataset_path", "dataset_name", "tag"):
            config.pop(key)
        tasks.append(config | {"custom_dataset": truthfulqa_documents, "dataset_kwargs": {"truthfulqa": str(file)}})
    lm = HFLM(model, tokenizer=tokenizer, batch_size=16)
    results = lm_eval.simple_evaluate(
        lm, tasks=tasks, limit=QUESTIONS, log_samples=True, bootstrap_iters=0,
        task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    return [{sample["doc_id"]: sample for sample in samples} for _, samples in sorted(results["samples"].items())]


def _found(model: Any, tokenizer: Any, file: Path) -> Found:
    found = Found()
    first, second = _of_lm_eval(model, tokenizer, file)
    assert first.keys() == second.keys()
    for number in sorted(first):
        sample = second[number]
        prompt = sample["arguments"][0][0]
        choices = {name: sample["doc"][f"{name}_targets"] for name in ("mc1", "mc2")}
        assert first[number]["arguments"][0][0] == prompt
        answers = [f" {answer}" for answer in dict.fromkeys(choices["mc1"]["choices"] + choices["mc2"]["choices"])]
        before = tokenizer(prompt)["input_ids"]
        whole = [tokenizer(prompt + answer)["input_ids"] for answer in answers]
        if max(map(len, whole)) > model.config.max_position_embeddings:
            found.no_room.append(number)
            continue
        if any(ids[: len(before)] != before for ids in whole):
            found.other_tokens.append(number)
            continue
        scores = decoding.score(model, prompt, answers, tokenizer=tokenizer)
        ours = {answer.removeprefix(" "): score.sum().item() for answer, score in zip(answers, scores, strict=True)}
        theirs: dict[str, float] = {}
        for name, logged in (("mc1", first[number]), ("mc2", sample)):
            for choice, (value, _) in zip(choices[name]["choices"], logged["filtered_resps"], strict=True):
                theirs[choice] = value
        found.nats = max([found.nats, *(abs(ours[choice] - theirs[choice]) for choice in theirs)])

        best, *rest = (ours[choice] for choice in choices["mc1"]["choices"])
        assert choices["mc1"]["labels"] == [1] + [0] * len(rest)
        if float(best > max(rest)) != first[number]["acc"]:
            found.mc1_differs.append(number)
        likeliest = max(value for value, _ in sample["filtered_resps"])
        found.lowest = min(found.lowest, likeliest)
        if likeliest < SMALLEST_NORMAL:
            found.underflow.append(number)
        else:
            found.mc2 = max(found.mc2, abs(_mc2(ours, choices["mc2"]) - sample["acc"]))
    return found


def _mc2(scores: dict[str, float], targets: dict[str, Any]) -> float:
    logs = np.array([scores[choice] for choice in targets["choices"]])
    true = np.array(targets["labels"]) == 1
    return float(np.exp(np.logaddexp.reduce(logs[true]) - np.logaddexp.reduce(logs)))


def _exported(path: Path) -> Path:
    """The miniature's test questions in the form of TruthfulQA's ``mc_task.json``."""
    rows = [
        {
            "question": question.question,
            "mc1_targets": {question.best_answer: 1} | dict.fromkeys(question.incorrect_answers, 0),
            "mc2_targets": dict.fromkeys(question.correct_answers, 1) | dict.fromkeys(question.incorrect_answers, 0),
        }
        for question in miniature.questions("test")
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", MODELS)
def test_mc1_and_mc2_equal_those_of_lm_eval(name: str, tmp_path: Path) -> None:
    file = SHARED / "data" / "truthfulqa" / "mc_task.json"
    if name == "expert on the miniature":
        file = _exported(tmp_path / "questions.json")
    elif not file.is_file():
        pytest.skip("TruthfulQA's file lies outside the repository and is not here")
    if name == "stories3M":
        folder = SHARED / "models" / name
        if not folder.is_dir():
            pytest.skip(f"the model {name} lies outside the repository and is not here")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        model, tokenizer = miniature.load("expert")
    found = _found(model, tokenizer, file)
    print(f"{name}, {QUESTIONS} questions: {found}")
    assert found.nats < NATS
    assert found.mc2 < NATS
    assert (found.mc1_differs, found.underflow, found.other_tokens) == ([], [], [])
    assert len(found.no_room) <= QUESTIONS // 4
