"""Every command that loads a model places it in the same ways, and says the same wherever that is."""

import pytest
from command_results import refused

pytest.importorskip("accelerate", reason="splitting a model over devices needs accelerate")

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pretended_device import ELSEWHERE, pretended_device, spread
from typer.main import get_command

from decoding.cli.app import app
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.models import loading
from decoding.models.builtin import BUILT_IN

pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)
SPLIT = ["--device-map", "auto"]
ONE_PROCESS = {"induce", "metrics", "export", "play", "heads"}  # commands that torchrun's processes do not share


def commands(group: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], set[str]]]:
    """Each command's words, and the names of its options."""
    for name, command in (group or get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), {option for parameter in command.params for option in parameter.opts}


def test_every_command_with_a_device_takes_a_map_of_devices() -> None:
    placing = {words: options for words, options in commands() if "--device" in options}
    assert {words[0] for words in placing} == {
        "generate", "compare", "demo", "doctor", "eval", "export", "heads", "induce", "isotropy", "metrics",
        "play", "tune",
    }  # fmt: skip
    for words, options in placing.items():
        assert "--device-map" in options, words
        assert ("--tp-plan" in options) == (words[0] not in ONE_PROCESS), words


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was said of devices each time that the expert was loaded."""
    seen: list[Any] = []
    real = BUILT_IN["expert"]

    def watched(dtype: Any, **placed: Any) -> Any:
        seen.append(placed)
        return real(dtype, **placed)

    monkeypatch.setattr(loading, "BUILT_IN", {**BUILT_IN, "expert": watched})
    return seen


@pytest.fixture
def second_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A map of devices puts the upper half of the expert elsewhere."""
    real = BUILT_IN["expert"]

    def halved(dtype: Any, **placed: Any) -> Any:
        model, tokenizer = real(dtype)
        if placed:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # else the embeddings'
            spread(model, "model.layers.2", "model.layers.3", "model.norm", "lm_head")
        return model, tokenizer

    monkeypatch.setattr(loading, "BUILT_IN", {**BUILT_IN, "expert": halved})
    with pretended_device():
        yield


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def said(*arguments: str) -> Any:
        assert main([*arguments, "--json"]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return json.loads(out)

    return said


def test_the_texts_are_those_of_one_device(second_device: None, said: Callable[..., Any]) -> None:
    command = ["compare", "--prompt", "The old clockmaker", "--strategy", "contrastive-search", "--strategy", "dola"]
    found = [
        said(*command, "--max-new-tokens", "3", "--dtype", "float32", *where) for where in (["--device", "cpu"], SPLIT)
    ]
    texts = [[strategy["continuations"][0]["continuation"] for strategy in made["strategies"]] for made in found]
    assert texts[0] == texts[1]


def test_isotropy_is_that_of_one_device(second_device: None, said: Callable[..., Any]) -> None:
    command = ["isotropy", "--max-texts", "2", "--layers", "0,-1", "--dtype", "float32"]
    one, other = (said(*command, *where)["results"][0]["layers"] for where in (["--device", "cpu"], SPLIT))
    for name in ("isoscore", "participation_ratio", "mean_norm"):
        # attention is computed in other steps there
        assert [layer[name] for layer in other] == pytest.approx([layer[name] for layer in one], rel=1e-4)


def test_doctor_says_where_the_model_is(second_device: None, said: Callable[..., Any]) -> None:
    found = said("doctor", *SPLIT)
    assert (found["device"], found["branching"]) == (f"cpu, {ELSEWHERE}", "shared prefix")


def test_the_demo_may_be_split(told: list[Any], said: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("decoding.evals.compare.demo.PROMPTS", 1)
    monkeypatch.setattr("decoding.evals.compare.demo.QUESTIONS", 1)
    assert said("demo", "--max-new-tokens", "2", *SPLIT)["asked"]
    assert told == [{"device_map": "auto"}]


def test_a_judge_is_placed_too(tmp_path: Path, told: list[Any], said: Callable[..., Any]) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("The old clockmaker found a key.\n")
    command = ["metrics", str(file), "--metric", "perplexity", "--model", "expert"]
    assert said(*command, *SPLIT) == said(*command, "--device", "cpu")
    assert told == [{"device_map": "auto"}, {}]


def test_an_exported_strategy_is_tried_where_it_is_told(tmp_path: Path, told: list[Any]) -> None:
    assert main(["export", "--output", str(tmp_path / "out"), *SPLIT]) == 0
    assert told == [{"device_map": "auto"}]
    assert (tmp_path / "out" / "custom_generate" / "generate.py").is_file()


def test_an_amateur_is_induced_on_a_split_model(tmp_path: Path, told: list[Any], said: Callable[..., Any]) -> None:
    pytest.importorskip("peft", reason="induced amateurs are LoRA adapters")
    data = tmp_path / "qa.jsonl"
    rows = [{"question": f"Where is {name}?", "hallucinated_answer": "On the moon."} for name in ("Mira", "Tom")]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["induce", "--data", str(data), "--epochs", "1", "--rank", "2"]
    whole = said(*command, "--output", str(tmp_path / "whole"), "--device", "cpu")
    parts = said(*command, "--output", str(tmp_path / "parts"), *SPLIT)
    assert told == [{}, {"device_map": "auto"}]
    assert parts == whole
    one, other = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert one == other


# The data of the other evaluations is read first; their map goes the way of this one's.
PLACING = [words for words, options in commands() if "--device" in options and words[0] not in ("eval", "tune")]
NONSENSE = {
    "no name": (["--device-map", ""], "device_map=''; expected one of auto, balanced"),
    "a device": (["--device-map", "gpu"], "device_map='gpu'; expected one of auto, balanced"),
    "a mapping": (["--device-map", "{}"], "device_map='{}'; expected one of auto, balanced"),
    "misspelt": (["--device-map", "atuo"], "device_map='atuo'; did you mean auto?"),
    "two ways": (["--device-map", "auto", "--device", "cpu"], "device and device_map: each says where the model goes"),
    "a plan of one's own": (["--tp-plan", "rowwise"], "tp_plan='rowwise': must be auto"),
    "a plan without torchrun": (["--tp-plan", "auto"], "this is not one of them: run it as torchrun"),
    "a plan and a map": (["--tp-plan", "auto", "--device-map", "auto"], "device_map and tp_plan: each says"),
}


@pytest.mark.parametrize("words", [*PLACING, ("eval", "truthfulqa"), ("tune", "truthfulqa")], ids=" ".join)
def test_what_cannot_be_placed_is_one_line_of_every_command(
    words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words == ("play",):
        pytest.importorskip("gradio", reason="the page needs gradio")
    monkeypatch.delenv("RANK", raising=False)
    file, out = tmp_path / "data.jsonl", ["--output", str(tmp_path / "out")]
    file.write_text('{"question": "Who?", "hallucinated_answer": "Me.", "output": "Nobody."}\n')
    needed = {
        "generate": ["--prompt", "Tom"],
        "compare": ["--prompt", "Tom"],
        "metrics": [str(file), "--metric", "perplexity", "--model", "expert"],
        "induce": ["--data", str(file), *out],
        "export": out,
        "truthfulqa": ["--miniature"],
    }
    for given, message in NONSENSE.values():
        if "--tp-plan" in given and words[0] in ONE_PROCESS:
            continue
        assert message in refused(main([*words, *needed.get(words[-1], []), *given]), *capfd.readouterr())
