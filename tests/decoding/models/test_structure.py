"""Layers, final norm and head are found by what a forward pass hands on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mixed_precision import prepared
from tiny_models import VOCAB, random_ids, tiny_model
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertLMHeadModel,
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    FSMTConfig,
    FSMTForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLMConfig,
    XLMWithLMHeadModel,
)

import decoding
from decoding import DoLa, ModelError
from decoding.models.hooks import chained, recorded_calls
from decoding.models.probe import relative_error
from decoding.models.structure import inspect_model

SIZES = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 64}
IDS = torch.arange(10, 17)[None]


def _close(value: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(value, reference, atol=1e-5, rtol=1e-4)  # float32, the same sums


def test_a_head_of_several_modules_is_one() -> None:
    config = BertConfig(**SIZES, num_hidden_layers=3, intermediate_size=48, is_decoder=True)
    model = BertLMHeadModel(config).eval()
    structure = inspect_model(model)
    assert structure.layers is model.bert.encoder.layer
    with torch.no_grad():
        output = model(IDS, output_hidden_states=True)
        _close(structure.logits(model, output.hidden_states[-1]), output.logits)
        # What it would say if it ended after two layers: a copy does.
        early = structure.exit_logits(model, output.hidden_states[2], final_norm=True)
        model.bert.encoder.layer = model.bert.encoder.layer[:2]
        _close(early, model(IDS).logits)


@pytest.mark.parametrize("final_norm", [True, False])
def test_a_projection_after_the_final_norm_belongs_to_every_exit(final_norm: bool) -> None:
    config = OPTConfig(**SIZES, num_hidden_layers=3, ffn_dim=48, word_embed_proj_dim=16)
    model = OPTForCausalLM(config).eval()
    structure = inspect_model(model)
    with torch.no_grad():
        state = model(IDS, output_hidden_states=True).hidden_states[1]  # (1, 7, 32), the head reads 16
        decoder: Any = model.model.decoder
        normed = decoder.final_layer_norm(state) if final_norm else state
        _close(structure.exit_logits(model, state, final_norm), model.lm_head(decoder.project_out(normed)))


def test_a_soft_cap_is_seen_though_it_hardly_changes_small_logits() -> None:
    model = tiny_model("gemma2")
    with torch.no_grad():
        model.lm_head.weight.mul_(0.01)
    model.config.final_logit_softcapping = 30.0
    assert inspect_model(model).head_transform == "head, soft-capped"


@pytest.mark.parametrize("name", ["llama", "gemma2", "cohere", "gpt2", "opt", "bloom", "t5"])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_of_some_tokens_are_those_of_all(name: str, biased: bool) -> None:
    model = tiny_model(name)
    if biased:
        model.get_output_embeddings().bias = nn.Parameter(torch.randn(VOCAB))
    structure = inspect_model(model)
    assert structure.selects_tokens
    states, lower, bare = torch.randn(3, model.config.hidden_size), torch.randn(2, 32), torch.randn(4, 32)
    tokens = torch.tensor([3, 17, 18, 119])
    with torch.no_grad():
        some = structure.all_logits(model, states, lower, bare, tokens)
        for selected, logits in zip(some, structure.all_logits(model, states, lower, bare), strict=True):
            _close(selected, logits[:, tokens])


def _with_bias_after_the_head() -> Any:
    model = tiny_model("bart")
    model.final_logits_bias.normal_()
    return model


def _with_hook() -> Any:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: 2 * logits)
    return model


@pytest.mark.parametrize(
    "make", [_with_bias_after_the_head, _with_hook, lambda: tiny_model("llama").to(torch.bfloat16)],
    ids=["bias-after-the-head", "hook", "bfloat16"],
)  # fmt: skip
def test_other_heads_are_applied_for_all_tokens(make: Callable[[], Any]) -> None:
    assert not inspect_model(make()).selects_tokens


def test_what_a_model_forbids_in_its_logits_is_not_taken_for_a_plain_head() -> None:
    small = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = ChameleonConfig(
        **small, num_attention_heads=4, num_key_value_heads=4, vocabulary_map={"<image>": 3, "IMGIMGAAAA": 4},
        vq_config={"base_channels": 32, "embed_dim": 16, "num_embeddings": 8, "latent_channels": 16},
    )  # fmt: skip
    structure = inspect_model(ChameleonForConditionalGeneration(config).eval())
    assert not structure.separable
    with pytest.raises(ModelError, match="no early exit from its lower layers: its logits could not be rebuilt"):
        structure.layers_before(ChameleonForConditionalGeneration, [1])


def test_an_encoder_of_sound_is_not_asked() -> None:
    config = WhisperConfig(
        vocab_size=120, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_target_positions=64, num_mel_bins=8,
        max_source_positions=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    model.generation_config.update(suppress_tokens=None, begin_suppress_tokens=None, eos_token_id=None)
    features = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0))
    greedy = model.generate(features, max_new_tokens=4, do_sample=False)
    # alpha 1 leaves the most probable token alone
    got = decoding.generate(model, features, strategy=DoLa(layers=[1], alpha=1.0), max_new_tokens=4)
    assert got.tolist() == greedy.tolist()


def test_a_decoder_less_deep_than_its_encoder_is_branched() -> None:
    config = T5Config(vocab_size=120, d_model=32, d_kv=8, d_ff=48, num_layers=4, num_decoder_layers=2, num_heads=4)
    model = T5ForConditionalGeneration(config).eval()
    model.generation_config.update(decoder_start_token_id=0, eos_token_id=None, pad_token_id=0)
    greedy = model.generate(IDS, max_new_tokens=4, do_sample=False)
    got = decoding.generate(model, IDS, penalty_alpha=0.0, top_k=3, max_new_tokens=4)
    assert got.tolist() == greedy.tolist()


def test_layers_that_hand_no_state_on_are_refused() -> None:
    model = XLMWithLMHeadModel(XLMConfig(vocab_size=120, emb_dim=32, n_layers=3, n_heads=4, causal=True)).eval()
    with pytest.raises(ModelError, match="XLMWithLMHeadModel: no early exit from its lower layers: its l"):
        decoding.generate(model, IDS, strategy=DoLa(layers=[1]), max_new_tokens=2)


def test_logits_are_not_taken_for_hidden_states() -> None:
    config = FSMTConfig(
        langs=["en", "de"], src_vocab_size=120, tgt_vocab_size=120, d_model=32, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"FSMT.*: the hidden states that its head reads were not found"):
        inspect_model(FSMTForConditionalGeneration(config).eval())


def test_a_chain_of_calls_leads_from_one_tensor_to_another() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.LayerNorm(4), nn.Linear(4, 2))
    given = torch.randn(1, 3, 4)
    with torch.no_grad(), recorded_calls(model) as calls:
        end = model(given)
    inner = calls[1:]  # the first is the whole
    chain = chained(inner, given, end)
    assert chain is not None
    assert [type(call.module) for call in chain] == [nn.Linear, nn.LayerNorm, nn.Linear]  # Identity changes nothing
    assert chained(inner, given + 1, end) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# --- mixed precision of accelerate ------------------------------------------------------------------------------------


def _prepared(name: str) -> Any:

    return prepared(tiny_model(name))


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt", "t5"])
def test_mixed_precision_is_that_of_the_models_own_forward(name: str) -> None:
    """The rebuilt logits are the model's own: its parts are put under the autocast of its forward."""
    plain = inspect_model(tiny_model(name))
    model = _prepared(name)
    structure = inspect_model(model)
    assert structure.autocast == torch.bfloat16
    assert plain.autocast is None
    assert (structure.head_transform, structure.separable) == (plain.head_transform, plain.separable)
    assert structure.no_early_exit is None
    if not model.config.is_encoder_decoder:
        ids = random_ids(2, 6)
        with torch.no_grad():
            hidden = structure.forward_backbone(model, {"input_ids": ids, "use_cache": False}).last_hidden_state
            rebuilt, own = structure.logits(model, hidden), model(input_ids=ids, use_cache=False).logits
        assert rebuilt.dtype == own.dtype == torch.float32
        assert relative_error(rebuilt, own) < 1e-2  # a bfloat16 product of few rows may take another order


@pytest.mark.parametrize(
    "strategy",
    [
        decoding.DoLa([0, 1]), decoding.LOL(decoding.Prompt([3, 4]), [1]), decoding.ContrastiveSearch(),
        decoding.ContrastiveDecoding(decoding.Prompt([3, 4])), decoding.FSD(),
    ],
    ids=lambda strategy: strategy.name,
)  # fmt: skip
def test_mixed_precision_models_decode_as_under_their_autocast(strategy: Any) -> None:
    """DoLa and LOL were refused: their logits "could not be rebuilt"."""
    ids, model = random_ids(2, 6), tiny_model("llama")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = decoding.generate(model, ids, strategy=strategy, max_new_tokens=8)
    given = decoding.generate(_prepared("llama"), ids, strategy=strategy, max_new_tokens=8)
    assert given.tolist() == expected.tolist()


def test_a_model_that_was_inspected_before_it_was_prepared_is_inspected_again() -> None:

    model = tiny_model("llama")
    assert inspect_model(model).autocast is None
    mixed = prepared(model)
    assert inspect_model(mixed).autocast == torch.bfloat16
