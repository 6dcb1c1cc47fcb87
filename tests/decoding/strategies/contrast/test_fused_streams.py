"""Readers that share weights: one forward pass, LoRA rows beside base rows, and what cannot share one."""

from __future__ import annotations

import copy
import functools
import threading
from typing import Any

import contrast_oracle as oracle
import pytest
import torch
from tiny_models import VOCAB, tiny_model
from torch import Tensor

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, DoLa, InputError, ModelError, OptionError, Prompt
from decoding.models.adapters import adapters_of
from decoding.models.wrappers import unwrapped
from decoding.tools.architectures.tiny import tiny_model as tiny_type

peft = pytest.importorskip("peft", reason="needs peft")

GUIDE = [9, 40, 17]
STEPS = 5  # past a window of 8 after a prompt of 4


def _with_adapter(name: str = "llama", seed: int = 1, **options: Any) -> Any:
    """A PeftModel with an adapter "liar" that says something: fresh LoRA matrices add nothing."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **options)
    model = peft.get_peft_model(tiny_model(name), config, adapter_name="liar").eval()
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def _merged(model: Any) -> Any:
    """The liar as a model of its own."""
    return copy.deepcopy(model).merge_and_unload().eval()


def _batch() -> tuple[Tensor, Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (4, 9)]
    ids = torch.tensor([[0] * 5 + rows[0], rows[1]])
    return ids, (ids != 0).long(), rows


def _passes(model: Any) -> Any:
    """Counts the forward passes of a model's layers."""
    counted: list[int] = []
    unwrapped(model).get_decoder().layers[0].register_forward_hook(lambda *_: counted.append(1))
    return counted


@functools.cache
def _own_readers(name: str) -> tuple[oracle.Reader, oracle.Reader]:
    """A model and its liar, each by itself."""
    return oracle.Reader(tiny_model(name)), oracle.Reader(_merged(_with_adapter(name)))


@pytest.mark.parametrize(("name", "kind"), [("llama", "cd"), *((name, "lol") for name in ("llama", "gpt2", "gemma2"))])
def test_a_lora_amateur_is_the_merged_model_in_the_same_pass(name: str, kind: str) -> None:
    model = _with_adapter(name)
    ids, mask, rows = _batch()
    e, a = _own_readers(name)
    settings = {
        "amateur_weight": 0.7, "lower_amateur_weight": 0.5, "fusion_weight": 0.6, "fusion": "entropy",
        "refocus_weight": 0.5, "alpha": 0.05,
    }  # fmt: skip

    def scores_of(text: list[int]) -> Tensor:
        expert, amateur = e.logits(text)[-1], a.logits(text)[-1]
        if kind == "cd":
            return oracle.contrastive_decoding(expert, amateur, 0.1, 0.5, "logits")
        early = [(e.early(text, 2, True)[-1], a.early(text, 2, True)[-1])]
        return oracle.lol(expert, amateur, early, e.logits([*GUIDE, *text])[-1], settings)

    strategy = ContrastiveDecoding("liar") if kind == "cd" else LOL("liar", [2], guidance=GUIDE, **settings)
    options = {"attention_mask": mask, "max_new_tokens": STEPS, "eos_token_id": None, "pad_token_id": 0}
    tokens = decoding.generate(model, ids, strategy=strategy, **options)
    processor = strategy.logits_processor(model, attention_mask=mask)
    for row, prompt in enumerate(rows):
        found = tokens[row, 9:].tolist()
        assert found == oracle.greedy_tokens(scores_of, prompt, STEPS, found)[0]
    assert not torch.allclose(a.logits(rows[1]), e.logits(rows[1]))
    # generate() itself reads with the active adapter, so the processor form needs the expert to be what is active.
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.set_adapter([])
    assert model.generate(input_ids=ids, logits_processor=[processor], do_sample=False, **options).tolist() == (
        tokens.tolist()
    )


def test_expert_guided_expert_and_lora_amateur_share_one_pass_a_token() -> None:
    model = _with_adapter()
    ids, mask, _ = _batch()
    strategy = LOL("liar", [1], guidance=GUIDE)
    counted = _passes(model)
    decoding.generate(model, ids, attention_mask=mask, strategy=strategy, max_new_tokens=1, eos_token_id=None)
    counted.clear()  # the anatomy's and the self-check's passes come with the first call
    decoding.generate(model, ids, attention_mask=mask, strategy=strategy, max_new_tokens=6, eos_token_id=None)
    assert len(counted) == 6

    class Unfused(LOL):
        fuse = False

    counted.clear()
    unfused = Unfused("liar", [1], guidance=GUIDE)
    decoding.generate(model, ids, attention_mask=mask, strategy=unfused, max_new_tokens=6, eos_token_id=None)
    assert len(counted) == 18


