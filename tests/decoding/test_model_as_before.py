"""A call leaves its model as it was: weights, gradient flags, hooks, adapters, modes and configurations.

Every registered strategy is tested here, with every kind of amateur, in every way in.
"""

from __future__ import annotations

import contextlib
import copy
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    pipeline,
)
from transformers.generation import BaseStreamer

import decoding
from decoding import ContrastiveDecoding, ContrastiveSearch, Scorer
from decoding.api import generate_with
from decoding.cli.diagnosis import diagnose
from decoding.evals import miniature
from decoding.evals.harness.model import DecodingLM
from decoding.evals.isotropy.analysis import analyse
from decoding.induce import Example, Recipe, induce
from decoding.scoring.teacher_forcing import teacher_forced
from decoding.strategies.registry import STRATEGIES, StrategySpec, example_of, exportable_strategies, parse_strategy
from decoding.text import continuations

PROMPTS = ["The old clockmaker", "A river in the town of Varn"]
AMATEURS = ("amateur", "induced", "prompt:A lie.")  # a model, a LoRA adapter beside the model, a prompt
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks",
    "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip


def _specs(names: Any) -> list[str]:
    """A spec of each strategy, or one for each kind of amateur where it has one."""
    specs = []
    for name in names:
        example = example_of(name)
        kinds = AMATEURS if "amateur" in parse_strategy(example).parameters else ("",)
        specs += [example.replace("amateur=amateur", f"amateur={kind}") for kind in kinds]
    return specs


ALL = _specs(STRATEGIES)
OWN = _specs(exportable_strategies())


def _state(model: Any) -> dict[str, Any]:
    """Everything of a model and of torch that a caller may rely on after a call, but for the random numbers."""
    modules = list(model.named_modules())
    configs = (model.config, model.config.get_text_config(decoder=True))
    return {
        "modules": [(name, id(module), type(module), module.training) for name, module in modules],
        "attributes": [(name, sorted(vars(module))) for name, module in modules],
        "forward": [id(vars(module).get("forward")) for _, module in modules],
        "hooks": [(name, [list(getattr(module, hook)) for hook in HOOKS]) for name, module in modules],
        "parameters": [(name, id(value), value.requires_grad, value.dtype) for name, value in model.named_parameters()],
        "gradients": [value.grad is None for value in model.parameters()],
        "buffers": [(name, id(value)) for name, value in model.named_buffers()],
        "keys": list(model.state_dict()),
        "weights": [value.sum(dtype=torch.float64).item() for value in model.state_dict().values()],
        "adapters": sorted(getattr(model, "peft_config", {})),
        "config": [config.to_json_string(use_diff=False) for config in configs],
        "attention": [config._attn_implementation for config in configs],
        "cache": [getattr(config, "use_cache", None) for config in configs],
        "generation config": (id(model.generation_config), model.generation_config.to_json_string(use_diff=False)),
        "dtype": model.dtype,
        "torch": (
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_device(),
        ),
    }  # fmt: skip


def _random_state() -> dict[str, Any]:
    return {"torch": torch.get_rng_state().tolist(), "python": random.getstate(), "numpy": str(np.random.get_state())}


def _changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {key for key in before if before[key] != after[key]}


class Fuse:
    """A forward hook of the user's that raises in a pass of the model."""

    def __init__(self) -> None:
        self.passes, self.error = 0, RuntimeError

    def __call__(self, *_: Any) -> None:
        if self.passes:
            self.passes -= 1
            if not self.passes:
                raise self.error("the fuse has blown")


FUSE = Fuse()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return miniature.load("expert")[1]


@pytest.fixture(scope="module")
def model() -> Any:
    """The embedded expert in training: some parameters are frozen, some modules in evaluation mode, one has a hook."""
    model, _ = miniature.load("expert")
    model.generation_config.eos_token_id = None
    model.train()
    model.model.layers[0].requires_grad_(False).eval()
    model.model.layers[-1].register_forward_hook(FUSE)
    return model


@pytest.fixture
def leaves_as_before(model: Any) -> Iterator[Callable[..., None]]:
    """A function that runs a call and checks that it left the model as before."""

    def check(call: Callable[[], Any], draws: bool = False) -> None:
        before, numbers = _state(model), _random_state()
        call()
        assert _changed(before, _state(model)) == set()
        if not draws:
            assert _changed(numbers, _random_state()) == set()

    yield check
    FUSE.passes = 0


