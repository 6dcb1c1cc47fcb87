"""POPE: scores of yes and no against plain forward passes, thresholds of other images, and the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_results import refused
from tiny_processors import WORDS, save_llava, write_square

import decoding
from decoding import ImageContrast, InputError, OptionError
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.tasks.pope.data import calibration_split, load
from decoding.evals.tasks.pope.generation import said
from decoding.evals.tasks.pope.image_questions import ImageQuestions
from decoding.evals.tasks.pope.yes_no import FLOOR, Pope, answer_tokens
from decoding.models.loading import load_processor
from decoding.models.media import read_image
from decoding.strategies.contrast.input_changes import NoisedImages
from decoding.strategies.registry import parse_strategy

pytestmark = pytest.mark.usefixtures("models_loaded_once")
PROMPT = "USER : <image> {question} ASSISTANT :"
IMAGES, EACH = 6, 4


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work out precision, recall, F1 and AUC on 100 resamples: a thousand take half of this file's time."""
    monkeypatch.setattr(ImageQuestions, "corpus_resamples", 100)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_llava(tmp_path_factory.mktemp("models") / "llava", seed=2)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """As POPE's files have them: some questions about each image."""
    return [
        {
            "question_id": image * EACH + number + 1,
            "image": f"{image}.png",
            "text": f"w{number} w{image * 3 + number} ?",
            "label": ["yes", "no"][(image + number) % 2],
        }
        for image in range(IMAGES)
        for number in range(EACH)
    ]


