"""The binary choice of January 2025 against an oracle of one forward pass a text, its order, its data, its command."""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import contrast_oracle as oracle
import pytest
import torch

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.tasks.truthfulqa.binary_choice import METRICS, BinaryChoice, options_prompt
from decoding.evals.tasks.truthfulqa.data import Question, Targets, load
from decoding.evals.tasks.truthfulqa.miniature import questions
from decoding.evals.tasks.truthfulqa.prompts import prompt_of
from decoding.strategies.registry import parse_strategy

COLUMNS = ["Type", "Category", "Question", "Best Answer", "Best Incorrect Answer", "Correct Answers",
           "Incorrect Answers", "Source"]  # fmt: skip
ROW = dict(zip(COLUMNS, ["Adversarial", "Myths", "Is it so? ", "It is not", " Yes, it is", "It is not; No",
                         "Yes; Yes, it is", "https://x"], strict=True))  # fmt: skip
FALSE = "Best Incorrect Answer"
CONTRAST = "contrastive-decoding:amateur=amateur,alpha=0.0,beta=0.7"


@functools.cache
def world() -> tuple[Any, Any, oracle.Reader, oracle.Reader]:
    model, tokenizer = miniature.load("expert")
    return model, tokenizer, oracle.Reader(model), oracle.Reader(miniature.load("amateur")[0])


def written(path: Path, rows: list[dict[str, str]], columns: list[str] = COLUMNS) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def summed(prompt: str, text: str, contrast: bool, raw: bool) -> float:
    """The log-score of a text after a prompt, from whole texts in float64."""
    _, tokenizer, expert, amateur = world()
    before, whole = (tokenizer(given)["input_ids"] for given in (prompt, prompt + text))
    scores = expert.logits(whole)
    if contrast:
        both = zip(scores, amateur.logits(whole), strict=True)
        scores = torch.stack([oracle.contrastive_decoding(*pair, 0.0, 0.7, "logits") for pair in both])
    if not (contrast and raw):
        scores = scores.log_softmax(-1)
    places = torch.arange(len(before) - 1, len(whole) - 1)
    return scores[places, whole[len(before) :]].sum().item()


def samples(folder: Path, name: str = "truthfulqa_binary") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"samples_{name}.jsonl").read_text().splitlines()]


def test_both_readings_equal_one_pass_a_text(tmp_path: Path) -> None:
    model, tokenizer, _, _ = world()
    asked = questions("test")[:4]
    task = BinaryChoice(model, tokenizer, asked, prompt_of("none"), seed=3)
    specs = [parse_strategy(spec) for spec in ("greedy", CONTRAST)]
    made = configured(specs, model, tokenizer, "expert", task=task.settings)
    run(task, made, output=tmp_path)
    found = {(line["document"], line["configuration"]): line for line in samples(tmp_path)}
    firsts = set()
    for configuration, contrast in zip(made, (False, True), strict=True):
        for question in asked:
            line = found[question.id, configuration.hash]
            answers = [question.best_answer, question.incorrect_answers[0]]
            firsts.add(line["best_option"])
            shown = answers if line["best_option"] == "(A)" else answers[::-1]
            prompt = f"Question: {question.question}\n(A) {shown[0]}\n(B) {shown[1]}\nAnswer:"
            for raw in (False, True):
                kind, ending = ("raw", " raw") if raw else ("normalized", "")
                letters = [summed(prompt, f" ({letter})", contrast, raw) for letter in "AB"]
                plain = [summed(f"Q: {question.question}\nA:", f" {text}", contrast, raw) for text in answers]
                # float32 sums of some 15 tokens against float64
                assert line["options"][kind] == pytest.approx(letters, abs=1e-3)
                assert line["likelihood"][kind] == pytest.approx(plain, abs=1e-3)
                best, other = letters if shown is answers or shown == answers else letters[::-1]
                assert line["metrics"][f"options{ending}"] == float(best > other)
                assert line["metrics"][f"likelihood{ending}"] == float(plain[0] > plain[1])
                if not raw:
                    assert line["metrics"]["took (A)"] == float(letters[0] > letters[1])
    assert firsts == {"(A)", "(B)"}


def ordered(asked: list[Question], seed: int) -> list[bool]:
    model, tokenizer, _, _ = world()
    task = BinaryChoice(model, tokenizer, asked, prompt_of("none"), seed=seed)
    return [task._best_is_first(question) for question in asked]


def test_the_order_is_of_the_seed_and_the_question_alone() -> None:
    asked = questions("test")
    order = ordered(asked, 0)
    assert ordered(asked[50:90], 0) == order[50:90]
    assert ordered(asked, 1) != order
    # Of a fair coin: four standard deviations.
    assert abs(sum(order) / len(order) - 0.5) < 2 / len(order) ** 0.5


