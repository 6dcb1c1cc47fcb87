"""Knowledge conflicts: data, figures against a pass of each text, contexts in prompts and in strategies."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import chat_tokenizers
import contrast_oracle as oracle
import pytest

import decoding
from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import Configuration, configured
from decoding.evals.engine.runner import run
from decoding.evals.engine.task import Document
from decoding.evals.metrics.exact_match import mentioned
from decoding.evals.tasks.knowledge_conflict.data import FACTS, ConflictQuestion, load, miniature_questions
from decoding.evals.tasks.knowledge_conflict.generated import GeneratedConflicts
from decoding.evals.tasks.knowledge_conflict.prompts import conflict_prompt
from decoding.evals.tasks.knowledge_conflict.question_task import CONTROL, STRATEGIES
from decoding.evals.tasks.knowledge_conflict.scored import ScoredConflicts
from decoding.strategies.registry import parse_strategy

ROW = {
    "question": "Where is Lima?",
    "context": "Lima is in Chad.",
    "answer": "Chad",
    "memory": "Peru",
    "agreeing_context": "Lima is in Peru.",
    "others": ["Cuba"],
}
SWAPPED = {
    "question": "Where is Lima?",
    "sub_context": "Lima is in Chad.",
    "sub_answer": ["Chad"],
    "org_answer": ["Peru", "in Peru"],
    "org_context": "Lima is in Peru.",
}


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@functools.cache
def expert() -> tuple[Any, Any, oracle.Reader]:
    model, tokenizer = miniature.load("expert")
    return model, tokenizer, oracle.Reader(model)


def ready(task: Any, *specs: str) -> list[Configuration]:
    model, tokenizer, _ = expert()
    return configured([parse_strategy(spec) for spec in specs], model, tokenizer, "expert", task=task.settings)


def scored(questions: list[ConflictQuestion], **options: Any) -> ScoredConflicts:
    return ScoredConflicts(*expert()[:2], questions, conflict_prompt("plain"), **options)


# --- data


def test_columns_are_plain_or_those_of_nq_swap(tmp_path: Path) -> None:
    ((plain,), _) = load(written(tmp_path, ROW))
    ((swapped,), _) = load(written(tmp_path, SWAPPED))
    assert plain.candidates == ["Chad", "Peru", "Cuba"]
    assert swapped.candidates == ["Chad", "Peru"]
    assert swapped.memory == ("Peru", "in Peru")
    for question in (plain, swapped):
        assert question.documents == ("Lima is in Chad.",)
        assert question.agreeing == ("Lima is in Peru.",)
    ((several,), _) = load(written(tmp_path, {**ROW, "context": ["One.", "Two."], "others": "Cuba; Mali;"[:-1]}))
    assert several.documents == ("One.", "Two.")
    assert several.others == ("Cuba", "Mali")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "answer": "Peru"}], r"row 1 \(line 1\), column answer: has 'Peru', which the memory has too"),
        ([{**ROW, "memory": None}], "column memory: is missing; the row has question, context, "),
        ([{**ROW, "context": []}], "column context: has no text"),
        ([{**ROW, "answer": ["Chad", ""]}], "column answer: a text is empty"),
        ([{**SWAPPED, "sub_answer": 3}], "column sub_answer: is int, not text"),
        ([ROW, {**ROW, "agreeing_context": None}], r"row 2 \(line 2\), column agreeing_context: is missing, and "),
    ],
)
def test_a_bad_row_is_one_line(
    rows: list[dict[str, Any]], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=message):
        load(written(tmp_path, *rows))
    assert main(["eval", "knowledge-conflict", "--data", written(tmp_path, *rows)]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_bad_rows_are_left_out_where_asked(tmp_path: Path) -> None:
    questions, left_out = load(written(tmp_path, {**ROW, "memory": " "}, ROW), skip_bad=True)
    assert [question.id for question in questions] == ["2"]
    assert len(left_out) == 1


def test_the_embedded_facts_differ_in_the_answer_alone() -> None:
    questions, left_out = load(FACTS)
    assert left_out == []
    assert len({question.question for question in questions}) == len(questions) >= 60
    for question in questions:
        (document,), (agreeing,) = question.documents, question.agreeing
        assert document.replace(question.answers[0], question.memory[0]) == agreeing
        assert len(set(question.candidates)) == 4
        assert not mentioned(document, [*question.others, *question.memory])


# --- figures by likelihood


def summed(context: str, prompt: str, text: str, alpha: float) -> float:
    """Σ of log-softmax[(1 + α)·logit(y | c, x) - α·logit(y | x)] over a text, in float64, a pass for each reader."""
    _, tokenizer, reader = expert()
    before, prefix = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, context))
    after = tokenizer(text, add_special_tokens=False)["input_ids"]
    with_context, without = (
        reader.logits([*ids, *before, *after])[len(ids) + len(before) - 1 : -1] for ids in (prefix, [])
    )
    scores = ((1 + alpha) * with_context - alpha * without).log_softmax(-1)
    return float(scores[range(len(after)), after].sum())


def test_scores_are_those_of_a_pass_for_each_reader_and_metrics_follow_from_them() -> None:
    questions = miniature_questions("test")[3:5]
    task = scored(questions)
    configurations = ready(task, CONTROL, "greedy", "context-aware:context={context},alpha=1")
    for question in questions:
        records = task.evaluate(Document(question.id, question), configurations)
        prompt = f"Q: {question.question}\nA:"
        for part, documents in (("conflict", question.documents), ("agreement", question.agreeing)):
            context = f"{documents[0]}\n\n"
            for record, (before, alpha) in zip(records, ((context, 0.0), ("", 0.0), (context, 1.0)), strict=True):
                sums = [summed(before, prompt, f" {text}", alpha) for text in question.candidates]
                assert record[part]["normalized"] == pytest.approx(sums, abs=2e-3)  # float32 over some ten tokens
                best = sums.index(max(sums))
                if part == "conflict":
                    assert record["metrics"]["faithful"] == float(best == 0)
                    assert record["metrics"]["memorised"] == float(best == 1)
                    assert record["metrics"]["neither"] == float(best > 1)
                else:
                    assert record["metrics"]["agreeing"] == float(best == 1)
                    assert record["metrics"]["both"] == record["metrics"]["faithful"] * float(best == 1)


def test_the_control_is_greedy_with_the_context_in_its_prompt() -> None:
    questions = miniature_questions("test", 2)[:2]
    task = scored(questions, context_in_prompt=True)
    for question in questions:
        control, greedy = task.evaluate(Document(question.id, question), ready(task, CONTROL, "greedy"))
        assert control["conflict"]["normalized"] == pytest.approx(greedy["conflict"]["normalized"], abs=1e-3)
        assert control["metrics"]["agreeing"] == greedy["metrics"]["agreeing"]


def test_one_document_alone_is_context_aware_decoding() -> None:
    task = scored(miniature_questions("test")[:1])
    (question,) = task.questions
    specs = ("documents:documents={documents}", "context-aware:context={context},alpha=0.25")
    documents, aware = task.evaluate(Document(question.id, question), ready(task, *specs))
    assert documents["conflict"]["normalized"] == pytest.approx(aware["conflict"]["normalized"], abs=1e-3)


def test_equal_scores_are_neither() -> None:
    twins = ConflictQuestion("1", "Q?", ("A.",), ("A.",), ("B.",), ("C.",))
    task = scored([twins])
    (record,) = task.evaluate(Document("1", twins), ready(task, "greedy"))
    assert [record["metrics"][name] for name in ("faithful", "memorised", "neither")] == [0, 0, 1]
    assert "agreeing" not in record["metrics"]
    assert "agreeing" not in task.figures
    assert task.criterion == ("faithful", "faithful/token")


def test_the_memorisation_ratio_is_of_all_questions_together() -> None:
    task = scored(miniature_questions("test")[:1])

    def record(faithful: float, memorised: float) -> dict[str, Any]:
        values = {"faithful": faithful, "memorised": memorised}
        return {"metrics": {f"{name}{way}": value for name, value in values.items() for way in task.ways}}

    assert task.corpus_metrics([record(1, 0), record(0, 1), record(0, 1), record(0, 0)])["MR"] == 2 / 3
    assert task.corpus_metrics([record(0, 0)])["MR raw"] == 0


def test_a_context_that_does_not_fit_is_named_and_nothing_is_cut() -> None:
    longest = expert()[0].config.max_position_embeddings
    long = ConflictQuestion("7", "Q?", ("A.",), ("B.",), (), ("word " * 600,), where="file, row 7")
    task = scored([long])
    with pytest.raises(InputError, match=r"file, row 7: its prompt has \d+ tokens, an answer \d+ and the texts that a"):
        run(task, ready(task, CONTROL))
    generated = GeneratedConflicts(*expert()[:2], [long], conflict_prompt("plain"), context_in_prompt=True)
    with pytest.raises(InputError, match=f"may have 32: more than the model's context of {longest}"):
        run(generated, ready(generated, "greedy"))


@pytest.mark.parametrize("template", ["chatml", "default-system", "instructions"])
def test_in_a_chat_the_context_in_the_prompt_is_the_system_message(template: str) -> None:
    tokenizer = chat_tokenizers.chat_tokenizer(template)
    question = ConflictQuestion("1", "Who asked?", ("A.",), ("B.",), (), ("The bear eats fish.",))
    prompt = conflict_prompt("chat", tokenizer)
    task = ScoredConflicts(expert()[0], tokenizer, [question], prompt, context_in_prompt=True)
    configuration = Configuration(parse_strategy("greedy"), {})
    ((text, _),) = task.asked(question, question.documents, [configuration])
    messages = [{"role": "system", "content": "The bear eats fish."}, {"role": "user", "content": "Who asked?"}]
    assert text == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


# --- generated text


def test_generated_answers_are_those_of_generate_and_are_matched() -> None:
    model, tokenizer, _ = expert()
    questions = miniature_questions("test")[:2]
    task = GeneratedConflicts(model, tokenizer, questions, conflict_prompt("plain"), max_new_tokens=12)
    configurations = ready(task, "greedy", "context-aware:context={context},alpha=1")
    known = []
    for question in questions:
        records = task.evaluate(Document(question.id, question), configurations)
        inputs = tokenizer(f"Q: {question.question}\nA:", return_tensors="pt")
        aware = decoding.ContextAware(f"{question.documents[0]}\n\n", alpha=1.0, tokenizer=tokenizer)
        expected = (
            model.generate(**inputs, max_new_tokens=12),
            decoding.generate(model, **inputs, strategy=aware, max_new_tokens=12),
        )
        for record, ids in zip(records, expected, strict=True):
            line = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert record["conflict"] == line.split("\n")[0].strip()
            assert record["metrics"]["memorised"] == float(record["conflict"] in question.memory)
            assert record["metrics"]["faithful"] == float(record["conflict"] in question.answers)
            assert record["metrics"]["agreeing"] == float(record["agreement"] in question.memory)
            assert record["metrics"]["memorised words"] >= record["metrics"]["memorised"]
            known.append(record["metrics"]["memorised"])
    assert any(known)  # the expert knows its world
    assert set(task.figures) - {"MR words"} <= set(records[0]["metrics"])


# --- the command


def figures(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {
        entry["label"]: {name: figure["value"] for name, figure in entry["metrics"].items()}
        for entry in results["configurations"]
    }


def test_the_command_compares_the_control_with_the_contrasts(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knowledge-conflict", "--limit", "3", "--json"]) == 0
    out, err = capfd.readouterr()
    results = json.loads(out)
    assert err == ""
    values = figures(results)
    assert list(values) == [parse_strategy(spec).label for spec in STRATEGIES]
    greedy = values["greedy"]
    assert greedy["memorised"] == greedy["agreeing"] >= 0.5  # without a context both are one question
    assert results["chance"]["faithful"] == 0.25


def test_tune_chooses_on_other_questions(capfd: pytest.CaptureFixture[str]) -> None:
    tried = "context-aware:context={context},alpha=0.5|1"
    command = ["tune", "knowledge-conflict", "--limit", "2", "--strategy", CONTROL, "--strategy", tried, "--json"]
    assert main(command) == 0
    results = json.loads(capfd.readouterr().out)
    validation = {question.id for question in miniature_questions("validation")}
    assert set(results["tuning"]["documents"]) <= validation
    assert results["tuning"]["by"] == ["both", "both/token"]
    assert results["counts"]["evaluated"] == 2


def test_a_first_strategy_without_the_context_is_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "knowledge-conflict", "--data", written(tmp_path, ROW), "--strategy", "greedy", "--json"]
    assert main(command) == 0
    assert f"greedy reads no context, and the others are compared with it: put {CONTROL} " in capfd.readouterr().err
    assert main([*command, "--context-in-prompt"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "x.csv", "--documents", "2"], "--documents and --contradicting are of the embedded questions"),
        (["--contradicting"], "--contradicting: needs documents beside the true one; give --documents 2 or more"),
        (["--generation-config", "repetition_penalty=1.2"], "--generation-config: likelihoods are read and no "),
        (["--prompt", "plan"], "unknown --prompt 'plan'; did you mean plain"),
        (["--strategy", "sampling", "--context-in-prompt"], "--strategy sampling: gives no score to a given answer"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knowledge-conflict", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert message in err
