"""Degraded selves as rows of the model's own pass, against changed copies of the model in float64."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from degraded_oracle import MIXTURES, dropped_channels, of_rank, tiny_mixture, without_heads, without_layers
from tiny_models import left_padded, random_prompt, sharper_model, tiny_model

import decoding
from decoding import ContrastiveDecoding, ModelError, OptionError, Self, WeightedContrast
from decoding.models.degradation import Degradation
from decoding.models.degraded_rows import kept_channels

STEPS = 4
PROMPTS = [random_prompt(4, seed=1), random_prompt(11, seed=2)]  # gemma2 and mistral have windows of 8
PROJECTIONS = {"gpt2": "attn.c_proj", "opt": "self_attn.out_proj", "bloom": "self_attention.dense"}
MODELS = ["llama", "gemma2", "mistral-sliding", "gpt2", "opt", "qwen2", "bloom", "cohere"]


@functools.cache
def _model(name: str) -> Any:
    return tiny_mixture(name) if name in MIXTURES else sharper_model(name, times=8.0)


@functools.cache
def _own(name: str) -> oracle.Reader:
    return oracle.Reader(_model(name))


def _dropout(model: Any, share: float, seed: int) -> Any:
    degradation = Degradation(dropout=share, seed=seed)
    width = model.config.hidden_size
    kept = [kept_channels(degradation, layer, width) for layer in range(model.config.num_hidden_layers)]
    return dropped_channels(model, kept)


def _heads(model: Any, heads: dict[int, list[int]]) -> Any:
    projection = PROJECTIONS.get(model.config.model_type, "self_attn.o_proj")
    return without_heads(model, heads, projection)


Case = tuple[Self, Callable[[Any], Any]]
CASES: dict[str, Case] = {
    "one-layer": (Self(skip_layers=[1]), lambda model: without_layers(model, [1])),
    "two-layers": (Self(skip_layers=[0, 2]), lambda model: without_layers(model, [0, 2])),
    "heads": (Self(mask_heads={0: [1], 2: [0, 3]}), lambda model: _heads(model, {0: [1], 2: [0, 3]})),
    "every-head": (Self(mask_heads={1: range(4)}), lambda model: _heads(model, {1: [0, 1, 2, 3]})),
    "dropout": (Self(dropout=0.4, seed=3), lambda model: _dropout(model, 0.4, 3)),
    "heads-and-a-layer": (
        Self(skip_layers=[2], mask_heads={0: [2]}), lambda model: without_layers(_heads(model, {0: [2]}), [2])
    ),
}  # fmt: skip
RANKS: dict[str, Case] = {
    f"rank-{rank}": (Self(expert_rank=rank), functools.partial(of_rank, rank=rank)) for rank in (1, 2, 4)
}
# Every case on one model. Another model meets heads and a layer that are left out, at the ends of its attention and of
# its layers, and channels that are dropped between them; a mixture also ranks, at its router.
PAIRS = [
    *(("llama", case) for case in CASES),
    *((name, case) for name in (*MODELS[1:], "mixtral") for case in ("heads-and-a-layer", "dropout")),
    *(("mixtral", case) for case in RANKS),
    *((name, "rank-1") for name in MIXTURES if name != "mixtral"),
]


def _alone(degraded: Self, **settings: Any) -> WeightedContrast:
    """A strategy whose scores are the degraded model's logits."""
    return WeightedContrast([(degraded, 1.0, "degraded")], alpha=None, plausible="degraded", **settings)


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_its_logits_are_those_of_a_changed_copy(name: str, case: str) -> None:
    model = _model(name)
    degraded, changed = {**CASES, **RANKS}[case]
    reader = oracle.Reader(changed(model))
    batch = left_padded(PROMPTS)
    output = decoding.generate(
        model, **batch, strategy=_alone(degraded), max_new_tokens=STEPS, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for row, prompt in enumerate(PROMPTS):
        found = output.sequences[row, batch["input_ids"].shape[1] :].tolist()
        right = reader.logits([*prompt, *found[:-1]])[-STEPS:]
        for step in range(STEPS):
            torch.testing.assert_close(output.scores[step][row].double(), right[step], atol=1e-4, rtol=1e-4)
    own = _own(name).logits(PROMPTS[1])[-1]
    assert (own - reader.logits(PROMPTS[1])[-1]).abs().max() > 0.01  # something was taken from it


def test_the_rows_of_all_readers_go_through_one_pass() -> None:
    """Also of several that lack different parts, and of one with an adapter."""
    peft = pytest.importorskip("peft")
    model = sharper_model("llama", times=8.0)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "liar")
    terms = [("expert", 1.5), (Self(skip_layers=[1]), -0.2), (Self(mask_heads={0: [0]}), -0.2), ("liar", -0.1)]
    batch, strategy = left_padded(PROMPTS), WeightedContrast(terms, alpha=None)
    decoding.generate(model, **batch, strategy=strategy, max_new_tokens=2)  # the checks of a model come first
    passes: list[int] = []
    handle = model.model.register_forward_hook(lambda module, inputs, output: passes.append(len(output[0])))
    fused = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=STEPS)
    handle.remove()
    assert passes == [len(terms) * len(PROMPTS)] * STEPS

    class Apart(WeightedContrast):
        fuse = False

    apart = Apart(terms, alpha=None)
    assert decoding.generate(model, **batch, strategy=apart, max_new_tokens=STEPS).tolist() == fused.tolist()