@pytest.fixture(scope="module")
def data(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pope")
    for image in range(IMAGES):
        write_square(folder / f"{image}.png", (40 * image, 255 - 40 * image, 90), size=30 + image)
    path = folder / "pope.json"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(vocab,) after the prompt, by a plain forward pass."""
    with torch.no_grad():
        return model(**inputs).logits[0, -1].double()


@pytest.fixture(scope="module")
def known() -> dict[int, tuple[dict[str, torch.Tensor], torch.Tensor]]:
    """What the model is given of a question, and its own logits, by the question's id: the same for every strategy."""
    return {}


def log_scores(
    model: Any, inputs: dict[str, torch.Tensor], own: torch.Tensor, strategy: ImageContrast | None
) -> torch.Tensor:
    """(vocab,) the log-softmax after the prompt, in float64, from the model's own logits and a plain forward pass."""
    scores = own
    if strategy is not None:
        noised = NoisedImages(strategy.noise or 0, strategy.seed).changed(inputs["pixel_values"])
        implausible = scores < scores.max() + torch.tensor(strategy.alpha).log()
        scores = (1 + strategy.beta) * scores - strategy.beta * logits(model, inputs | {"pixel_values": noised})
        scores = scores.masked_fill(implausible, -torch.inf)
    return scores.log_softmax(-1)


@pytest.mark.parametrize(
    ("spec", "strategy"),
    [
        ("greedy", None),
        ("image-contrast:noise=700,alpha=0", ImageContrast(noise=700, alpha=0.0)),
        ("image-contrast:alpha=0.02", ImageContrast(alpha=0.02)),
        ("image-contrast:beta=0,alpha=0.3", ImageContrast(beta=0.0, alpha=0.3)),  # the mask alone
    ],
)
def test_scores_are_those_of_plain_forward_passes(
    spec: str, strategy: ImageContrast | None, llava: str, data: Path, rows: list[dict[str, Any]], known: dict[int, Any]
) -> None:
    model, tokenizer = decoding.load(llava, "cpu")
    processor = load_processor(llava)
    questions, left_out = load(str(data))
    task = Pope(model, processor, questions, prompt=PROMPT)
    configurations = configured(
        [parse_strategy(spec)], model, tokenizer, "llava", task=task.settings, generation_config=None
    )
    records = [task.evaluate(document, configurations)[0] for document in task.documents()[::3]]  # of every image
    assert left_out == []
    words = {answer: [WORDS.index(word) for word in (answer, answer.title())] for answer in ("yes", "no")}
    assert answer_tokens(tokenizer) == words
    for row, record in zip(rows[::3], records, strict=True):
        if row["question_id"] not in known:
            text = PROMPT.replace("{question}", row["text"])
            inputs = dict(processor(images=[read_image(data.parent / row["image"])], text=text, return_tensors="pt"))
            known[row["question_id"]] = inputs, logits(model, inputs)
        expected = log_scores(model, *known[row["question_id"]], strategy)
        for answer, tokens in words.items():
            score = max(FLOOR, float(expected[tokens].logsumexp(0)))
            assert record["scores"][answer] == pytest.approx(score, abs=1e-4)
        margin = record["scores"]["yes"] - record["scores"]["no"]
        yes = 0.5 if margin == 0 else float(margin > 0)
        assert record["metrics"] == {"acc": yes if row["label"] == "yes" else 1 - yes, "yes": yes}
    implausible = [record for record in records if set(record["scores"].values()) == {FLOOR}]
    assert bool(implausible) == (strategy is not None and strategy.alpha == 0.3)


def test_a_penalty_of_the_folder_is_off(llava: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = decoding.load(llava, "cpu")
    task = Pope(model, load_processor(llava), load(str(data))[0], prompt="<image> yes {question}")
    configurations = configured([parse_strategy("greedy")], model, tokenizer, "llava", task={}, generation_config=None)
    before = task.evaluate(task.documents()[0], configurations)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 5.0)
    assert task.evaluate(task.documents()[0], configurations) == before


def record(answer: str, yes: float, no: float, threshold: float = 0.0) -> dict[str, Any]:
    said = 0.5 if yes - no == threshold else float(yes - no > threshold)
    return {"metrics": {"yes": said}, "answer": answer, "scores": {"yes": yes, "no": no}}


def test_figures_of_all_questions_are_those_of_the_paper(llava: str, data: Path) -> None:
    model, _ = decoding.load(llava, "cpu")
    task = Pope(model, load_processor(llava), load(str(data))[0], prompt=PROMPT)
    # Two true "yes", one missed, one false alarm, one right "no", and one without a choice.
    answers = [
        record("yes", -1, -2), record("yes", -1, -3), record("yes", -2, -1), record("no", -1, -4), record("no", -5, -1),
        record("no", FLOOR, FLOOR),
    ]  # fmt: skip
    figures = task.corpus_metrics(answers)
    precision, recall = 2 / 3.5, 2 / 3
    assert figures["precision"] == pytest.approx(precision)
    assert figures["recall"] == pytest.approx(recall)
    assert figures["F1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert figures["AUC"] == pytest.approx(5 / 9)  # of nine pairs, five in which the "yes" has the larger difference
    assert task.corpus_metrics([record("no", -5, -1)]) == {"F1": 0.0, "precision": 0.0, "recall": 0.0, "AUC": 0.5}


class Biased(Pope):
    """A model that is as good, and says "yes" more often."""

    bias = 0.0

    def _scores(self, configuration: Any, inputs: Any) -> dict[str, float]:
        scores = super()._scores(configuration, inputs)
        return scores | {"yes": scores["yes"] + self.bias}


def test_a_bias_to_yes_is_no_gain_at_the_threshold_of_other_images(llava: str, data: Path) -> None:
    model, tokenizer = decoding.load(llava, "cpu")
    processor = load_processor(llava)
    first, others = calibration_split(load(str(data))[0], 8, seed=0)
    figures = {}
    for bias in (0.0, 20.0):
        settings: dict[str, Any] = {"prompt": PROMPT, "calibration": first}
        choosing = Biased(model, processor, first, **settings)
        configurations = configured(
            [parse_strategy("greedy")], model, tokenizer, "llava", task=choosing.settings, generation_config=None
        )
        choosing.bias = bias
        chosen = run(choosing, configurations)
        assert chosen is not None
        threshold = chosen["configurations"][0]["metrics"]["threshold"]["value"]
        task = Biased(model, processor, others, **settings, thresholds={configurations[0].hash: threshold})
        task.bias = bias
        results = run(task, configurations)
        assert results is not None
        figures[bias] = {name: figure["value"] for name, figure in results["configurations"][0]["metrics"].items()}
    assert figures[20.0]["yes"] == 1
    assert figures[0.0]["yes"] < 1
    for name in ("cal acc", "cal yes", "AUC"):
        assert figures[20.0][name] == pytest.approx(figures[0.0][name]), name


def test_thresholds_are_chosen_on_other_images(data: Path) -> None:
    questions, _ = load(str(data))
    splits = [calibration_split(questions, 7, seed) for seed in range(8)]
    for first, others in splits:
        assert len(first) == 2 * EACH  # whole images, up to the number that was asked for
        assert len(first) + len(others) == len(questions)
        assert {item.image for item in first}.isdisjoint(item.image for item in others)
    assert len({tuple(item.id for item in first) for first, _ in splits}) > 1
    assert calibration_split(questions, 7, 0) == splits[0]
    with pytest.raises(OptionError, match="--calibration 24: the data have 24 questions about 6 images"):
        calibration_split(questions, 24, 0)


def test_formats_are_read_alike(data: Path, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    expected = [(item.image_hash, item.question, item.answer) for item in load(str(data))[0]]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "question", "answer"])
        writer.writerows([row["image"], row["text"], row["label"].upper()] for row in rows)
    for name in ("list.json", "rows.csv"):
        read, _ = load(str(tmp_path / name), images=data.parent)
        assert [(item.image_hash, item.question, item.answer) for item in read] == expected


def test_parquet_files_hold_the_images(data: Path, rows: list[dict[str, Any]], llava: str, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": (data.parent / row["image"]).read_bytes(), "path": None} for row in rows]
    table = {"image": images, "question": [row["text"] for row in rows], "answer": [row["label"] for row in rows]}
    parquet.write_table(pyarrow.table(table), tmp_path / "pope.parquet")
    model, tokenizer = decoding.load(llava, "cpu")
    results = []
    for source in (data, tmp_path / "pope.parquet"):
        task = Pope(model, load_processor(llava), load(str(source))[0], prompt=PROMPT)
        configurations = configured(
            [parse_strategy("image-contrast")], model, tokenizer, "llava", task=task.settings, generation_config=None
        )
        results.append((configurations[0].hash, task.evaluate(task.documents()[5], configurations)))
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, "row 2 (line 2), column label: is 'maybe'; must be yes or no"),
        ({"label": None}, "column label: is missing"),
        ({"text": " "}, "column text: is empty"),
        ({"image": "absent.png"}, "absent.png cannot be read; --images DIR says where the images are"),
        ({"image": 7}, "column image: is int, not text"),
    ],
)
def test_a_bad_row_is_named(
    change: dict[str, Any], message: str, data: Path, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(json.dumps(row | (change if row is rows[1] else {})) for row in rows[:3]))
    with pytest.raises(InputError) as caught:
        load(str(path), images=data.parent)
    assert message in str(caught.value)
    questions, left_out = load(str(path), images=data.parent, skip_bad=True)
    assert (len(questions), len(left_out)) == (2, 1)


