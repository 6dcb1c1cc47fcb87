"""Other models than the embedded ones as they are: other end tokens, vocabularies, sizes and heads."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from vllm_engines import (
    AMATEUR,
    CASES,
    EXPERT,
    PROMPTS,
    Case,
    continuation,
    engine,
    loaded,
    new_tokens,
    one_of_a_kind,
    prompt_ids,
    read_together,
    sampling,
)

import decoding

SHARED = Path(__file__).resolve().parents[4] / "shared" / "models"
CACHE = Path(os.environ.get("DECODING_CACHE", Path.home() / ".cache" / "decoding")) / "models"
STORIES = read_together(["Once upon a time", "The little dog", "Lily went to the park. She saw", "Tom and his mom"])


def changed_copy(folder: str | Path, into: Path, **config: Any) -> Path:
    """A copy of a model's folder with other values in its configuration."""
    shutil.copytree(folder, into)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((into / name).read_text(encoding="utf-8"))
        values.update({key: value for key, value in config.items() if name == "config.json" or key == "eos_token_id"})
        (into / name).write_text(json.dumps(values), encoding="utf-8")
    return into


@pytest.mark.quick
def test_the_end_of_text(tmp_path: Path) -> None:
    """An end token ends a request, whatever its strategy; with ignore_eos its text goes on."""
    tokens = 40
    cases = {"none": CASES["none"], **one_of_a_kind()}
    end = continuation(CASES["lol"].strategy, PROMPTS[0], tokens, alone=True)[9]
    # The embedded expert has no end of texts: here it is a token of this one.
    folder = str(changed_copy(EXPERT, tmp_path / "expert", eos_token_id=end))
    right = {name: continuation(case.strategy, PROMPTS[0], tokens, folder, alone=True) for name, case in cases.items()}
    unending = {name: continuation(case.strategy, PROMPTS[0], tokens, alone=True) for name, case in cases.items()}
    assert right["lol"][-1] == end != unending["lol"][-1]
    with engine(folder) as llm:
        outputs = llm.generate([PROMPTS[0]] * len(cases), [sampling(c, tokens) for c in cases.values()], use_tqdm=False)
        samples = [output.outputs[0] for output in outputs]
        assert dict(zip(cases, (list(sample.token_ids) for sample in samples), strict=True)) == right
        for ids, sample in zip(right.values(), samples, strict=True):
            assert sample.finish_reason == ("stop" if ids[-1] == end else "length")
        params = [sampling(case, tokens, ignore_eos=True) for case in cases.values()]
        assert dict(zip(cases, new_tokens(llm, [PROMPTS[0]] * len(cases), params), strict=True)) == unending


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_an_amateur_of_fewer_rows(tmp_path: Path, runner: str) -> None:
    """Tokens that the amateur does not have are not chosen, as in the library."""
    rows = 1900
    folder = changed_copy(AMATEUR, tmp_path / "amateur", vocab_size=rows)
    weights = load_file(folder / "model.safetensors")
    cut = {name: weight[:rows].clone() if weight.shape[0] == 2048 else weight for name, weight in weights.items()}
    save_file(cut, folder / "model.safetensors", {"format": "pt"})
    given = {"amateur": str(folder), "tokenizer": loaded(EXPERT)[1]}  # without it the library goes by the sizes
    strategies = {
        "cd": decoding.ContrastiveDecoding(**given),
        "cd-log-probs": decoding.ContrastiveDecoding(form="log_probs", beta=1.0, amateur_temperature=0.5, **given),
        "lol": decoding.LOL(lower_layers=[1, 3], **given),
        "lol-entropy": decoding.LOL(lower_layers=[1, 3], fusion="entropy", **given),
        "dola": decoding.DoLa(),
    }
    cases = {name: Case(CASES[name].fields, strategy) for name, strategy in strategies.items()}
    # Beside the amateur a second prompt, in one request.
    terms = [("expert", 1.5), (str(folder), -0.25), (decoding.OtherPrompt("Once upon a time"), -0.25)]
    cases["weighted"] = Case(
        {"strategy": "weighted-contrast", "terms": "1.5*expert - 0.25*amateur - 0.25*instead:Once upon a time"},
        decoding.WeightedContrast(terms, tokenizer=given["tokenizer"]),
    )
    more = {"plausible": "reader 2", "mask": "p-less", "weight_by": "entropy"}
    cases["anchored"] = Case(
        {"strategy": "weighted-contrast", "terms": "1.5*expert - 0.5*amateur", **more},
        decoding.WeightedContrast([("expert", 1.5), (str(folder), -0.5)], tokenizer=given["tokenizer"], **more),
    )
    known = [prompt for prompt in PROMPTS if max(prompt_ids(prompt)) < rows]
    prompts, tokens = (known[:6], 24) if runner == "V1" else (known[:2], 10)
    if runner == "V2":  # whose kernels take long here
        cases = {name: cases[name] for name in ("cd", "lol", "weighted")}
    with engine(amateur=str(folder), runner=runner, contrast={"second_prompts": True}) as llm:
        for name, case in cases.items():
            right = [continuation(case.strategy, prompt, tokens, alone=True) for prompt in prompts]
            assert new_tokens(llm, prompts, sampling(case, tokens)) == right, name
        # A plain request has all tokens, in its prompt and behind it, and the engine lives on.
        others = [prompt for prompt in PROMPTS if prompt not in known][:3]
        right = [continuation(None, prompt, tokens) for prompt in others]
        assert max(map(max, right)) >= rows
        assert new_tokens(llm, others, sampling(None, tokens)) == right
        # A contrast of such a prompt ends with an error, and the others go on.
        for case in (cases["cd"], cases["lol"], cases["weighted"]):
            params = [sampling(None, tokens), sampling(case, tokens), sampling(CASES["dola"], tokens)]
            outputs = [output.outputs[0] for output in llm.generate([others[0]] * 3, params, use_tqdm=False)]
            assert [output.finish_reason for output in outputs] == ["length", "error", "length"]
            assert [list(output.token_ids) for output in outputs[:2]] == [right[0], []]
            alone = llm.generate(others[:1], sampling(case, tokens), use_tqdm=False)[0].outputs[0]
            assert (alone.finish_reason, list(alone.token_ids)) == ("error", [])
        whole = [continuation(CASES["cd"].strategy, prompt, tokens) for prompt in prompts]
        assert whole != [
            continuation(strategies["cd"], prompt, tokens, alone=True) for prompt in prompts
        ]  # else nothing is shown