def test_the_model_is_left_as_it_was() -> None:
    model = _with_adapter()
    ids, mask, _ = _batch()
    before = model(input_ids=ids, attention_mask=mask).logits
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    decoding.generate(model, ids, attention_mask=mask, strategy=LOL("liar", [1], guidance=GUIDE), max_new_tokens=3)
    assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks


def test_calls_in_several_threads_do_not_see_each_others_rows() -> None:
    model = _with_adapter()
    ids, mask, _ = _batch()
    strategies = [ContrastiveDecoding("liar"), LOL("liar", [1], guidance=GUIDE), ContextAware(GUIDE)]

    def call(strategy: Any) -> list[list[int]]:
        return decoding.generate(
            model, ids, attention_mask=mask, strategy=strategy, max_new_tokens=8, eos_token_id=None
        ).tolist()

    alone = [call(strategy) for strategy in strategies]
    together: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: call(strategies[i])})) for i in range(len(strategies))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(len(strategies))] == alone


@pytest.mark.parametrize("prefix", [GUIDE, GUIDE[:1]])
def test_the_cache_handed_back_continues_with_plain_generate(prefix: list[int]) -> None:
    model = tiny_model("llama")
    _, _, rows = _batch()
    prompt = torch.tensor([rows[1]])
    output = decoding.generate(
        model, prompt, strategy=ContextAware(prefix), max_new_tokens=5, return_dict_in_generate=True, eos_token_id=None
    )
    assert output.past_key_values.get_seq_length() == output.sequences.shape[1] - 1
    continued = model.generate(
        output.sequences, past_key_values=output.past_key_values, max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    plain = model.generate(output.sequences, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert continued.tolist() == plain.tolist()


def test_what_is_asked_for_of_the_expert_is_that_of_the_expert() -> None:
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=7)
    model.set_attn_implementation("eager")  # the one that returns attentions
    ids, mask, _ = _batch()
    for strategy in (ContrastiveDecoding(amateur), ContextAware(GUIDE), DoLa([1])):
        output = decoding.generate(
            model, ids, attention_mask=mask, strategy=strategy, max_new_tokens=4, return_dict_in_generate=True,
            output_logits=True, output_hidden_states=True, output_attentions=True, output_scores=True,
            eos_token_id=None,
        )  # fmt: skip
        forced = model(
            output.sequences,
            attention_mask=torch.nn.functional.pad(mask, (0, 4), value=1),
            position_ids=(torch.nn.functional.pad(mask, (0, 4), value=1).cumsum(1) - 1).clamp(min=0),
        )
        for step in range(4):
            torch.testing.assert_close(output.logits[step], forced.logits[:, 8 + step], atol=1e-4, rtol=1e-4)
        assert len(output.hidden_states) == len(output.attentions) == len(output.scores) == 4
        assert output.hidden_states[1][-1].shape == (2, 1, 32)
        assert output.attentions[1][0].shape == (2, 4, 1, 10)


# --- what cannot be -------------------------------------------------------------------------------------------------


def test_a_merged_adapter_is_refused() -> None:
    model = _with_adapter()
    model.merge_adapter()
    with pytest.raises(ModelError, match=r"merged into its weights.*unmerge_adapter"):
        decoding.generate(model, _batch()[0], strategy=ContrastiveDecoding("liar"), max_new_tokens=2)


def test_dora_and_adapters_on_the_head_are_refused() -> None:
    ids = _batch()[0]
    with pytest.raises(ModelError, match="uses DoRA"):
        decoding.generate(_with_adapter(use_dora=True), ids, strategy=ContrastiveDecoding("liar"), max_new_tokens=2)
    model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["lm_head"]), adapter_name="liar")
    with pytest.raises(ModelError, match="changes the embeddings or the head"):
        decoding.generate(model.eval(), ids, strategy=ContrastiveDecoding("liar"), max_new_tokens=2)


def test_an_adapter_that_is_not_there_is_refused_with_those_that_are() -> None:
    from decoding.models.adapters import check_adapter

    with pytest.raises(OptionError, match=r"'lair'.*did you mean liar"):
        check_adapter(unwrapped(_with_adapter()), "lair")