# --- generated answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("No", ("no", True)), ("no, there is none", ("no", True)), ("There is not a dog", ("no", True)),
        ("Yes, there is. No cat", ("yes", True)), ("A dog. No cat.", ("yes", False)), ("NO", ("yes", False)),
        ("nothing here", ("yes", False)), ("No.", ("no", True)), ("", ("yes", False)), (" yes\nNo", ("yes", True)),
        ("\nNo, it has none", ("no", True)),
    ],
)  # fmt: skip
def test_an_answer_is_read_by_the_rule_of_the_authors(answer: str, read: tuple[str, bool]) -> None:
    assert said(answer) == read


def test_generated_answers_are_figures_of_their_texts_and_are_resumed(
    llava: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], models_loaded_once: Callable[[], None]
) -> None:
    line = ["eval", "pope", "--data", str(data), "--model", llava, "--prompt", PROMPT, "--generation", "--limit", "6",
            "--max-new-tokens", "4", "--strategy", "greedy", "--strategy", "sampling", "--strategy", "image-contrast",
            "--output", str(tmp_path), "--json"]  # fmt: skip
    assert main(line) == 0
    results = json.loads(capfd.readouterr().out)
    samples = (tmp_path / "samples_pope_generation.jsonl").read_text()
    kept = [json.loads(sample) for sample in samples.splitlines()]
    questions = load(str(data))[0][:6]
    model, processor = decoding.load(llava, "cpu")[0], load_processor(llava)
    assert results["counts"]["evaluated"] == 6
    for number, entry in enumerate(results["configurations"]):
        of_strategy = [sample for sample in kept if sample["configuration"] == entry["configuration"]]
        assert len(of_strategy) == 6
        read = [said(sample["text"]) for sample in of_strategy]
        pairs = [(yes == "yes", item.answer == "yes") for (yes, _), item in zip(read, questions, strict=True)]
        figures = {name: figure["value"] for name, figure in entry["metrics"].items()}
        both = sum(yes and true for yes, true in pairs)
        assert figures == {
            "acc": pytest.approx(sum(yes == true for yes, true in pairs) / 6),
            "yes": pytest.approx(sum(yes for yes, _ in pairs) / 6),
            "unclear": pytest.approx(sum(not clear for _, clear in read) / 6),
            "precision": pytest.approx(both / max(1, sum(yes for yes, _ in pairs))),
            "recall": pytest.approx(both / max(1, sum(true for _, true in pairs))),
            "F1": pytest.approx(2 * both / max(1, sum(yes + true for yes, true in pairs))),
        }
        if number == 0:  # greedy search of transformers' own
            for sample, item in zip(of_strategy, questions, strict=True):
                text = PROMPT.replace("{question}", item.question)
                inputs = processor(images=read_image(item.image), text=text, return_tensors="pt")
                tokens = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
                assert sample["text"] == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    models_loaded_once()
    assert main(line) == 0
    again = json.loads(capfd.readouterr().out)
    assert (tmp_path / "samples_pope_generation.jsonl").read_text() == samples
    assert {**again, "times": None} == {**results, "times": None}