def test_letters_that_are_not_plausible_are_no_choice(tmp_path: Path) -> None:
    """The embedded expert expects no letters: under a strict mask both have the floor's score."""
    model, tokenizer, _, _ = world()
    task = BinaryChoice(model, tokenizer, questions("test")[:6], prompt_of("none"))
    made = configured(
        [parse_strategy("contrastive-decoding:amateur=amateur,alpha=1.0")], model, tokenizer, "e", task=task.settings
    )
    results = run(task, made, output=tmp_path)
    for line in samples(tmp_path):
        first, second = line["options"]["normalized"]
        assert first == second
        assert first % -1000 == 0  # the floor, of every token
    assert results is not None
    (entry,) = results["configurations"]
    assert entry["metrics"]["options"]["value"] == entry["metrics"]["took (A)"]["value"] == results["chance"]["options"]


# --- the data --------------------------------------------------------------------------------------------------------


def test_the_column_is_read_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path / "TruthfulQA.csv", [ROW])
    ((question,), bad) = load(path, binary=True)
    assert bad == []
    assert (question.best_answer, question.best_incorrect_answer) == ("It is not", "Yes, it is")
    ((plain,), _) = load(path)
    assert plain.best_incorrect_answer == ""  # and no complaint where nobody needs it
    assert plain.mc1 == Targets(("It is not.",), ("Yes.", "Yes, it is."))


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_hub_columns_are_read_too(suffix: str, tmp_path: Path) -> None:
    row = {"question": "Is it so?", "best_answer": "No", "best_incorrect_answer": "Yes", "correct_answers": ["No"],
           "incorrect_answers": ["Yes", "Yes!"]}  # fmt: skip
    path = tmp_path / f"questions{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps([row]))
    else:
        pytest.importorskip("datasets").Dataset.from_list([row]).to_parquet(path)
    ((question,), _) = load(str(path), binary=True)
    assert (question.best_answer, question.best_incorrect_answer) == ("No", "Yes")


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [ROW],
            [name for name in COLUMNS if name != FALSE],
            "has no column Best Incorrect Answer, which the binary choice needs; the authors' TruthfulQA.csv has it",
        ),
        ([ROW, {**ROW, FALSE: " "}], COLUMNS, f"row 2 (line 3), column {FALSE}: is empty"),
        ([{**ROW, FALSE: "It is not "}], COLUMNS, f"row 1 (line 2), column {FALSE}: is the best answer too"),
    ],
)  # fmt: skip
def test_a_file_without_it_is_one_line(
    rows: list[dict[str, str]], columns: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "TruthfulQA.csv", rows, columns)
    with pytest.raises(InputError) as raised:
        load(path, binary=True)
    assert message in str(raised.value)
    assert main(["eval", "truthfulqa", "--data", path, "--binary"]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
    load(path)  # MC1 to MC3 do not need it


# --- prompts and the command -----------------------------------------------------------------------------------------


class Templated:
    """The part of a tokenizer that renders chats."""

    chat_template = "a template"

    def apply_chat_template(self, messages: list[dict[str, str]], add_generation_prompt: bool = False, **_: Any) -> str:
        turns = "".join(f"<{message['role']}>{message['content']}</>" for message in messages)
        return turns + "<assistant>" * add_generation_prompt


def test_a_chat_shows_the_options_in_one_turn() -> None:
    prompt = options_prompt("chat", Templated())
    assert prompt.text("Is it?\n(A) No\n(B) Yes") + prompt.answer("(A)") == (
        "<user>Is it?\n(A) No\n(B) Yes\nAnswer with (A) or (B).</><assistant>(A)"
    )
    assert not prompt.special_tokens
    assert options_prompt("dola", None) == options_prompt("none", None)


COMMAND = ["eval", "truthfulqa", "--miniature", "--binary", "--limit", "6", "--strategy", "greedy", "--strategy"]


def test_the_command_shows_both_readings_and_chance(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path)]
    assert main([*COMMAND, "dola", *output]) == 0
    shown = capfd.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    header, chance = (line.split("  ") for line in shown.splitlines()[:2])
    assert [cell.strip() for cell in header if cell.strip()][-1].endswith("likelihood raw")
    assert "".join(chance).split() == ["chance", *["50.0"] * len(METRICS)]
    assert "against greedy" in shown
    before = len(samples(tmp_path, "truthfulqa_binary_miniature"))
    assert before == 12
    # Another seed is another order, so other configurations; the same one is all there.
    assert main([*COMMAND, "dola", *output, "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    assert results["chance"] == dict.fromkeys(METRICS, 0.5)
    assert "took (A)" in results["configurations"][0]["metrics"]
    assert len(samples(tmp_path, "truthfulqa_binary_miniature")) == before
    assert main([*COMMAND, "dola", *output, "--seed", "1", "--json"]) == 0
    assert len(samples(tmp_path, "truthfulqa_binary_miniature")) == 2 * before


def test_an_option_past_the_context_is_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "TruthfulQA.csv", [{**ROW, FALSE: "word " * 600}, ROW])
    command = ["eval", "truthfulqa", "--data", path, "--binary", "--prompt", "none"]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert "row 1 (line 2): column Best Incorrect Answer: the answer 'word word " in error
    assert main([*command, "--skip-bad", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["counts"]["evaluated"] == 1


def test_generation_is_not_binary(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "truthfulqa", "--binary", "--generation"]) == 2
    assert "--binary is a choice of two answers: leave --generation out" in capfd.readouterr().err