def test_dropout_draws_its_share_of_channels_anew_for_each_layer_and_seed() -> None:
    kept = [kept_channels(Degradation(dropout=0.3, seed=seed), layer, 20_000) for seed in (0, 1) for layer in (0, 1)]
    for channels in kept:
        assert sorted(set(channels.tolist())) == pytest.approx([0.0, 1 / 0.7])
        assert float((channels == 0).float().mean()) == pytest.approx(0.3, abs=0.02)  # six standard deviations
    assert len({tuple(channels.tolist()) for channels in kept}) == 4
    assert torch.equal(kept[0], kept_channels(Degradation(dropout=0.3, seed=0), 0, 20_000))


def test_a_strategy_with_other_readers_may_have_a_degraded_amateur() -> None:
    """Every parameter that takes a reader takes one: here contrastive decoding, from the prompt's last token on."""
    model, degraded = _model("llama"), oracle.Reader(without_layers(_model("llama"), [1]))
    own = oracle.Reader(model)
    prompt = PROMPTS[1]
    for context, start in (("full", 0), ("last_token", len(prompt) - 1)):
        strategy = ContrastiveDecoding(Self(skip_layers=[1]), amateur_context=context)
        tokens = decoding.generate(model, torch.tensor([prompt]), strategy=strategy, max_new_tokens=STEPS)
        found = tokens[0, len(prompt) :].tolist()
        right, _ = oracle.greedy_tokens(
            lambda text, start=start: oracle.contrastive_decoding(
                own.logits(text)[-1], degraded.logits(text[start:])[-1], 0.1, 0.5, "logits"
            ),
            prompt, STEPS, found,
        )  # fmt: skip
        assert found == right


def test_other_threads_have_the_whole_model() -> None:
    """Hooks are on the model while a degraded row is read; a pass of another thread is not changed by them."""
    model = sharper_model("llama", times=8.0)
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        right = model(ids).logits
    strategy, wrong, done = _alone(Self(skip_layers=[0, 2], mask_heads={1: [0]})), [], threading.Event()

    def read() -> None:
        while not done.is_set():
            with torch.no_grad():
                if not torch.equal(model(ids).logits, right):
                    wrong.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(5):
            decoding.generate(model, ids, strategy=strategy, max_new_tokens=STEPS)
    finally:
        done.set()
        reader.join()
    assert not wrong


