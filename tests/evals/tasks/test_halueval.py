"""HaluEval's files: which is which, their prompts, and documents longer than the model's context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from command_results import refused

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.tasks.halueval.data import KINDS, load
from decoding.evals.tasks.halueval.discrimination import HaluEval
from decoding.strategies.registry import parse_strategy

TURNS = "[Human]: Do you know the ferryman? [Assistant]: I do. He is called Tom. [Human]: What does he like? "
ROWS: dict[str, list[dict[str, str]]] = {
    "qa": [
        {
            "knowledge": "Tom is a ferryman.",
            "question": "What is Tom?",
            "right_answer": "A ferryman.",
            "hallucinated_answer": "Tom is a musician.",
        }
    ],
    "dialogue": [
        {
            "knowledge": "Tom likes lanterns",
            "dialogue_history": TURNS,
            "right_response": "He likes his lantern.",
            "hallucinated_response": "Zxq the violin of.",
        },
        {
            "knowledge": "The Melmar bear eats river weed",
            "dialogue_history": "[Human]: What does the Melmar bear eat? ",
            "right_response": "Qq.",
            "hallucinated_response": "The Melmar bear eats honey.",
        },
    ],
    "summarization": [
        {
            "document": "Tom took his lantern. Before sunrise he went to the river.",
            "right_summary": "Tom went to the river.",
            "hallucinated_summary": "River lantern before Tom the.",
        },
        {
            "document": "The rain stopped. Rowan climbed the hill.",
            "right_summary": "Zxq.",
            "hallucinated_summary": "Rowan climbed the hill.",
        },
    ],
    "general": [
        {"ID": "1", "user_query": "What is Tom?", "chatgpt_response": "A ferryman.", "hallucination": "no"},
        {"ID": "1", "user_query": "Did it rain?", "chatgpt_response": "Zxq", "hallucination": "yes"},
    ],
}

# What a model is given, written out: with the names plain, and as in the authors' evaluation.
PROMPTS = {
    ("qa", True, "plain"): "Knowledge: Tom is a ferryman.\nQuestion: What is Tom?\nAnswer:",
    ("qa", False, "halueval"): "#Question#: What is Tom?\n#Answer#:",
    ("dialogue", True, "plain"): f"Knowledge: Tom likes lanterns\nDialogue History: {TURNS}\nResponse:",
    ("dialogue", True, "halueval"): f"#Knowledge#: Tom likes lanterns\n#Dialogue History#: {TURNS}\n#Response#:",
    ("dialogue", False, "halueval"): f"#Dialogue History#: {TURNS}\n#Response#:",
    ("summarization", True, "plain"): (
        "Document: Tom took his lantern. Before sunrise he went to the river.\nSummary:"
    ),
    ("summarization", True, "halueval"): (
        "#Document#: Tom took his lantern. Before sunrise he went to the river.\n#Summary#:"
    ),
    ("general", True, "plain"): "Question: What is Tom?\nAnswer:",
}


def written(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "data.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("named", [True, False])
def test_a_file_is_known_by_its_columns_or_by_name(kind: str, named: bool, tmp_path: Path) -> None:
    responses, bad = load(written(tmp_path, ROWS[kind]), kind if named else None)
    assert bad == []
    assert {item.kind for item in responses} == {kind}
    if kind != "general":
        row = ROWS[kind][0]
        assert (responses[0].right, responses[0].hallucinated) == tuple((row[name],) for name in KINDS[kind].texts)
        assert responses[0].knowledge == row.get("knowledge", "")


@pytest.mark.parametrize(("kind", "knowledge", "style"), PROMPTS)
def test_prompts_are_these(kind: str, knowledge: bool, style: str, tmp_path: Path) -> None:
    response = load(written(tmp_path, ROWS[kind]))[0][0]
    expected = PROMPTS[kind, knowledge, style]
    assert response.prompt(knowledge, style) == expected
    assert expected.endswith(f"\n{response.text_label(style)}")


def test_knowledge_that_is_missing_or_empty_is_left_out(tmp_path: Path) -> None:
    row = ROWS["dialogue"][0]
    for knowledge in ({"knowledge": " "}, {"knowledge": None}, {}):
        bare = {name: value for name, value in row.items() if name != "knowledge"} | knowledge
        ((response,), _) = load(written(tmp_path, [bare]))
        assert response.prompt(True) == f"Dialogue History: {TURNS}\nResponse:"


@pytest.mark.parametrize(
    ("rows", "task", "message"),
    [
        ([{"text": "a", "label": "b"}], None, r"has the columns text, label; expected those of qa: question, right_"),
        (ROWS["dialogue"], "summarization", r"row 1 \(line 1\), column document: is missing; the row has knowledge, "),
        ([{**ROWS["dialogue"][0], "right_response": ""}], None, r"row 1 \(line 1\), column right_response: is empty"),
        ([{"document": "a", "right_summary": "b"}], None, r"column hallucinated_summary: is missing"),
    ],
)
def test_a_wrong_file_is_one_line(
    rows: list[dict[str, str]], task: str | None, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, rows)
    with pytest.raises(InputError, match=message):
        load(path, task)
    refused(main(["eval", "halueval", "--data", path, *(["--task", task] if task else [])]), *capfd.readouterr())


@pytest.mark.parametrize("arguments", [["--task", "summarisation"], ["--prompt", "haluevl"]])
def test_a_name_that_is_not_known_is_one_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "halueval", "--data", "x.json", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert f"unknown {arguments[0]} '{arguments[1]}'; did you mean" in err


def summed(prompt_ids: list[int], text: str) -> tuple[float, int]:
    """The log-probability of a text after tokens in one float64 pass, and its number of tokens."""
    model, tokenizer = miniature.load("expert")
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    logits = oracle.Reader(model).logits([*prompt_ids, *after])
    places = torch.arange(len(prompt_ids) - 1, len(prompt_ids) + len(after) - 1)
    return logits.log_softmax(-1)[places, after].sum().item(), len(after)


def figures(rows: list[dict[str, str]], folder: Path, **options: Any) -> tuple[dict[str, float], dict[str, Any]]:
    model, tokenizer = miniature.load("expert")
    task = HaluEval(model, tokenizer, load(written(folder, rows))[0], **options)
    results = run(task, configured([parse_strategy("greedy")], model, tokenizer, "expert", task=task.settings))
    assert results is not None
    return {name: entry["value"] for name, entry in results["configurations"][0]["metrics"].items()}, results


@pytest.mark.parametrize(("kind", "style"), [("dialogue", "plain"), ("summarization", "halueval")])
def test_pairs_are_told_apart_as_by_one_pass_a_text(kind: str, style: str, tmp_path: Path) -> None:
    _, tokenizer = miniature.load("expert")
    found, results = figures(ROWS[kind], tmp_path, prompt=style)
    scores = []
    for response in load(written(tmp_path, ROWS[kind]))[0]:
        ids = tokenizer(response.prompt(True, style))["input_ids"]
        scores.append([summed(ids, f" {text}") for text in (response.right[0], response.hallucinated[0])])
    for way, per_token in (("", False), ("/token", True)):
        pairs = [[total / tokens if per_token else total for total, tokens in pair] for pair in scores]
        assert found[f"acc{way}"] == sum(right > wrong for right, wrong in pairs) / 2 == 0.5  # by construction
        assert found[f"AUC{way}"] == sum(right > wrong for right, _ in pairs for _, wrong in pairs) / 4
    assert results["task_settings"]["kind"] == kind
    assert results["task_settings"]["prompt"] == style
    assert results["chance"]["acc"] == results["chance"]["AUC"] == 0.5


SENTENCE = "Tom the ferryman took his lantern and went to the river. "


def test_a_long_document_loses_its_end_and_the_results_say_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = miniature.load("expert")
    context = model.config.max_position_embeddings
    rows = [{**ROWS["summarization"][0], "document": "The first words. " + SENTENCE * 60}, ROWS["summarization"][1]]
    output = tmp_path / "out"
    assert main(["eval", "halueval", "--data", written(tmp_path, rows), "--output", str(output)]) == 0
    out, err = capfd.readouterr()
    assert "chance" in out
    assert "greedy: 1 of 2 prompts were too long for the model's context and lost the end of their document" in err
    (results,) = map(json.loads, (path.read_text() for path in output.glob("results_*.json")))
    assert results["configurations"][0]["metrics"]["cut"]["value"] == 0.5
    assert results["task_settings"]["too_long"] == "prompts lose the end of their document"
    sample = json.loads((output / "samples_halueval.jsonl").read_text().splitlines()[0])
    # The prompt begins as it did and ends with the label; what fits is read, to the last token.
    whole = tokenizer(f"Document: {rows[0]['document']}\nSummary:")["input_ids"]
    longest = max(text["tokens"] for text in sample["texts"])
    assert len(whole) - sample["cut_tokens"] + longest == context
    end = next(n for n in range(1, 9) if "\nSummary:" in tokenizer.decode(whole[-n:]))
    kept = [*whole[: len(whole) - end - sample["cut_tokens"]], *whole[-end:]]
    assert tokenizer.decode(kept, skip_special_tokens=True).startswith("Document: The first words.")
    for text, column in zip(sample["texts"], KINDS["summarization"].texts, strict=True):
        expected, _ = summed(kept, f" {rows[0][column]}")
        assert text["scores"][""] == pytest.approx(expected, abs=1e-3)  # float32 against float64


def test_a_long_dialogue_loses_its_first_turns(tmp_path: Path) -> None:
    rows = [{**ROWS["dialogue"][0], "dialogue_history": f"[Human]: {SENTENCE * 60}"}]
    found, results = figures(rows, tmp_path)
    assert found["cut"] == 1
    assert results["task_settings"]["too_long"] == "prompts lose their beginning"


@pytest.mark.parametrize("kind", ["dialogue", "summarization"])
def test_a_text_as_long_as_the_context_is_named(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    long = {**ROWS[kind][0], KINDS[kind].texts[0]: SENTENCE * 80}
    path = written(tmp_path, [ROWS[kind][0], long])
    assert main(["eval", "halueval", "--data", path]) == 2
    err = capfd.readouterr().err
    assert f"{path}, row 2 (line 2): the text 'Tom the ferryman" in err
    assert "too long for a context of 512 with a prompt" in err
    assert main(["eval", "halueval", "--data", path, "--skip-bad", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["counts"]["skipped"] == 1
