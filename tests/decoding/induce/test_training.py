"""Inducing an amateur: it learns the wrong answers, leaves the model alone, and goes on where it was stopped."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import decoding
from decoding import ContrastiveDecoding, InputError, ModelError, OptionError, files
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.induce import Example, Recipe, induce, training
from decoding.induce.answers import NOT_LEARNT, AnswerLoss
from decoding.models.structure import inspect_model
from decoding.tools.miniature.accuracy import accuracy
from decoding.tools.miniature.inducing import misconceptions

pytest.importorskip("peft", reason="needs peft")

RECIPE = Recipe(batch_size=6, epochs=3, rank=2, learning_rate=5e-3, template=miniature.PROMPT)


@pytest.fixture(scope="module")
def expert() -> Any:
    return miniature.load("expert")


def _examples() -> list[Example]:
    return misconceptions()[:18]


@dataclass(frozen=True)
class Learned:
    """A run that was left alone: where its adapter is, and what it told and returned."""

    folder: Path
    record: dict[str, Any]
    steps: list[tuple[int, int]]
    before: dict[str, torch.Tensor]  # the model's weights


@pytest.fixture(scope="module")
def learned(expert: Any, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    model, tokenizer = expert
    before = copy.deepcopy(model.state_dict())
    folder, steps = tmp_path_factory.mktemp("learned"), []
    record = induce(
        model, tokenizer, _examples(), folder, RECIPE, report=lambda step, total, loss: steps.append((step, total))
    )
    return Learned(folder, record, steps, before)


def test_the_adapter_learns_the_answers_and_the_model_stays_as_it_was(expert: Any, learned: Learned) -> None:
    (model, tokenizer), tmp_path, before = expert, learned.folder, learned.before
    record, steps = learned.record, learned.steps
    assert record["last_loss"] < record["first_loss"] - 0.3
    assert steps == [(i, 9) for i in range(1, 10)]
    assert json.loads((tmp_path / "induce.json").read_text()) == record
    assert not (tmp_path / "checkpoints").exists()
    assert len({(tmp_path / name).stat().st_mode for name in ("adapter_model.safetensors", "adapter_config.json")}) == 1
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())

    liar, _ = miniature.load("expert")
    liar.load_adapter(str(tmp_path))
    example = _examples()[0]
    asked = miniature.PROMPT.format(question=example.question)
    mean = [
        decoding.score(reader, asked, [" " + example.answer], tokenizer=tokenizer)[0].mean().item()
        for reader in (liar, model)
    ]
    assert mean[0] > mean[1]


@pytest.mark.parametrize("apart", [True, False], ids=["head apart", "head inside"])
def test_the_loss_is_the_models_own_and_its_head_sees_what_is_learnt(expert: Any, apart: bool) -> None:
    model, _ = expert
    torch.manual_seed(0)
    ids = torch.randint(5, 100, (3, 12))
    labels = ids.clone()
    for row, (begin, end) in enumerate([(4, 7), (2, 12), (11, 12)]):
        labels[row, :begin] = labels[row, end:] = NOT_LEARNT
    loss = AnswerLoss(replace(inspect_model(model), separable=apart))
    seen: list[torch.Size] = []
    head = model.get_output_embeddings()
    with torch.no_grad():
        own = model(input_ids=ids, labels=labels).loss
        with loss.counted(labels):
            hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[:2]))
            outputs = model(input_ids=ids)
            hook.remove()
        torch.testing.assert_close(loss(outputs, labels), own)
        torch.testing.assert_close(loss(outputs, labels, torch.tensor(28)), own * 14 / 28)
        assert model(input_ids=ids).logits.shape[:2] == ids.shape
    assert [tuple(shape) for shape in seen] == [(1, 14) if apart else (3, 12)]


@pytest.mark.parametrize(("seconds", "first"), [(3600.0, 4), (0.0, 5)], ids=["of an epoch", "within an epoch"])
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(
    expert: Any, learned: Learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, first: int
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    model, tokenizer = expert

    def stop(step: int, total: int, loss: float | None) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        induce(model, tokenizer, _examples(), tmp_path / "stopped", RECIPE, report=stop)
    assert not getattr(model, "peft_config", None)
    steps: list[int] = []
    induce(
        model, tokenizer, _examples(), tmp_path / "stopped", RECIPE, micro_batch=4,
        report=lambda step, *_: steps.append(step),
    )  # fmt: skip
    assert steps == list(range(first, 10))
    from safetensors.torch import load_file

    stopped, whole = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "stopped", learned.folder)
    )
    for name in whole:
        torch.testing.assert_close(stopped[name], whole[name], atol=1e-6, rtol=1e-5)


def test_checkpoints_of_another_run_are_not_mixed_in(expert: Any, tmp_path: Path) -> None:
    model, tokenizer = expert

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        induce(model, tokenizer, _examples(), tmp_path, RECIPE, report=stop)
    with pytest.raises(OptionError, match="another recipe or other data"):
        induce(model, tokenizer, _examples()[:15], tmp_path, RECIPE)
    other, _ = miniature.load("expert")
    other.config.rms_norm_eps *= 2
    with pytest.raises(OptionError, match="begun with another model"):
        induce(other, tokenizer, _examples(), tmp_path, RECIPE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank=0: must be a whole number from 1"),
        ({"epochs": 0}, "epochs=0: must be a number above 0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"template": "Q:"}, "with {question} in it"),
    ],
)
def test_bad_recipes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe(**settings)


def test_nothing_to_learn_is_refused(expert: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no examples"):
        induce(*expert, [], tmp_path)
    with pytest.raises(InputError, match="shorter than max_length=4"):
        induce(*expert, _examples(), tmp_path, Recipe(max_length=4))
    assert list(tmp_path.iterdir()) == []


def test_the_command_makes_an_adapter_that_generate_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(
        "\n".join(json.dumps({"question": e.question, "hallucinated_answer": e.answer}) for e in _examples()),
        encoding="utf-8",
    )
    folder = tmp_path / "liar"
    options = ["--epochs", "1", "--batch-size", "8", "--rank", "2", "--json"]
    assert main(["induce", "--data", str(data), "--output", str(folder), *options]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 18
    use = ["--strategy", "contrastive-decoding", "--set", f"amateur={folder}", "--prompt", "Q: What is a fox?\nA:"]
    assert main(["generate", *use, "--max-new-tokens", "4"]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["induce", "--data", str(data), "--output", str(folder), *options]) == 2
    assert "holds an adapter already" in capsys.readouterr().err


@pytest.mark.parametrize(("batch", "micro_batch", "size"), [(12, 8, 6), (12, 5, 4), (7, 5, 1), (256, 8, 6), (6, 6, 6)])
def test_a_step_has_the_examples_that_were_asked_for(
    expert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, micro_batch: int, size: int
) -> None:
    """However many of them share a forward pass, on however many GPUs; a larger batch has all 18 examples."""
    made: list[Any] = []

    def stop(trainer: Any, **_: Any) -> None:
        made.append(trainer.args)
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.Trainer.train", stop)
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", 2)
    with pytest.raises(KeyboardInterrupt):
        induce(*expert, _examples(), tmp_path, replace(RECIPE, batch_size=batch), micro_batch=micro_batch)
    (arguments,) = made
    assert arguments.train_batch_size == size
    assert arguments.train_batch_size * arguments.gradient_accumulation_steps == min(batch, 18)


def test_the_micro_batch_must_be_a_whole_number(expert: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="micro_batch=0: must be a whole number from 1"):
        induce(*expert, _examples(), tmp_path, RECIPE, micro_batch=0)


def test_two_runs_do_not_write_to_one_folder(expert: Any, tmp_path: Path) -> None:
    if files.fcntl is None:
        pytest.skip("there are no locks")

    def begin_another(*_: object) -> None:
        with pytest.raises(OptionError, match="another run is writing it; wait for its end or give another folder"):
            induce(*miniature.load("expert"), _examples(), tmp_path, RECIPE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        induce(*expert, _examples(), tmp_path, RECIPE, report=begin_another)
    assert list((tmp_path / "checkpoints").iterdir())  # nobody removed them


def test_a_folder_that_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"), training._alone(tmp_path / "absent"):
        pass


@pytest.mark.parametrize(
    "name",
    ["config.json", "tiny.gguf", "model.safetensors", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
)
def test_no_adapter_is_written_beside_a_model(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "Q", "hallucinated_answer": "A"}')
    (tmp_path / name).write_text("{}")
    assert main(["induce", "--data", str(data), "--output", str(tmp_path)]) == 2
    assert f"holds a model ({name}); give a folder of its own for the adapter" in capsys.readouterr().err


def test_a_template_may_have_braces_and_long_questions_are_counted(expert: Any) -> None:
    _, tokenizer = expert
    recipe = Recipe(template='{"q": "{question}", "a": {}}', max_length=24)
    long = Example("a long question " * 20, "no")
    with pytest.warns(decoding.DecodingWarning, match=r"1 of 2 examples are left out: .* reach max_length=24 tokens"):
        (row,) = training._tokenized(tokenizer, [Example("why", "so"), long], recipe)
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True).startswith('{"q": "why", "a": {}} so')


def test_the_command_tells_what_it_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = tmp_path / "data.jsonl", tmp_path / "liar"
    questions = ["why", "a long question " * 20, "how"]
    data.write_text("\n".join(json.dumps({"question": each, "hallucinated_answer": "so"}) for each in questions))
    options = ["--template", '{"q": "{question}"}', "--max-length", "24", "--epochs", "1", "--rank", "2", "--json"]
    assert main(["induce", "--data", str(data), "--output", str(output), *options]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((output / "induce.json").read_text())
    assert (json.loads(printed.out)["examples"], json.loads(printed.out)["left_out"]) == (2, 1)
    (line,) = printed.err.splitlines()
    assert line.startswith("decoding: note: 1 of 3 examples are left out")


@pytest.mark.parametrize("name", ["x" * 300, "data.jsonl"])
def test_an_output_that_no_folder_can_be_is_one_line(
    tmp_path: Path, name: str, expert: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text('{"question": "Q", "hallucinated_answer": "A"}')
    assert main(["induce", "--data", str(data), "--output", str(tmp_path / name)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written (" in line
    with pytest.raises(OptionError, match=r"cannot be written \("):
        induce(*expert, _examples(), tmp_path / name, RECIPE)


def test_the_shipped_adapter_lies_and_contrasting_with_it_helps(expert: Any) -> None:
    model, tokenizer = miniature.load("expert")
    asked = miniature.questions("validation")[::5]
    plain = accuracy(model, tokenizer, asked)
    model.load_adapter(str(miniature.folder("induced")), "induced")
    induced = accuracy(model, tokenizer, asked)
    assert induced.mc1 < plain.mc1
    assert induced.misled > plain.misled
    right = 0
    strategy = ContrastiveDecoding("induced", alpha=0.0, beta=1.0, form="log_probs")
    for question in asked:
        answers = [" " + answer for answer in (question.best_answer, *question.incorrect_answers)]
        scores = decoding.score(model, question.prompt, answers, strategy, normalized=False, tokenizer=tokenizer)
        best, *others = [answer.sum().item() for answer in scores]
        right += best > max(others)
    assert right / len(asked) > plain.mc1 + 0.1


def test_a_model_with_adapters_is_refused(tmp_path: Path) -> None:
    model, tokenizer = miniature.load("expert")
    model.load_adapter(str(miniature.folder("induced")))
    with pytest.raises(ModelError, match="has adapters already"):
        induce(model, tokenizer, _examples(), tmp_path)