# --- the command -----------------------------------------------------------------------------------------------------

STRATEGIES = ["--strategy", "greedy", "--strategy", "image-contrast", "--strategy", "image-contrast:beta=0"]


def test_the_command_reports_chosen_thresholds_and_resumes(
    llava: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], models_loaded_once: Callable[[], None]
) -> None:
    line = ["eval", "pope", "--data", str(data), "--model", llava, "--chat", "--prompt", "{question}", *STRATEGIES,
            "--calibration", "8", "--output", str(tmp_path / "results"), "--json"]  # fmt: skip
    assert main(line) == 0
    results = json.loads(capfd.readouterr().out)
    assert results["counts"]["evaluated"] == IMAGES * EACH - 8
    assert results["calibration"]["evaluated"] == 8
    assert set(results["calibration"]["thresholds"]) == {entry["configuration"] for entry in results["configurations"]}
    for entry in results["configurations"]:
        figures = entry["metrics"]
        assert {"acc", "yes", "cal acc", "cal yes", "F1", "precision", "recall", "AUC"} == set(figures)
        assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures.values())
    assert [set(entry["metrics"]) for entry in results["comparisons"]] == [{"acc", "yes", "cal acc", "cal yes"}] * 2
    samples = (tmp_path / "results" / "samples_pope.jsonl").read_bytes()
    models_loaded_once()
    assert main(line) == 0
    again = json.loads(capfd.readouterr().out)
    assert (tmp_path / "results" / "samples_pope.jsonl").read_bytes() == samples
    assert {**again, "times": None} == {**results, "times": None}


def test_tune_chooses_at_the_threshold(
    llava: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], models_loaded_once: Callable[[], None]
) -> None:
    line = ["tune", "pope", "--data", str(data), "--model", llava, "--chat", "--strategy", "greedy",
            "--strategy", "image-contrast:alpha=0|0.1,beta=1", "--calibration", "8", "--validation", "8",
            "--output", str(tmp_path)]  # fmt: skip
    assert main([*line, "--json"]) == 0
    results = json.loads(capfd.readouterr().out)
    assert results["tuning"]["by"] == ["cal acc"]
    assert results["counts"]["evaluated"] == IMAGES * EACH - 16
    models_loaded_once()
    assert main(line) == 0
    table = capfd.readouterr().out
    assert all(name in table for name in ("acc", "yes", "cal acc", "F1", "precision", "recall"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "Is it?"], "--prompt 'Is it?': must have {question} where the question stands"),
        (["--model", "expert"], "expert: has no processor of images or sound; it is a model of text"),
        (["--prompt", "{question}"], "write <image> where it stands in the prompt, or give --chat"),
        (["--chat"], "--calibration 100: the data have 24 questions about 6 images"),
        (["--images", "./absent"], "0.png cannot be read; --images DIR says where the images are"),
        (["--generation"], "--calibration chooses thresholds of scores: leave it out, or --generation"),
        (["--generation-config", "top_k=4"], "--generation-config: POPE reads scores and generates no text"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str], message: str, llava: str, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    few = [] if "--chat" in arguments else ["--calibration", "8"]
    assert message in refused(
        main(["eval", "pope", "--data", str(data), "--model", llava, *few, *arguments]), *capfd.readouterr()
    )
