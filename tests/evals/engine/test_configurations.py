"""Samples stand for new ones only where all that decides them is the same: files of a folder, options, readers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decoding import ContrastiveDecoding, WeightedContrast, load
from decoding.errors import OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.strategies.registry import StrategySpec, parse_strategy

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

QUESTIONS = """Question,Best Answer,Correct Answers,Incorrect Answers,Type,Category,Source
What does the Fermar bear eat?,Honey.,Honey.,Ants.,Adversarial,Bears,-
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(miniature.folder("expert"), tmp_path / "model"))


def edited(file: Path, **entries: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | entries))


Evaluate = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Evaluate:
    """Run one question's evaluation into one folder of results, and return its results."""
    data = tmp_path / "TruthfulQA.csv"
    data.write_text(QUESTIONS)

    def run(*arguments: str, generation: bool = True) -> dict[str, Any]:
        given = ["--generation", "--max-new-tokens", "12"] if generation else []
        code = main(
            ["eval", "truthfulqa", *given, "--data", str(data), "--prompt", "none", "--model", str(folder),
             "--device", "cpu", "--output", str(tmp_path / "results"), "--json", *arguments]
        )  # fmt: skip
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out) | {"notes": err}

    return run


def samples(tmp_path: Path, task: str = "truthfulqa_generation") -> list[dict[str, Any]]:
    lines = (tmp_path / "results" / f"samples_{task}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def rope(folder: Path) -> None:
    edited(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 50.0})