@pytest.fixture
def spec(request: pytest.FixtureRequest, tokenizer: Any) -> StrategySpec:
    return parse_strategy(request.param).with_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def batch(tokenizer: Any) -> dict[str, Tensor]:
    encoding = tokenizer(PROMPTS, return_tensors="pt", padding=True)
    return {name: encoding[name] for name in ("input_ids", "attention_mask")}


# --- calls that end well ---------------------------------------------------------------------------------------------


def _generate(model: Any, strategy: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    return decoding.generate(model, **batch, strategy=strategy, max_new_tokens=4, **options)


def _processed(model: Any, strategy: Any, batch: dict[str, Tensor], **options: Any) -> Any:
    """The processor is alive as the model is looked at, and not released."""
    processor = strategy.logits_processor(model, attention_mask=batch["attention_mask"])
    model.generate(**batch, logits_processor=[processor], max_new_tokens=4, **options)
    return processor


def _compiled(model: Any, strategy: Any, batch: dict[str, Tensor]) -> None:
    with contextlib.suppress(decoding.DecodingError):  # tests/decoding/strategies/test_contract.py has the reasons
        _generate(model, strategy, batch, compile=True)


def _streamed(model: Any, strategy: Any, batch: dict[str, Tensor]) -> None:
    """A stream that nobody reads to its end, from a thread of its own."""
    tokenizer = strategy_tokenizer()
    row = {name: values[1:] for name, values in batch.items()}
    streamer = TextIteratorStreamer(tokenizer)
    thread = threading.Thread(target=_generate, args=(model, strategy, row), kwargs={"streamer": streamer})
    thread.start()
    next(iter(streamer))
    thread.join()


def strategy_tokenizer() -> Any:
    return miniature.load("expert")[1]


def _piped(model: Any, strategy: Any, batch: dict[str, Tensor]) -> None:
    pipe = pipeline("text-generation", model=model, tokenizer=strategy_tokenizer())
    pipe(PROMPTS[0], **decoding.pipeline_kwargs(strategy, max_new_tokens=4))


WAYS: dict[str, Callable[[Any, Any, dict[str, Tensor]], Any]] = {
    "generate": _generate,
    "custom_generate": lambda model, strategy, batch: model.generate(
        **batch, custom_generate=strategy, max_new_tokens=4
    ),
    "a dictionary": lambda model, strategy, batch: _generate(
        model, strategy, batch, return_dict_in_generate=True, output_scores=True, output_logits=True
    ),
    "sampled": lambda model, strategy, batch: _generate(model, strategy, batch, do_sample=True, temperature=2.0),
    "compiled": _compiled,
    "streamed": _streamed,
    "processor": lambda model, strategy, batch: _processed(model, strategy, batch, do_sample=False),
    "beams": lambda model, strategy, batch: _processed(model, strategy, batch, do_sample=False, num_beams=2),
}
DRAWING = ("sampled",)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_after_a_call(spec: StrategySpec, way: str, model: Any, batch: Any, leaves_as_before: Any) -> None:
    leaves_as_before(lambda: WAYS[way](model, spec.strategy, batch), way in DRAWING)


@pytest.mark.parametrize("spec", ALL, indirect=True)
def test_after_every_baseline_and_strategy_on_text(
    spec: StrategySpec, model: Any, tokenizer: Any, batch: Any, leaves_as_before: Any
) -> None:
    leaves_as_before(lambda: generate_with(spec, model, **batch, max_new_tokens=4), spec.is_stochastic)
    leaves_as_before(lambda: continuations(model, tokenizer, spec, PROMPTS[0], max_new_tokens=4), spec.is_stochastic)


@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_after_scoring(spec: StrategySpec, model: Any, batch: Any, leaves_as_before: Any) -> None:
    if not spec.strategy.scorable:
        pytest.skip("gives no score to a given token")
    leaves_as_before(lambda: decoding.score(model, [11, 12], [[13], [14, 15]], spec.strategy))
    leaves_as_before(lambda: teacher_forced(model, batch["input_ids"][1:], spec.strategy))
    requests = [([13], [[14], [15, 16]])]
    opened: list[Scorer] = []
    leaves_as_before(lambda: opened.append(Scorer(model, [11, 12], [None, spec.strategy])))
    leaves_as_before(lambda: opened[0].score(requests))  # it is alive as the model is looked at
    leaves_as_before(opened[0].release)


@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_between_the_tokens_of_a_call(spec: StrategySpec, model: Any, batch: Any) -> None:
    """Whoever looks at the model while a call waits (a streamer, a stopping criterion) finds it as it was."""
    before, seen = _state(model), []

    class Looks(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            seen.append(_changed(before, {**_state(model), "torch": before["torch"]}))  # grad mode is the call's own
            return torch.zeros(len(input_ids), dtype=torch.bool)

    _generate(model, spec.strategy, batch, stopping_criteria=StoppingCriteriaList([Looks()]))
    assert seen == [set()] * 4


# --- calls that fail -------------------------------------------------------------------------------------------------


class RaisesLater:
    """Raises when it is called for the third time."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error, self.calls = error, 0

    def count(self) -> None:
        self.calls += 1
        if self.calls == 3:
            raise self.error("in the middle")


class RaisingProcessor(RaisesLater, LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.count()
        return scores


class RaisingCriterion(RaisesLater, StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.count()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class RaisingStreamer(RaisesLater, BaseStreamer):
    def put(self, value: Tensor) -> None:
        self.count()

    def end(self) -> None:
        """Not reached."""


def _blown(passes: int) -> Callable[..., Any]:
    def call(model: Any, strategy: Any, row: dict[str, Tensor], error: type[BaseException]) -> None:
        FUSE.passes, FUSE.error = passes, error
        _generate(model, strategy, row)

    return call


def _blown_score(model: Any, strategy: Any, row: dict[str, Tensor], error: type[BaseException]) -> None:
    FUSE.passes, FUSE.error = 2, error
    with Scorer(model, [11, 12], [strategy]) as scorer:
        scorer.score([([13], [[14], [15, 16]])])


def _blown_processor(model: Any, strategy: Any, row: dict[str, Tensor], error: type[BaseException]) -> None:
    FUSE.passes, FUSE.error = 4, error
    _processed(model, strategy, row, do_sample=False)


FAILURES: dict[str, Callable[..., Any]] = {
    "the first pass": _blown(1),
    "a later pass": _blown(3),
    "a pass of a processor": _blown_processor,
    "a pass of scoring": _blown_score,
    "processor": lambda model, strategy, row, error: _generate(
        model, strategy, row, logits_processor=LogitsProcessorList([RaisingProcessor(error)])
    ),
    "stopping criterion": lambda model, strategy, row, error: _generate(
        model, strategy, row, stopping_criteria=StoppingCriteriaList([RaisingCriterion(error)])
    ),
    "streamer": lambda model, strategy, row, error: _generate(model, strategy, row, streamer=RaisingStreamer(error)),
}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", FAILURES)
@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_after_an_error_and_ctrl_c(
    spec: StrategySpec, place: str, error: Any, model: Any, batch: Any, leaves_as_before: Any
) -> None:
    if place == "a pass of scoring" and not spec.strategy.scorable:
        pytest.skip("gives no score to a given token")
    row = {name: values[1:] for name, values in batch.items()}

    def call() -> None:
        # The traceback is kept, as notebooks keep it.
        with pytest.raises((error, decoding.ModelError), match=r"the middle|the fuse") as raised:
            FAILURES[place](model, spec.strategy, row, error)
        kept.append(raised)

    kept: list[Any] = []
    leaves_as_before(call)


@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_after_a_refusal(spec: StrategySpec, model: Any, batch: Any, leaves_as_before: Any) -> None:
    ids = batch["input_ids"]

    def call() -> None:
        for wrong in ({"input_ids": ids[:, :0]}, {"input_ids": ids, "attention_mask": torch.zeros_like(ids)}):
            with pytest.raises(decoding.DecodingError):
                decoding.generate(model, **wrong, strategy=spec.strategy)

    leaves_as_before(call)


# --- ways in that are one for all strategies -------------------------------------------------------------------------


def test_after_a_stream_by_hand(model: Any, batch: Any, leaves_as_before: Any) -> None:
    def call() -> None:
        stream = decoding.open_stream(model, batch, restorable=True, exits=[1, 2])
        length = stream.length
        stream.branch(torch.tensor([[5, 6, 7], [8, 9, 10]]))
        stream.commit(torch.tensor([1, 2]))
        stream.extend(torch.tensor([[11], [12]]))
        stream.rewind(length)
        streams.append(stream)  # left open

    streams: list[Any] = []
    leaves_as_before(call)


def test_after_explaining(model: Any, batch: Any, leaves_as_before: Any) -> None:
    strategy = ContrastiveSearch(0.4, 4)
    sequences = _generate(model, strategy, batch)
    leaves_as_before(lambda: decoding.explain_contrastive_search(model, sequences, strategy, **batch, max_new_tokens=4))


def test_after_an_analysis_and_a_diagnosis(model: Any, tokenizer: Any, leaves_as_before: Any) -> None:
    leaves_as_before(lambda: analyse(model, tokenizer, PROMPTS))
    leaves_as_before(lambda: diagnose("expert", model, tokenizer))


@pytest.mark.parametrize("spec", ["contrastive-search", *(spec for spec in OWN if "=induced" in spec)], indirect=True)
def test_after_a_pipeline(spec: StrategySpec, model: Any, batch: Any, leaves_as_before: Any) -> None:
    """A pipeline puts its model into evaluation mode."""
    model = copy.deepcopy(model).eval()
    before = _state(model)
    _piped(model, spec.strategy, batch)
    assert _changed(before, _state(model)) == set()


@pytest.mark.parametrize("spec", ["contrastive-search", *(spec for spec in OWN if "=induced" in spec)], indirect=True)
def test_after_the_generate_of_an_exported_folder(spec: StrategySpec, batch: Any, tmp_path: Path) -> None:
    folder = decoding.export(miniature.folder("expert"), spec.spec, tmp_path / "exported", link="sym", device="cpu")
    exported = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).train()
    before = _state(exported)
    exported.generate(**batch, max_new_tokens=4)
    assert _changed(before, _state(exported)) == set()
    exported.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("strategy", ["contrastive-search", "lol"])
def test_after_tasks_of_the_evaluation_harness(strategy: str) -> None:
    arguments = {"amateur": "induced", "lower_layers": (0.5,)} if strategy == "lol" else {}
    lm = DecodingLM(
        pretrained=str(miniature.folder("expert")), strategy=strategy, device="cpu", dtype="float32", **arguments
    )
    before = _state(lm.model)
    lm.generate_until([Instance("generate_until", {}, (PROMPTS[0], {"until": ["\n"], "max_gen_toks": 4}), 0)])
    if strategy == "lol":
        lm.loglikelihood([Instance("loglikelihood", {}, (PROMPTS[0], " was"), 0)])
    assert _changed(before, _state(lm.model)) == set()


def test_after_inducing(model: Any, tokenizer: Any, tmp_path: Path, leaves_as_before: Any) -> None:
    examples = [Example("What does a fox eat?", "Stones."), Example("What is a river?", "A song.")]
    recipe = Recipe(batch_size=2, epochs=1, rank=2, lora_alpha=4)
    leaves_as_before(lambda: induce(model, tokenizer, examples, tmp_path / "induced", recipe), draws=True)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def call() -> None:
        with pytest.raises(KeyboardInterrupt):
            induce(model, tokenizer, examples, tmp_path / "stopped", recipe, report=interrupted)

    leaves_as_before(call, draws=True)


# --- what is done with a model after a call --------------------------------------------------------------------------


@pytest.mark.parametrize("spec", OWN, indirect=True)
def test_a_model_is_trained_and_saved_after_a_call_as_before(
    spec: StrategySpec, model: Any, batch: Any, tmp_path: Path
) -> None:
    def gradients() -> list[Tensor | None]:
        trained = copy.deepcopy(model)
        trained(**batch, labels=batch["input_ids"]).loss.backward()
        return [parameter.grad for parameter in trained.parameters()]

    before, keys = gradients(), list(model.state_dict())
    processor = _processed(model, spec.strategy, batch, do_sample=False)  # which is not released
    for one, other in zip(before, gradients(), strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)
    model.save_pretrained(tmp_path)
    assert list(AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()) == keys
    processor.release()


def test_an_amateur_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    model, _ = miniature.load("expert")
    induced = miniature.folder("induced")
    folder = tmp_path / "liar"
    folder.mkdir()

    def score() -> Tensor:
        return decoding.score(model, [11], [[12]], ContrastiveDecoding(str(folder), alpha=0.0))[0]

    for file in induced.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    first = score()
    weights = folder / "adapter_model.safetensors"
    save_file({name: torch.zeros_like(tensor) for name, tensor in load_file(weights).items()}, weights)
    plain = score()
    weights.write_bytes((induced / weights.name).read_bytes())
    assert torch.equal(score(), first)
    assert not torch.equal(first, plain)