@pytest.mark.parametrize(
    ("name", "degraded", "message"),
    [
        ("llama", Self(skip_layers=[3]), "layer 3: LlamaForCausalLM has layers 0 to 2"),
        ("llama", Self(skip_layers=[0, 1, 2]), "skip_layers: are all 3 layers of LlamaForCausalLM; leave at least one"),
        ("gpt2", Self(mask_heads={9: [0]}), "layer 9: GPT2LMHeadModel has layers 0 to 2"),
        ("llama", Self(mask_heads={1: [4]}), "head 4: layer 1 of LlamaForCausalLM has heads 0 to 3"),
        ("mixtral", Self(expert_rank=5), r"expert_rank=5: MixtralForCausalLM has 4 experts, so it must be 1 .* to 4"),
        ("llama", Self(expert_rank=2), "expert_rank: LlamaForCausalLM has no router that sends tokens to experts"),
        ("mamba", Self(mask_heads={0: [0]}), "its config has no num_attention_heads, so no head can be masked"),
    ],
)
def test_what_cannot_be_taken_from_a_model_is_one_line(name: str, degraded: Self, message: str) -> None:
    model = tiny_mixture(name) if name in MIXTURES else tiny_model(name)
    for strategy in (ContrastiveDecoding(degraded), WeightedContrast([("expert", 1.5), (degraded, -0.5, "other")])):
        with pytest.raises((OptionError, ModelError), match=message) as caught:
            decoding.generate(model, torch.tensor([PROMPTS[0]]), strategy=strategy, max_new_tokens=2)
        assert "\n" not in str(caught.value)


def test_a_self_that_lacks_nothing_is_no_amateur() -> None:
    model, ids = tiny_model("llama"), torch.tensor([PROMPTS[0]])
    with pytest.raises(OptionError, match=r"amateur: Self\(\) takes nothing from the model, so it is the expert"):
        decoding.generate(model, ids, strategy=ContrastiveDecoding(Self()), max_new_tokens=2)
    terms = [(Self(), 1.0)]  # and stands for the expert in a sum
    assert WeightedContrast(terms) == WeightedContrast([("expert", 1.0)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"skip_layers": "8"}, r"skip_layers='8': must be whole numbers from 0, such as \[8, 9\]"),
        ({"skip_layers": [1.5]}, "skip_layers="),
        ({"skip_layers": [-1]}, "must be whole numbers from 0"),
        ({"mask_heads": {1: []}}, "must be a mapping from layers to lists of heads"),
        ({"mask_heads": [1, 2]}, "must be a mapping from layers to lists of heads"),
        ({"mask_heads": {"a": [1]}}, "must be a mapping from layers to lists of heads"),
        ({"dropout": 1.0}, "dropout=1.0: must be a number from 0 up to 1, 1 left out"),
        ({"dropout": float("nan")}, "dropout=nan"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"dropout": 0.1, "seed": -1}, "seed=-1"),
        ({"expert_rank": 0}, r"expert_rank=0: .*\(the best\), or None"),
        ({"quantised": "int3"}, "quantised='int3': must be int8 or int4"),
        ({"quantised": "int8", "dropout": 0.1}, "quantised: has weights of its own; leave out the other ways"),
    ],
)
def test_a_degraded_self_is_checked_as_it_is_made(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        Self(**settings)
    assert "\n" not in str(caught.value)


def test_a_quantised_self_is_a_second_model() -> None:
    pytest.importorskip("optimum.quanto", reason="needs optimum-quanto")
    model = sharper_model("llama", times=8.0)
    batch, strategy = left_padded(PROMPTS), _alone(Self(quantised="int8"))
    tokens = decoding.generate(model, **batch, strategy=strategy, max_new_tokens=STEPS)
    assert tokens.shape[1] == batch["input_ids"].shape[1] + STEPS
    assert type(model.model.layers[0].mlp.up_proj) is torch.nn.Linear


def test_without_the_package_a_quantised_self_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optimum", None)
    with pytest.raises(ModelError, match="needs the package optimum-quanto: pip install optimum-quanto"):
        decoding.generate(
            tiny_model("llama"), torch.tensor([PROMPTS[0]]), strategy=_alone(Self(quantised="int4")), max_new_tokens=2
        )
