"""Engines that are started in Python."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

import decoding
from decoding.evals import miniature
from decoding.serving.vllm.engine import engine_of
from decoding.serving.vllm.offline import load_llm, sampling_params

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

PROMPTS = miniature.prompts()
NEW = 16
SMALL = {
    "dtype": "float32", "enforce_eager": True, "distributed_executor_backend": "uni", "block_size": 32,
    "max_model_len": 128, "max_num_seqs": 8,
}  # fmt: skip


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A folder of an architecture whose class in vLLM does not show lower layers; its weights are random."""
    folder = tmp_path_factory.mktemp("gemma")
    tokenizer = AutoTokenizer.from_pretrained(miniature.folder("expert"))
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=128, tie_word_embeddings=False,
        attn_logit_softcapping=None, final_logit_softcapping=None,  # which sdpa leaves out, and which makes ties
    )  # fmt: skip
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(config)
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def tokens_of(model, tokenizer, prompts, strategy):
    """What ``decoding.generate`` makes of each prompt."""
    made = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made.append(decoding.generate(model, ids, strategy=strategy, max_new_tokens=NEW)[0, ids.shape[1] :].tolist())
    return made


def served(llm, prompts, params):
    return [list(request.outputs[0].token_ids) for request in llm.generate(prompts, params, use_tqdm=False)]


def test_prompts_of_one_batch_have_strategies_of_their_own():
    from vllm.exceptions import VLLMValidationError

    model, tokenizer = decoding.load("expert", "cpu")
    amateur = str(miniature.folder("amateur"))
    strategies = {
        "none": None,
        "dola:layers=1;2;3,alpha=0.2": decoding.DoLa([1, 2, 3], alpha=0.2),
        "lol:lower_layers=0.5": decoding.LOL(amateur, lower_layers=[0.5]),
    }
    right = [tokens_of(model, tokenizer, PROMPTS, strategy) for strategy in strategies.values()]
    by_default = tokens_of(model, tokenizer, PROMPTS, decoding.ContrastiveDecoding(amateur, beta=1.0))
    llm = load_llm("expert", layers=[1, 2, 3], strategy="contrastive-decoding:amateur=amateur,beta=1", **SMALL)
    asked = [(prompt, name) for name in strategies for prompt in PROMPTS]
    params = [sampling_params(name, max_tokens=NEW) for _, name in asked]
    assert served(llm, [prompt for prompt, _ in asked], params) == [tokens for made in right for tokens in made]
    assert served(llm, PROMPTS, sampling_params(max_tokens=NEW)) == by_default
    assert len({str(made) for made in (*right, by_default)}) == 4
    with pytest.raises(VLLMValidationError, match=r"shows layers 1, 2, 3 of 0 to 3; start it with \"layers\": \[0, 1"):
        llm.generate(PROMPTS[0], sampling_params("dola:layers=0", max_tokens=NEW), use_tqdm=False)


def test_an_architecture_that_shows_no_lower_layers_has_them_through_the_transformers_backend(gemma):
    assert engine_of(gemma).served == {}
    assert engine_of(gemma).hf_overrides == {"architectures": ["ContrastGemma2ForCausalLM"]}
    for engine in (engine_of(gemma, layers="auto"), engine_of(gemma, layers=[1, 3]), engine_of(gemma, strategy="dola")):
        assert engine.hf_overrides == {"architectures": ["ContrastTransformersForCausalLM"]}
        assert list(engine.served) == ["dola", "sled", "deco"]
    model, tokenizer = decoding.load(gemma, "cpu")
    right = [tokens_of(model, tokenizer, PROMPTS[:3], strategy) for strategy in (decoding.DoLa(), None)]
    assert right[0] != right[1]
    llm = load_llm(gemma, layers="auto", **SMALL)
    assert [served(llm, PROMPTS[:3], sampling_params(name, max_tokens=NEW)) for name in ("dola", None)] == right


def test_an_exported_folder_is_served_with_its_strategy(tmp_path):
    exported = decoding.export("expert", decoding.DoLa(layers=[1, 3], alpha=0.2), tmp_path / "dola", device="cpu")
    engine = engine_of(str(exported))
    assert engine.additional_config["contrast"] == {"strategy": {"strategy": "dola", "layers": [1, 3], "alpha": 0.2}}
    assert engine.settings.readers.layers == (1, 3)
    exported = decoding.export("expert", "contrastive-decoding:amateur=amateur", tmp_path / "cd", device="cpu")
    engine = engine_of(str(exported))
    assert engine.settings.readers.amateur == str(exported / "amateur")
    assert engine.settings.default.name == "contrastive-decoding"
    exported = decoding.export("expert", decoding.FSD(), tmp_path / "fsd", device="cpu")
    with pytest.raises(decoding.OptionError, match=r"strategy='fsd'; did you mean sled\? expected one of dola,"):
        engine_of(str(exported))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [4]}, "layers=[4]: the model has 4 layers"),
        ({"strategy": "dola:alpha=3"}, "dola: alpha=3: must be a number from 0 to 1"),
        ({"strategy": "contrastive-decoding"}, "contrastive-decoding: this engine has no amateur; start it with one"),
        ({"amateur": "nowhere/to/be"}, "nowhere/to/be: there is no such folder"),
        ({"amateur": "induced", "enforce_eager": False}, "an adapter: groups of requests need enforce_eager"),
        ({"amateur": "expert", "strategy": "lol:amateur=amateur"}, "the strategy names another, 'amateur'"),
        ({"additional_config": {"contrast": {}}}, "is made of amateur, layers and strategy"),
        ({"hf_overrides": lambda config: config}, "hf_overrides: must be a dictionary"),
        ({"hf_overrides": {"architectures": ["BertForMaskedLM"]}}, "BertForMaskedLM is no causal language model"),
        (
            {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"},
            "pipeline parallelism: strategies need all layers on each device",
        ),
    ],
)
def test_what_is_wrong_is_one_line_of_this_library(options, message):
    with pytest.raises(decoding.errors.DecodingError) as raised:
        load_llm("expert", **(SMALL | options))
    assert message in str(raised.value)


def test_an_amateur_of_other_tokens_is_refused_before_weights_load(tmp_path):
    folder = shutil.copytree(miniature.folder("amateur"), tmp_path / "other")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content), encoding="utf-8")
    (folder / "model.safetensors").unlink()
    with pytest.raises(decoding.ModelError, match="amateur: its tokenizer is another one: token"):
        load_llm("expert", amateur=str(folder), **SMALL)