def with_bos(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    template = tokenizer["post_processor"]
    template["single"].insert(0, {"SpecialToken": {"id": "<s>", "type_id": 0}})
    template["special_tokens"] = {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


CHANGES: dict[str, Callable[[Path], None]] = {
    "config.json": rope,
    "the end token of generation_config.json": lambda folder: edited(
        folder / "generation_config.json", eos_token_id=[2, 13]
    ),
    "the tokenizer's post-processor": with_bos,
    "the chat template": lambda folder: edited(folder / "tokenizer_config.json", chat_template="{{ messages }}"),
}


def test_samples_are_made_anew_where_a_file_of_the_folder_has_changed(
    folder: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    """One file after the other, each beside the changes before."""
    (first,) = evaluate()["configurations"]
    assert evaluate()["configurations"] == [first]
    assert len(samples(tmp_path)) == 1
    known = [first["configuration"]]
    for name, change in CHANGES.items():
        change(folder)
        (then,) = evaluate()["configurations"]
        assert then["configuration"] not in known, name
        known.append(then["configuration"])
    kept = samples(tmp_path)
    assert [sample["configuration"] for sample in kept] == known
    assert kept[0]["answer"] != kept[1]["answer"]  # of another config.json


def test_likelihoods_are_made_anew_with_the_config_and_not_with_what_only_texts_are_made_with(
    folder: Path, evaluate: Evaluate, tmp_path: Path
) -> None:
    seen = []
    for change in (lambda _: None, CHANGES["the end token of generation_config.json"], rope):
        change(folder)
        seen.append(evaluate(generation=False)["configurations"][0])
    assert [entry["configuration"] == seen[0]["configuration"] for entry in seen] == [True, True, False]
    assert "generation_config" not in seen[0]["settings"]
    kept = samples(tmp_path, "truthfulqa_mc")
    assert len(kept) == 2
    assert kept[0]["metrics"] != kept[1]["metrics"]


def test_a_folders_penalties_are_off_and_results_say_so(folder: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    (plain,) = evaluate()["configurations"]
    edited(folder / "generation_config.json", repetition_penalty=1.5, do_sample=True, temperature=0.6)
    results = evaluate()
    (entry,) = results["configurations"]
    # The same numbers, so the same samples.
    assert entry["configuration"] == plain["configuration"]
    assert len(samples(tmp_path)) == 1
    assert entry["settings"]["folder_generation_config"] == {
        "do_sample": True, "repetition_penalty": 1.5, "temperature": 0.6,
    }  # fmt: skip
    assert "repetition_penalty" not in entry["settings"]["generation_config"]
    assert "generation_config.json has repetition_penalty=1.5: off here" in results["notes"]
    (asked,) = evaluate("--generation-config", "repetition_penalty=1.5")["configurations"]
    assert asked["settings"]["generation_config"]["repetition_penalty"] == 1.5
    assert asked["configuration"] != plain["configuration"]
    one, other = samples(tmp_path)
    assert one["answer"] != other["answer"]
    model, tokenizer = load(str(folder), "cpu")
    inputs = tokenizer("Q: What does the Fermar bear eat?\nA:", return_tensors="pt")
    prompt = inputs["input_ids"]
    for sample, penalty in ((one, 1.0), (other, 1.5)):
        made = model.generate(prompt, max_new_tokens=12, do_sample=False, repetition_penalty=penalty)
        text = tokenizer.decode(made[0, prompt.shape[1] :], skip_special_tokens=True)
        assert text.strip().startswith(sample["answer"])
        assert sample["answer"]


def test_where_numbers_are_computed_is_reported_and_not_hashed() -> None:
    model, tokenizer = miniature.load("expert")
    (here,) = configured([parse_strategy("greedy")], model, tokenizer, "expert", task={})
    assert {"device", "folder_generation_config"} <= here.settings.keys()
    elsewhere = type(here)(here.spec, {**here.settings, "device": "cuda:1"})
    updated = type(here)(here.spec, {**here.settings, "transformers": "5.0.0"})
    assert here.hash == elsewhere.hash != updated.hash


def test_drafts_are_reported_and_not_hashed() -> None:
    """Tokens are the same with them: kept samples are found again."""
    model, tokenizer = miniature.load("expert")
    specs = [parse_strategy("greedy"), parse_strategy("beam")]
    drafts = {"drafts": "prompt-lookup", "draft_tokens": 4}
    with_drafts = configured(specs, model, tokenizer, "expert", task={}, generation_config=drafts)
    without = configured(specs, model, tokenizer, "expert", task={})
    assert [one.hash for one in with_drafts] == [other.hash for other in without]
    assert [one.settings.get("drafts") for one in with_drafts] == [drafts, None]
    assert [one.settings["generation_config"] for one in with_drafts] == [
        other.settings["generation_config"] for other in without
    ]


def test_names_and_places_of_folders_are_reported_and_not_hashed(folder: Path, tmp_path: Path) -> None:
    adapter = miniature.folder("induced")
    copies = [str(adapter), shutil.copytree(adapter, tmp_path / "other")]
    made = []
    for name, amateur in zip(("model", str(folder)), copies, strict=True):
        model, tokenizer = load(str(folder))
        specs = [parse_strategy("greedy"), parse_strategy(f"contrastive-decoding:amateur={amateur}")]
        made.append(configured(specs, model, tokenizer, name, task={}))
    assert [one.hash for one in made[0]] == [other.hash for other in made[1]]
    assert [one.settings["model"]["name"] for one, _ in made] == ["model", str(folder)]
    twice = [parse_strategy(f"contrastive-decoding:amateur={amateur}") for amateur in copies]
    with pytest.raises(OptionError, match="under another name"):
        configured(twice, *load(str(folder)), "model", task={})


@pytest.mark.parametrize("name", ["rms_norm_eps", "rope_theta"])
def test_the_config_of_an_amateur_is_told_as_its_weights_are(name: str) -> None:
    hashes = []
    for value in (None, 50.0):
        amateur = miniature.load("amateur")[0]
        if value and name == "rope_theta":
            amateur.config.rope_parameters["rope_theta"] = value
        elif value:
            setattr(amateur.config, name, value)
        spec = StrategySpec("contrastive-decoding", ContrastiveDecoding(amateur))
        hashes.append(configured([spec], *miniature.load("expert"), "expert", task={})[0].hash)
    assert hashes[0] != hashes[1]


def test_options_are_checked_before_anything_is_made() -> None:
    model, tokenizer = miniature.load("expert")

    def options(**given: Any) -> None:
        configured([parse_strategy("greedy")], model, tokenizer, "expert", task={}, generation_config=given)

    for name, message in (
        ("max_new_tokens", "is given by --max-new-tokens"), ("stop_strings", "would end texts"),
        ("min_p", "has an effect with sampling alone"), ("penalty", "transformers has no such option"),
    ):  # fmt: skip
        with pytest.raises(OptionError, match=message):
            options(**{name: 0.5})


ERRORS = [
    (["eval", "truthfulqa", "--miniature", "--generation-config", "repetition_penalty=1.2"],
     "--generation-config: multiple choice reads likelihoods and generates no text: give --generation"),
    (["eval", "truthfulqa", "--miniature", "--generation", "--generation-config", "max_time=3"],
     "--generation-config max_time: would make figures depend on the machine"),
    (["eval", "multilingual", "--data", "./absent", "--generation-config", "repetition=1.2"],
     "--generation-config repetition: transformers has no such option; did you mean repetition_penalty"),
    (["eval", "factor", "--data", "./absent", "--generation-config", "repetition_penalty=1.2"],
     "unknown option --generation-config"),
    (["eval", "halueval", "--data", "./absent", "--generation-config", "repetition_penalty=1.2"],
     "unknown option --generation-config"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[" ".join(words[:2]) for words, _ in ERRORS])
def test_commands_refuse_options_in_one_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line


PROXIES = (
    "weighted-contrast:terms=1*expert + 0.5*{} - 0.5*instead:Lie.",
    "proxy-tuning:tuned={},untuned=self:dropout=.1",
)


@pytest.mark.parametrize("spec", [*PROXIES, "safe-decoding:safe={}"])
def test_every_model_that_a_strategy_names_is_known_by_its_identity(spec: str, tmp_path: Path) -> None:
    """Under any name; another model, weight or text of another reader makes other samples."""
    copies = [str(shutil.copytree(miniature.folder("amateur"), tmp_path / name)) for name in ("one", "other")]
    expert = miniature.load("expert")

    def hashed(text: str) -> str:
        (made,) = configured([parse_strategy(text)], *expert, "expert", task={})
        json.dumps(made.settings)  # as results have them
        return made.hash

    first = hashed(spec.format(copies[0]))
    assert hashed(spec.format(copies[1])) == hashed(spec.format("amateur")) == first
    assert hashed(spec.format("induced")) != first
    for there, other in (("0.5*instead", "0.6*instead"), ("Lie.", "Lie!"), ("dropout=.1", "dropout=.2")):
        if there in spec:
            assert hashed(spec.replace(there, other).format(copies[0])) != first


def test_readers_in_memory_and_functions_are_recorded_by_name() -> None:
    def half(logits: Any) -> Any:
        return 0.5 + 0 * logits["expert"][..., 0]

    strategy = WeightedContrast([("expert", 2), (miniature.load("amateur")[0], -1)], weight_by=half)
    (made,) = configured([StrategySpec("weighted-contrast", strategy)], *miniature.load("expert"), "expert", task={})
    recorded = json.loads(json.dumps(made.settings["parameters"]))
    assert recorded["terms"] == [["expert", 2.0, "expert"], [str(miniature.folder("amateur")), -1.0, "reader 2"]]
    assert recorded["weight_by"].endswith(
        "test_configurations.test_readers_in_memory_and_functions_are_recorded_by_name.<locals>.half"
    )
    assert "<function" not in made.label