def test_an_adapter_from_a_folder_stays_beside_the_model(tmp_path: Any) -> None:
    _with_adapter().save_pretrained(tmp_path)
    folder = tmp_path / "liar"
    model = tiny_model("llama")
    ids, mask, _ = _batch()
    before = model(ids, attention_mask=mask).logits
    expected = decoding.generate(
        _with_adapter(), ids, attention_mask=mask, strategy=ContrastiveDecoding("liar"), max_new_tokens=6
    )
    for _ in range(2):  # the second time it is there
        tokens = decoding.generate(
            model, ids, attention_mask=mask, strategy=ContrastiveDecoding(str(folder)), max_new_tokens=6
        )
        assert tokens.tolist() == expected.tolist()
    assert adapters_of(model) == {}
    assert torch.equal(model(ids, attention_mask=mask).logits, before)
    with pytest.raises(ModelError, match=r"does not fit the model|cannot be loaded"):
        decoding.generate(tiny_model("gpt2"), ids, strategy=ContrastiveDecoding(str(folder)), max_new_tokens=6)


def test_an_expert_whose_own_adapter_is_active_stays_the_expert(tmp_path: Any) -> None:
    """A PeftModel may have a task adapter and an amateur; the expert is the one that generate() runs."""
    model = _with_adapter()
    model.add_adapter("task", peft.LoraConfig(r=4, target_modules="all-linear"))
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if "lora_" in name and ".task." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.set_adapter("task")
    ids, mask, _ = _batch()
    greedy = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    same = decoding.generate(
        model, ids, attention_mask=mask, max_new_tokens=8, strategy=ContrastiveDecoding("liar", beta=0.0)
    )
    assert same.tolist() == greedy.tolist()


def test_contexts_that_are_too_long_are_found_before_anything_is_generated() -> None:
    model, short = tiny_model("llama"), tiny_model("gpt2", seed=2)
    short.config.max_position_embeddings = 16
    ids = torch.randint(3, VOCAB, (1, 9))
    with pytest.raises(InputError, match=r"amateur's prompt has 9 tokens, which with 20 new ones .* context of 16"):
        decoding.generate(model, ids, strategy=ContrastiveDecoding(short), max_new_tokens=20)
    with pytest.raises(InputError, match=r"expert in context's prompt has 129 tokens"):
        decoding.generate(model, ids, strategy=ContextAware([5] * 120), max_new_tokens=4)


def test_recurrent_models_read_prompts_of_several_lengths_apart() -> None:
    model = tiny_model("mamba")
    ids = torch.randint(3, VOCAB, (1, 9), generator=torch.Generator().manual_seed(1))
    reader = oracle.Reader(model)
    tokens = decoding.generate(
        model, ids, strategy=ContrastiveDecoding(Prompt(GUIDE)), max_new_tokens=6, eos_token_id=None
    )
    found = tokens[0, 9:].tolist()
    right = oracle.greedy_tokens(
        lambda text: oracle.contrastive_decoding(
            reader.logits(text)[-1], reader.logits([*GUIDE, *text])[-1], 0.1, 0.5, "logits"
        ),
        ids[0].tolist(),
        6,
        found,
    )[0]
    assert found == right


@pytest.mark.parametrize("model_type", ["git", "minimax_m3_vl_text"])
def test_models_that_misread_padding_read_prompts_of_several_lengths_apart(model_type: str) -> None:
    class Apart(ContextAware):
        fuse = False

    model, ids = tiny_type(model_type), torch.randint(3, VOCAB, (1, 9), generator=torch.Generator().manual_seed(1))
    options = {"max_new_tokens": 4, "eos_token_id": None, "output_scores": True, "return_dict_in_generate": True}
    fused, apart = (
        decoding.generate(model, ids, strategy=strategy, **options) for strategy in (ContextAware(GUIDE), Apart(GUIDE))
    )
    torch.testing.assert_close(torch.stack(fused.scores), torch.stack(apart.scores), atol=1e-4, rtol=1e-4)


def test_encoder_decoders_have_dola_and_no_text_beside_the_prompt() -> None:
    model, ids = tiny_model("t5"), torch.randint(3, VOCAB, (2, 7))
    tokens = decoding.generate(model, ids, strategy=DoLa([1]), max_new_tokens=5)
    assert tokens.shape[0] == 2
    with pytest.raises(InputError, match="an encoder-decoder, the encoder reads the prompt"):
        decoding.generate(model, ids, strategy=ContextAware(GUIDE), max_new_tokens=5)
