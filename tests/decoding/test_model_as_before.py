"""A call leaves its model as it was: weights, gradient flags, hooks, adapters, modes and configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import tiny_model
from tiny_strategies import ADAPTER, EXAMPLES
from transformers import StoppingCriteria, StoppingCriteriaList

import decoding
from decoding import LOL, ContrastiveDecoding, Scorer, Strategy
from decoding.scoring.teacher_forcing import teacher_forced
from decoding.strategies.registry import exportable_strategies, scorable_strategies

IDS = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])


def as_it_stands(model: Any) -> dict[str, Any]:
    """Everything of a model that a caller may rely on after a call."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "attributes": [(name, sorted(vars(module))) for name, module in model.named_modules()],
        "parameters": [(name, id(value), value.requires_grad, value.dtype) for name, value in model.named_parameters()],
        "weights": [value.double().sum().item() for value in model.state_dict().values()],
        "buffers": [(name, id(value)) for name, value in model.named_buffers()],
        "hooks": [(name, [len(getattr(module, hook)) for hook in hooks]) for name, module in model.named_modules()],
        "adapters": sorted(getattr(model, "peft_config", {})),
        "config": model.config.to_json_string(use_diff=False),
        "generation config": model.generation_config.to_json_string(use_diff=False),
        "dtype": model.dtype,
    }


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("liar")
    torch.manual_seed(0)
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    model.save_pretrained(folder)
    return folder


def _alone(make: Callable[[], Strategy]) -> Callable[[Path], Strategy]:
    return lambda adapter: make()


STRATEGIES: dict[str, Callable[[Path], Strategy]] = {
    **{name: _alone(make) for name, make in EXAMPLES.items() if name != ADAPTER},
    "a LoRA amateur": lambda adapter: ContrastiveDecoding(str(adapter)),
    "LOL, a LoRA amateur": lambda adapter: LOL(str(adapter), [1], guidance=[5, 6]),
}


class Ends(StoppingCriteria):
    """Raises in the middle of a text."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if input_ids.shape[1] > IDS.shape[1] + 2:
            raise self.error("in the middle")
        return torch.zeros(len(input_ids), dtype=torch.bool)


def interrupted(error: type[BaseException]) -> Callable[[Any, Strategy], None]:
    def call(model: Any, strategy: Strategy) -> None:
        with pytest.raises(error):
            decoding.generate(
                model, IDS, strategy=strategy, max_new_tokens=6, stopping_criteria=StoppingCriteriaList([Ends(error)])
            )

    return call


def processor(model: Any, strategy: Strategy, **options: Any) -> None:
    own = strategy.logits_processor(model)
    model.generate(IDS, logits_processor=[own], max_new_tokens=4, **options)
    own.release()


def refused(model: Any, strategy: Strategy) -> None:
    with pytest.raises(decoding.DecodingError):
        decoding.generate(model, IDS[:, :0], strategy=strategy)
    with pytest.raises(decoding.DecodingError):
        decoding.generate(model, IDS, attention_mask=torch.zeros_like(IDS), strategy=strategy)


def scorer(model: Any, strategy: Strategy) -> None:
    with Scorer(model, [11, 12], [None, strategy]) as made:
        made.score([([13], [[14], [15, 16]])])


WAYS: dict[str, Callable[[Any, Strategy], Any]] = {
    "generate": lambda model, strategy: decoding.generate(model, IDS, strategy=strategy, max_new_tokens=4),
    "custom_generate": lambda model, strategy: model.generate(IDS, custom_generate=strategy, max_new_tokens=4),
    "sampled": lambda model, strategy: decoding.generate(
        model, IDS, strategy=strategy, do_sample=True, max_new_tokens=4, return_dict_in_generate=True
    ),
    "compiled": lambda model, strategy: decoding.generate(
        model, IDS, strategy=strategy, max_new_tokens=4, compile=True
    ),
    "processor": processor,
    "beams": lambda model, strategy: processor(model, strategy, num_beams=2),
    "refused": refused,
    "an error": interrupted(RuntimeError),
    "Ctrl-C": interrupted(KeyboardInterrupt),
    "score": lambda model, strategy: decoding.score(model, [11, 12], [[13], [14, 15]], strategy),
    "scorer": scorer,
    "texts": lambda model, strategy: teacher_forced(model, IDS, strategy),
}
NO_SCORES = [name for name in exportable_strategies() if name not in scorable_strategies()]
SCORING = ("score", "scorer", "texts")
CASES = [(way, name) for way in WAYS for name in STRATEGIES if not (way in SCORING and name in NO_SCORES)]


@pytest.fixture(scope="module", params=["eval", "train"])
def model(request: pytest.FixtureRequest) -> Any:
    model = tiny_model("llama").train(request.param == "train")
    model.model.layers[0].requires_grad_(False)  # some parameters do, some do not
    return model


@pytest.mark.parametrize(("way", "name"), CASES)
def test_a_call_leaves_its_model_as_it_was(model: Any, way: str, name: str, adapter: Path) -> None:
    strategy = STRATEGIES[name](adapter)
    before = as_it_stands(model)
    WAYS[way](model, strategy)
    after = as_it_stands(model)
    assert {key for key in before if before[key] != after[key]} == set()


def test_a_model_is_trained_and_saved_after_a_call_with_a_lora_amateur(adapter: Path, tmp_path: Path) -> None:
    model = tiny_model("llama").train()
    decoding.generate(model, IDS, strategy=ContrastiveDecoding(str(adapter)), max_new_tokens=4)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()


def test_a_lora_amateur_beside_the_model_is_the_one_on_it(adapter: Path) -> None:
    beside = decoding.generate(
        tiny_model("llama"), IDS, strategy=LOL(str(adapter), [1], guidance=[5, 6]), max_new_tokens=8
    )
    model = tiny_model("llama")
    model.load_adapter(str(adapter), "liar")
    model.set_adapter("liar")
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.set_adapter([])
    on_it = decoding.generate(model, IDS, strategy=LOL("liar", [1], guidance=[5, 6]), max_new_tokens=8)
    assert beside.tolist() == on_it.tolist()


def test_an_amateur_that_is_written_again_is_read_again(adapter: Path, tmp_path: Path) -> None:
    model = tiny_model("llama")
    first = decoding.score(model, [11], [[12]], ContrastiveDecoding(str(adapter)))[0]
    again = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    folder = tmp_path / "liar"
    again.save_pretrained(folder)  # whose fresh B matrices add nothing
    plain = decoding.score(model, [11], [[12]], ContrastiveDecoding(str(folder)))[0]
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert torch.equal(decoding.score(model, [11], [[12]], ContrastiveDecoding(str(folder)))[0], first)
    assert not torch.equal(first, plain)