def with_wider_heads(folder: Path, into: Path) -> Path:
    """A copy of a llama whose heads have twice the dimensions, the new ones zero: the same function.

    The frequencies of rotary embeddings of 2·d dimensions are those of d dimensions and one between each two of them.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = config["head_dim"]
    half = torch.arange(size // 2)
    places = torch.cat([2 * half, size + 2 * half])
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            heads = weight.view(-1, size, weight.shape[-1])
            wide = weight.new_zeros(len(heads), 2 * size, weight.shape[-1])
            # Attention divides by the root of the dimensions.
            wide[:, places] = heads * (math.sqrt(2.0) if "q_proj" in name else 1.0)
            weights[name] = wide.flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            heads = weight.view(weight.shape[0], -1, size)
            wide = weight.new_zeros(weight.shape[0], heads.shape[1], 2 * size)
            wide[..., places] = heads
            weights[name] = wide.flatten(1)
    changed_copy(folder, into, head_dim=2 * size)
    save_file(weights, into / "model.safetensors", {"format": "pt"})
    return into


@pytest.mark.skipif(not (SHARED / "stories3M-amateur").exists(), reason="the stories models are not here")
@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_models_of_stories(tmp_path: Path, runner: str) -> None:
    """Six layers with grouped heads, and an amateur of two; texts end by themselves."""
    folder = str(SHARED / "stories3M")
    # vLLM's attention on a CPU has no heads of 16 dimensions.
    amateur = str(with_wider_heads(SHARED / "stories3M-amateur", tmp_path / "amateur"))
    asked: list[tuple[dict[str, Any] | None, Any]] = [
        (None, None),
        ({"strategy": "dola", "final_norm": True}, decoding.DoLa(final_norm=True)),
        ({"strategy": "dola", "layers": "low"}, decoding.DoLa(layers="low")),
        ({"strategy": "contrastive-decoding"}, decoding.ContrastiveDecoding(amateur=amateur)),
        ({"strategy": "lol", "lower_layers": [0.5]}, decoding.LOL(amateur=amateur, lower_layers=[0.5])),
    ]
    prompts, tokens = (STORIES, 200) if runner == "V1" else (STORIES[:2], 10)
    ended = 0
    with engine(folder, amateur, {"layers": [0, 1, 2, 3, 4, 5]}, runner) as llm:
        for fields, strategy in asked:
            right = [continuation(strategy, prompt, tokens, folder) for prompt in prompts]
            got = new_tokens(llm, prompts, sampling(None, tokens, extra_args=fields))
            assert got == right, fields
            ended += sum(ids[-1] == 1 for ids in got)  # their beginning token ends a story
    assert ended or runner == "V2"


@pytest.mark.skipif(
    not (CACHE / "smollm2-135m").exists(), reason="smollm2-135m is not here: decoding fetch smollm2-135m brings it"
)
def test_a_pretrained_model() -> None:
    """DoLa on SmolLM2, with 30 layers."""
    folder, tokens = str(CACHE / "smollm2-135m"), 16
    prompts = read_together(["The capital of France is", "Water boils at", "Once upon a time there was"])
    layers = [*range(0, 15, 2), *range(15, 30, 2)]
    with engine(folder, None, {"layers": layers}, max_model_len=128) as llm:
        for fields in ({}, {"final_norm": True}, {"layers": "low"}, {"layers": [14], "alpha": 0.3}):
            strategy = decoding.DoLa(**fields)
            right = [continuation(strategy, prompt, tokens, folder) for prompt in prompts]
            got = new_tokens(llm, prompts, sampling(None, tokens, extra_args={"strategy": "dola", **fields}))
            assert got == right, fields
