"""Token ids that transformers 4.55.4 itself produced (tests/recorded/ has the script), chosen again."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from search_oracle import contrastive_search_tokens
from transformers import AutoModelForCausalLM

import decoding
from decoding.evals import miniature
from decoding.models.releases import RELEASES, folder_of

ROOT = Path(__file__).parents[3]
RECORDED = json.loads((ROOT / "tests/recorded/contrastive_search_4_55_4.json").read_text())["cases"]


@functools.cache
def _model(name: str) -> Any:
    if name in RELEASES:
        if not folder_of(name).is_dir():
            pytest.skip(f"the model {name} is not in the cache {folder_of(name).parent}: decoding fetch {name}")
        return AutoModelForCausalLM.from_pretrained(folder_of(name), dtype=torch.float32).eval()
    folder = (
        miniature.folder(name.split("/")[1]) if name.startswith("miniature/") else ROOT.parent / "shared/models" / name
    )
    if not folder.is_dir():
        pytest.skip(f"the model {name} lies outside the repository and is not here")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _id(case: dict[str, Any]) -> str:
    method = f"alpha{case['penalty_alpha']}-k{case['top_k']}" if "top_k" in case else "greedy"
    return f"{case['model']}-B{len(case['input_ids'])}-T{len(case['input_ids'][0])}-{method}"


def _steps(case: dict[str, Any]) -> int:
    """All tokens with transformers' own k and greedily; half of them with other penalties, which no length changes."""
    return case["max_new_tokens"] if case.get("top_k", 4) == 4 else case["max_new_tokens"] // 2


def _chosen(case: dict[str, Any], model: Any) -> list[list[int]]:
    ids = torch.tensor(case["input_ids"])
    settings = {name: case[name] for name in ("penalty_alpha", "top_k") if name in case}
    tokens = decoding.generate(
        model, ids, attention_mask=torch.tensor(case["attention_mask"]), max_new_tokens=_steps(case), do_sample=False,
        **settings,
    )  # fmt: skip
    return tokens[:, ids.shape[1] :].tolist()


def _recorded(case: dict[str, Any]) -> list[list[int]]:
    return [tokens[: _steps(case)] for tokens in case["tokens"]]


@pytest.mark.parametrize("case", [case for case in RECORDED if len(case["input_ids"]) == 1], ids=_id)
def test_one_prompt_gives_the_recorded_tokens(case: dict[str, Any]) -> None:
    assert _chosen(case, _model(case["model"])) == _recorded(case)


@pytest.mark.parametrize("case", [case for case in RECORDED if len(case["input_ids"]) > 1], ids=_id)
def test_a_left_padded_batch_gives_the_recorded_tokens_where_those_are_right(case: dict[str, Any]) -> None:
    """4.55.4 errs on some padded rows; every row that differs from its tokens must be that of full recomputation."""
    model = _model(case["model"])
    for row, (tokens, recorded) in enumerate(zip(_chosen(case, model), _recorded(case), strict=True)):
        if tokens != recorded:
            prompt = [t for t, keep in zip(case["input_ids"][row], case["attention_mask"][row], strict=True) if keep]
            right = contrastive_search_tokens(
                model, prompt, case["penalty_alpha"], case["top_k"], _text_length(tokens, model), expected=tokens
            )
            assert tokens[: len(right)] == right
            assert recorded[: len(right)] != right


def _text_length(tokens: list[int], model: Any) -> int:
    """Number of tokens before the padding of a finished row."""
    eos = model.generation_config.eos_token_id
    return tokens.index(eos) + 1 if eos in tokens else len(tokens)


DOLA = json.loads((ROOT / "tests/recorded/dola_4_55_4.json").read_text())["cases"]


def _dola_id(case: dict[str, Any]) -> str:
    penalty = f"-penalty{case['repetition_penalty']}" if "repetition_penalty" in case else ""
    return f"{case['model']}-B{len(case['input_ids'])}-T{len(case['input_ids'][0])}-{case['dola_layers']}{penalty}"


@pytest.mark.parametrize("case", DOLA, ids=_dola_id)
def test_dola_by_its_old_arguments_gives_the_recorded_tokens(case: dict[str, Any]) -> None:
    ids = torch.tensor(case["input_ids"])
    options = {name: case[name] for name in ("dola_layers", "repetition_penalty", "max_new_tokens") if name in case}
    tokens = decoding.generate(
        _model(case["model"]), ids, attention_mask=torch.tensor(case["attention_mask"]), do_sample=False, **options
    )
    assert tokens[:, ids.shape[1] :].tolist() == case["tokens"]


REAL = json.loads((ROOT / "tests/recorded/real_models_4_55_4.json").read_text())["cases"]


def _real_id(case: dict[str, Any]) -> str:
    return _dola_id(case) if "dola_layers" in case else _id(case)


@pytest.mark.parametrize("case", REAL, ids=_real_id)
def test_a_real_model_gives_the_recorded_tokens(case: dict[str, Any]) -> None:
    ids = torch.tensor(case["input_ids"])
    names = ("penalty_alpha", "top_k", "dola_layers", "repetition_penalty", "max_new_tokens")
    tokens = decoding.generate(
        _model(case["model"]), ids, attention_mask=torch.tensor(case["attention_mask"]), do_sample=False,
        **{name: case[name] for name in names if name in case},
    )  # fmt: skip
    assert tokens[:, ids.shape[1] :].tolist() == case["tokens"]
