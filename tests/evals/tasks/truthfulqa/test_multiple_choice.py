"""MC1, MC2 and MC3 against an oracle of one forward pass an answer, and against lm-eval."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from chat_tokenizers import INSTRUCTIONS
from command_results import refused
from forked_process import after_fork
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.engine.tables import shell_word
from decoding.evals.metrics.multiple_choice import mc1, mc2
from decoding.evals.tasks.truthfulqa.data import Question, load
from decoding.evals.tasks.truthfulqa.miniature import GRIDS, STRATEGIES, questions
from decoding.evals.tasks.truthfulqa.multiple_choice import METRICS, MultipleChoice
from decoding.evals.tasks.truthfulqa.prompts import prompt_of
from decoding.strategies.registry import candidates_of, parse_strategy

SHARED = Path(__file__).resolve().parents[5] / "shared"
pytestmark = pytest.mark.usefixtures("models_loaded_once")
QUESTIONS = int(os.environ.get("ORACLE_QUESTIONS", "1"))  # 50 take a minute, most of it the oracle's


@functools.cache
def world() -> tuple[Any, Any, dict[str, oracle.Reader]]:
    """The embedded expert, its tokenizer, and every reader in float64 by itself."""
    model, tokenizer = miniature.load("expert")
    readers = {"expert": oracle.Reader(model), "amateur": oracle.Reader(miniature.load("amateur")[0])}
    merged = copy.deepcopy(model)
    merged.load_adapter(str(miniature.folder("induced")), "induced")
    for layer in list(merged.modules()):
        if hasattr(layer, "lora_A"):
            layer.merge(adapter_names=["induced"])
    readers["induced"] = oracle.Reader(merged)
    for reader in readers.values():  # strategies ask for the same texts
        reader.logits = functools.cache(reader.logits)
        reader.early = functools.cache(reader.early)
    return model, tokenizer, readers


def contrasts() -> list[Callable[[tuple[int, ...]], Tensor]]:
    """The scores (length, vocab) of each of STRATEGIES after each token of a text, each reader alone."""
    _, tokenizer, readers = world()
    expert, amateur, induced = (readers[name] for name in ("expert", "amateur", "induced"))
    guide = tokenizer(miniature.GUIDANCE, add_special_tokens=False)["input_ids"]

    def stepwise(score: Callable[..., Tensor], *logits: Tensor) -> Tensor:
        return torch.stack([score(*step) for step in zip(*logits, strict=True)])

    def guided(text: tuple[int, ...]) -> Tensor:
        return expert.logits((*guide, *text))[len(guide) :]

    def lol(text: tuple[int, ...], guidance: bool) -> Tensor:
        layers = [2, 3]  # 0.5 and 0.75 of 4
        settings = {
            "amateur_weight": 1.0, "lower_amateur_weight": 1.0, "fusion_weight": 0.5, "fusion": "static",
            "refocus_weight": 0.5, "alpha": 0.1,
        }  # fmt: skip
        early = [(expert.early(text, layer, True), induced.early(text, layer, True)) for layer in layers]
        final, lies, guides = expert.logits(text), induced.logits(text), guided(text) if guidance else None
        return torch.stack(
            [
                oracle.lol(
                    final[i], lies[i], [(e[i], a[i]) for e, a in early], None if guides is None else guides[i], settings
                )
                for i in range(len(text))
            ]
        )

    return [
        expert.logits,
        lambda text: stepwise(
            lambda e, a: oracle.contrastive_decoding(e, a, 0.1, 0.5, "logits"),
            expert.logits(text),
            amateur.logits(text),
        ),
        lambda text: stepwise(
            lambda e, a: oracle.contrastive_decoding(e, a, 0.0, 1.0, "log_probs"),
            expert.logits(text),
            induced.logits(text),
        ),
        # "high" of 4 layers is layer 2 alone
        lambda text: stepwise(
            lambda e, p: oracle.dola(e, [p], 0.1, "dola"), expert.logits(text), expert.early(text, 2, False)
        ),
        lambda text: stepwise(lambda c, e: oracle.context_aware(c, e, 0.5), guided(text), expert.logits(text)),
        lambda text: lol(text, False),
        lambda text: lol(text, True),
    ]


def figures(question: Question, scores: Sequence[float]) -> tuple[float, float, float]:
    """MC1, MC2 and MC3 by their definitions, in float64 with plain exponentials above the highest score."""
    of = dict(zip(question.answers, scores, strict=True))
    true, false = ([of[answer] for answer in answers] for answers in question.mc2)
    best = of[question.best_answer]
    first = float(all(best > of[answer] for answer in question.mc1.false))
    top = max(*true, *false)
    p_true, p_false = (sum(math.exp(score - top) for score in side) for side in (true, false))
    return first, p_true / (p_true + p_false), sum(score > max(false) for score in true) / len(true)


def by_oracle(scores_of: Callable[[tuple[int, ...]], Tensor], question: Question, plain: bool) -> list[float]:
    """The six figures of METRICS, one forward pass an answer."""
    _, tokenizer, _ = world()
    prompt = prompt_of("none")
    before = tokenizer(prompt.text(question.question))["input_ids"]
    sums: tuple[list[float], list[float]] = ([], [])
    for answer in question.answers:
        text = tuple(tokenizer(prompt.text(question.question) + prompt.answer(answer))["input_ids"])
        scores = scores_of(text)[len(before) - 1 : -1]
        after = torch.tensor(text[len(before) :])[:, None]
        normalized = scores - scores.logsumexp(-1, keepdim=True)
        for side, given in zip(sums, (normalized, normalized if plain else scores), strict=True):
            side.append(float(given.gather(1, after).clamp_min(-1000.0).sum()))
    return [*figures(question, sums[0]), *figures(question, sums[1])]


@torch.no_grad()
def test_every_strategy_equals_one_pass_an_answer(tmp_path: Path) -> None:
    model, tokenizer, _ = world()
    asked = questions("test")[:QUESTIONS]
    task = MultipleChoice(model, tokenizer, asked, prompt_of("none"))
    made = configured([parse_strategy(text) for text in STRATEGIES], model, tokenizer, "expert", task=task.settings)
    run(task, made, output=tmp_path)
    lines = map(json.loads, (tmp_path / "samples_truthfulqa_mc.jsonl").read_text().splitlines())
    found = {(line["document"], line["configuration"]): line["metrics"] for line in lines}
    for strategy, (configuration, scores_of) in enumerate(zip(made, contrasts(), strict=True)):
        for question in asked:
            right = by_oracle(scores_of, question, plain=strategy == 0)
            for metric, value in zip(METRICS, right, strict=True):
                tolerance = 1e-4 if metric.startswith("MC2") else 1e-6
                assert found[question.id, configuration.hash][metric] == pytest.approx(value, abs=tolerance), (
                    configuration.label, question.id, metric,
                )  # fmt: skip


def test_without_a_strategy_figures_are_those_of_lm_eval(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.truthfulqa.utils import process_results_mc2

    data, folder = SHARED / "data/truthfulqa/mc_task.json", SHARED / "models/stories3M"
    if not data.is_file():
        pytest.skip("TruthfulQA lies outside the repository and is not here")
    asked = load(str(data))[0][::450]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = prompt_of("lm-eval")
    task = MultipleChoice(model, tokenizer, asked, prompt)
    run(task, configured([parse_strategy("greedy")], model, tokenizer, "m", task=task.settings), output=tmp_path)
    lines = map(json.loads, (tmp_path / "samples_truthfulqa_mc.jsonl").read_text().splitlines())
    found = {line["document"]: line["metrics"] for line in lines}
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)

    def scored(question: Question, answers: Sequence[str]) -> list[tuple[float, bool]]:
        requests = [
            Instance("loglikelihood", {}, (prompt.text(question.question), f" {answer}"), i)
            for i, answer in enumerate(answers)
        ]
        return harness.loglikelihood(requests, disable_tqdm=True)

    for question in asked:
        first = scored(question, [*question.mc1.true, *question.mc1.false])
        best = max(range(len(first)), key=lambda i: first[i][0])
        labels = [1] * len(question.mc2.true) + [0] * len(question.mc2.false)
        second = scored(question, [*question.mc2.true, *question.mc2.false])
        theirs = process_results_mc2({"mc2_targets": {"labels": labels}}, second)["acc"]
        assert found[question.id]["MC1"] == float(best == 0)
        if not math.isnan(theirs):  # every probability of theirs was 0
            # They sum in float32 over a few dozen tokens.
            assert found[question.id]["MC2"] == pytest.approx(theirs, abs=1e-4)


def test_an_answer_that_two_lists_share_is_scored_once_and_counted_in_both() -> None:
    question = questions("test")[0]
    scores = [float(-i) for i, _ in enumerate(question.answers)]
    assert figures(question, scores)[0] == mc1(scores[0], scores[2:])
    assert figures(question, scores)[1] == pytest.approx(mc2(scores[:2], scores[2:]))


# --- the command -----------------------------------------------------------------------------------------------------

COMMAND = ["eval", "truthfulqa", "--miniature", "--limit", "8", "--strategy", "greedy", "--strategy"]
LOL_SPEC = "lol:amateur=induced,lower_layers=0.5"


def results_in(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("results_*.json"))]
    return [{name: value for name, value in results.items() if name != "times"} for results in found]


@pytest.mark.usefixtures("same_last_bits")
def test_the_command_killed_and_resumed_and_shared_by_two_ranks_gives_the_same_files(
    tmp_path: Path, models_loaded_once: Callable[[], None]
) -> None:
    assert main([*COMMAND, LOL_SPEC, "--output", str(tmp_path / "alone"), "--json"]) == 0
    alone = results_in(tmp_path / "alone")
    fork = multiprocessing.get_context("fork")

    def command(folder: Path, **environment: str) -> Any:
        def call() -> None:
            after_fork()
            os.environ.update(environment)
            models_loaded_once()
            os._exit(main([*COMMAND, LOL_SPEC, "--output", str(folder), "--json"]))

        child = fork.Process(target=call)
        child.start()
        return child

    generator, killed = random.Random(0), tmp_path / "killed"
    for _ in range(2):
        child = command(killed)
        before = time.monotonic()
        wanted = generator.randint(1, 4)  # lines more than there were
        there = lines_of(killed)
        while lines_of(killed) < there + wanted and child.is_alive() and time.monotonic() < before + 60:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert 0 < lines_of(killed) <= 16
    models_loaded_once()
    assert main([*COMMAND, LOL_SPEC, "--output", str(killed), "--json"]) == 0
    assert results_in(killed)[-1:] == alone

    ranks = [command(tmp_path / "two", RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    assert results_in(tmp_path / "two") == alone
    merged, single = (tmp_path / folder / "samples_truthfulqa_miniature.jsonl" for folder in ("two", "alone"))
    assert merged.read_bytes() == single.read_bytes()


def lines_of(folder: Path) -> int:
    path = folder / "samples_truthfulqa_miniature.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def test_hyper_parameters_are_chosen_on_the_validation_questions(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    grids = [grid for grid in GRIDS if grid.startswith(("greedy", "contrastive-decoding:amateur=amateur", "context"))]
    given = [word for grid in grids for word in ("--strategy", grid)]
    assert main(["tune", "truthfulqa", "--miniature", "--limit", "6", *given, "--output", str(tmp_path)]) == 0
    validation, test = results_in(tmp_path)
    assert (validation["task"], test["task"]) == ("truthfulqa_miniature_validation", "truthfulqa_miniature_report")
    assert [entry["given"] for entry in test["tuning"]["strategies"]] == grids
    entries = iter(validation["configurations"])
    for grid, entry, record in zip(grids, test["configurations"], test["tuning"]["strategies"], strict=True):
        tried = [next(entries) for _ in candidates_of(grid)]
        best = max(tried, key=lambda one: [one["metrics"][name]["value"] for name in ("MC1", "MC2")])
        assert entry["parameters"] == best["parameters"]
        assert parse_strategy(record["chosen"]).label == entry["label"] == best["label"]
        assert len(record["tried"]) == len(tried)
    assert next(entries, None) is None
    asked = {json.loads(line)["document"] for line in (tmp_path / "samples_truthfulqa_miniature_report.jsonl").open()}
    assert asked == {question.id for question in questions("test")[:6]}
    assert test["tuning"]["documents"] == [question.id for question in questions("validation")[:6]]
    shown = capfd.readouterr().out
    assert "against greedy" in shown
    assert "chosen on 6 documents by MC1, then MC2; the results are of others" in shown
    for record in test["tuning"]["strategies"]:
        assert f"--strategy {shell_word(record['chosen'])}" in shown


def test_p_values_are_corrected_on_request(capfd: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "truthfulqa", "--miniature", "--limit", "5", "--strategy", "greedy", "--strategy", "dola"]
    assert main([*command, "--json"]) == 0
    plain = json.loads(capfd.readouterr().out)["comparisons"][0]["metrics"]
    assert not any("p_holm" in plain[name] for name in METRICS)
    assert main([*command, "--holm", "--json"]) == 0
    corrected = json.loads(capfd.readouterr().out)["comparisons"][0]["metrics"]
    for name in METRICS:
        p = plain[name]["p"] if plain[name]["mcnemar_p"] is None else plain[name]["mcnemar_p"]
        assert p <= corrected[name]["p_holm"] <= min(1, len(METRICS) * p)
    assert main([*command, "--holm"]) == 0
    assert "Holm's correction for 6" in capfd.readouterr().out


def test_a_translation_is_asked_with_guidance_in_its_language(tmp_path: Path) -> None:
    targets = {"choices": ["Ja.", "Nein."], "labels": [1, 0]}
    for language in ("de", "es"):
        row = {"question": "Ist das so?", "mc1_targets": targets, "mc2_targets": targets}
        (tmp_path / f"questions_{language}.json").write_text(json.dumps([row]))
    spec = "lol:amateur=amateur,lower_layers=0.5,guidance=default"
    output = tmp_path / "output"
    assert main(
        ["eval", "truthfulqa", "--data", str(tmp_path), "--languages", "de,es", "--prompt", "none", "--strategy", spec,
         "--output", str(output)]
    ) == 0  # fmt: skip
    found = {results["task"]: results["configurations"][0]["parameters"]["language"] for results in results_in(output)}
    assert found == {"truthfulqa_mc_de": "de", "truthfulqa_mc_es": "es"}


def test_an_answer_past_the_context_is_named_or_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def row(answer: str) -> dict[str, Any]:
        targets = {"choices": [answer, "No."], "labels": [1, 0]}
        return {"question": "Is it?", "mc1_targets": targets, "mc2_targets": targets}

    path = tmp_path / "questions.json"
    path.write_text(json.dumps([row("Yes."), row("word " * 600), row("Perhaps.")]))
    command = ["eval", "truthfulqa", "--data", str(path), "--prompt", "none"]
    assert main(command) == 2
    error = capfd.readouterr().err
    assert f"{path}, row 2: column mc2_targets: the answer 'word word " in error
    assert "more than the model's context of 512" in error
    assert main([*command, "--skip-bad", "--json"]) == 0
    counts = json.loads(capfd.readouterr().out)["counts"]
    assert (counts["evaluated"], counts["skipped"]) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--miniature", "--data", "x.csv"], "--miniature brings its own questions"),
        (["--miniature", "--strategy", "sampling"], "sampling: gives no score"),
        (["--miniature", "--strategy", "greedy", "--strategy", "greedy"], "given twice"),
        (["--data", "absent.csv"], "there is no such file"),
        (["--data", "absent.csv", "--prompt", "shakespeare"], "unknown prompt style"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert message in refused(main(["eval", "truthfulqa", *arguments]), *capfd.readouterr())


def test_the_context_of_a_chat_is_its_system_message() -> None:
    """Without a contrast (alpha=0) scores are the model's own after chats with the context."""
    model, tokenizer, _ = world()
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = INSTRUCTIONS
    prompt = prompt_of("chat", tokenizer)
    context, begin = "Answer with what is true only.", f"{tokenizer.bos_token}[INST] "
    assert prompt.prefix.startswith(begin)
    prefix = f"{begin}<<SYS>>\n{context}\n<</SYS>>\n\n{prompt.prefix.removeprefix(begin)}"
    records = []
    for form, spec in (
        (prompt, f"context-aware:context={context},alpha=0"),
        (dataclasses.replace(prompt, prefix=prefix), "greedy"),
    ):
        task = MultipleChoice(model, tokenizer, questions("test")[:4], form)
        configurations = configured([parse_strategy(spec)], model, tokenizer, "expert", task=task.settings)
        records.append([row[0]["normalized"] for row in task.evaluate_group(task.documents(), configurations)])
        task.release()
    for one, other in zip(*records, strict=True):
        assert one == pytest.approx(other, abs=1e-3)  # float32 sums in another order
