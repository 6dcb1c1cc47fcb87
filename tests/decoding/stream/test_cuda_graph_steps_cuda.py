"""Captured steps on a GPU: the same tokens by replay, no waiting inside a step, memory given back."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from torch import Tensor

import decoding
from decoding import LOL, ContrastiveDecoding, ContrastiveSearch, DoLa
from decoding.capabilities.capabilities import open_stream
from decoding.models import attention
from decoding.stream import cuda_graph_steps, static_layout

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NEW = 40


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_layout, "BUCKET", 16)
    monkeypatch.setattr(attention, "LONG", 0)  # so that its kernel is captured too


def _model(name: str, seed: int = 0) -> Any:
    return tiny_model(name, seed).cuda()


def _prompts(*lengths: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    width = max(lengths)
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]).cuda(),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]).cuda(),
    }


@pytest.mark.parametrize("lengths", [(9,), (5, 13, 1)], ids=["one row", "left-padded rows"])
@pytest.mark.parametrize("kind", ["search", "contrastive decoding", "dola"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gemma2", "mistral-sliding"])
def test_replayed_tokens_are_those_without_compile(name: str, kind: str, lengths: tuple[int, ...]) -> None:
    model, inputs = _model(name), _prompts(*lengths)
    strategy = {
        "search": lambda: ContrastiveSearch(0.6, 4),
        "contrastive decoding": lambda: ContrastiveDecoding(_model(name, 7)),
        "dola": lambda: DoLa("high"),
    }[kind]()
    expected = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW).tolist()
    for _ in range(2):  # captured, then replayed from the first step on
        tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW, compile=True)
        assert tokens.tolist() == expected
    (layout,) = cuda_graph_steps._idle[model]
    assert len(layout.steps) >= 3
    assert all(isinstance(step.graph, cuda_graph_steps.CudaGraph) for step in layout.steps.values())


@pytest.mark.parametrize("kind", ["search", "contrastive decoding"])
def test_replayed_drafts_are_those_without_compile(kind: str) -> None:
    model, weak, inputs = _model("llama"), _model("llama", 7), _prompts(5, 13, 1)
    strategy = ContrastiveSearch(0.6, 4) if kind == "search" else ContrastiveDecoding(weak)
    expected = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW).tolist()
    for drafts in ("prompt-lookup", "exit:2", weak):
        for _ in range(2):
            tokens = decoding.generate(
                model, **inputs, strategy=strategy, drafts=drafts, draft_tokens=3, max_new_tokens=NEW, compile=True
            )
            assert tokens.tolist() == expected
    assert all(
        isinstance(step.graph, cuda_graph_steps.CudaGraph)
        for layout in cuda_graph_steps._idle[model]
        for step in layout.steps.values()
    )


def test_rows_of_a_lora_amateur_are_replayed_too() -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    model = peft.get_peft_model(tiny_model("llama"), config, adapter_name="liar").eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model = model.cuda()
    strategy = LOL("liar", [1, 2], guidance=[9, 40, 17])
    tokens = [
        decoding.generate(
            model, **_prompts(5, 13, 1), strategy=strategy, max_new_tokens=24, pad_token_id=0, compile=compile
        ).tolist()
        for compile in (False, True)
    ]
    assert tokens[0] == tokens[1]


def test_experts_are_captured_as_decoding_runs_them() -> None:
    """On a GPU transformers decodes with batched experts, and so does the check whether they can be captured."""
    from tiny_models import LLAMA_LIKE
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**LLAMA_LIKE, num_local_experts=4)).eval().cuda()
    model.generation_config.eos_token_id = None
    tokens = [
        decoding.generate(model, **_prompts(9), penalty_alpha=0.6, top_k=4, max_new_tokens=20, compile=compile).tolist()
        for compile in (False, True)
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_nothing_in_a_step_waits_for_the_device(name: str) -> None:
    stream = open_stream(_model(name), compile=True, **_prompts(5, 13, 1))
    tokens = torch.randint(3, VOCAB, (3, 4)).cuda()
    branch = torch.tensor([0, 2, 3]).cuda()

    def steps() -> None:
        stream.branch(tokens)
        stream.commit(branch)
        stream.extend(tokens[:, :1])

    for _ in range(2):  # captures of the buckets that are met
        steps()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        while static_layout.bucket_of(stream.length + 4) == static_layout.bucket_of(stream.length + 8):
            steps()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    stream.release()


def test_a_step_is_one_launch() -> None:
    stream = open_stream(_model("llama"), compile=True, **_prompts(9))
    token = torch.tensor([[5]]).cuda()
    stream.extend(token)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        stream.extend(token)
        torch.cuda.synchronize()
    launched = [event.count for event in profile.key_averages() if event.key.startswith("cudaGraphLaunch")]
    assert launched == [1]
    assert not any("scaled_dot_product" in event.key for event in profile.key_averages())
    stream.release()


def test_what_a_reading_holds_outlives_the_next_replay() -> None:
    stream = open_stream(_model("llama"), compile=True, exits=(1,), **_prompts(9))
    stream.extend(torch.tensor([[4]]).cuda())
    first = stream.extend(torch.tensor([[5]]).cuda())
    hidden, early = first.hidden.clone(), first.exits[0].clone()
    stream.extend(torch.tensor([[6]]).cuda())
    assert first.hidden.equal(hidden)
    assert first.exits[0].equal(early)
    stream.release()


def test_memory_goes_with_the_model() -> None:
    def allocated() -> int:
        gc.collect()
        torch._C._cuda_clearCublasWorkspaces()  # which a side stream has of its own
        return torch.cuda.memory_allocated()

    before = allocated()
    model = _model("llama")
    inputs = _prompts(*[9] * 64)
    decoding.generate(model, **inputs, penalty_alpha=0.6, top_k=4, max_new_tokens=NEW, compile=True)
    (layout,) = cuda_graph_steps._idle[model]
    held = sum(keys.nbytes + values.nbytes for keys, values in layout.storage)
    assert allocated() > before + held
    del layout, model, inputs
    assert allocated() < before + held / 2


def test_half_precision_and_a_deep_copy_of_the_model() -> None:
    model = _model("llama").to(torch.bfloat16)
    inputs = _prompts(9)
    decoding.generate(model, **inputs, penalty_alpha=0.6, top_k=4, max_new_tokens=20, compile=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.neg_()
    alone = decoding.generate(other, **inputs, penalty_alpha=0.6, top_k=4, max_new_tokens=20, compile=True)
    del model
    gc.collect()
    again = decoding.generate(other, **inputs, penalty_alpha=0.6, top_k=4, max_new_tokens=20, compile=True)
    assert again.tolist() == alone.tolist()
