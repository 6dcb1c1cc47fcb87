"""Token ids that transformers 4.55.4 itself produced (tests/recorded/ has the script), chosen again."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
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
    """All 48 tokens of the embedded model with transformers' own penalty and k; 12 elsewhere."""
    return case["max_new_tokens"] if (case["model"], case.get("top_k")) == ("miniature/expert", 4) else 12


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


def _settings(case: dict[str, Any]) -> tuple[Any, ...]:
    return case["model"], case.get("penalty_alpha"), case.get("top_k")


# The embedded model, which is always here, with every penalty and k, and without; each other one with transformers' own
# and one that no other has.
TOGETHER = {
    "miniature/expert": (None, (0.6, 4), (0.6, 8), (0.3, 5), (0.9, 3)),
    "stories3M": ((0.6, 4), (0.6, 8)),
    "stories3M-amateur": ((0.6, 4), (0.9, 3)),
    "stories260K": ((0.6, 4), (0.3, 5)),
}
BATCHES = [
    case
    for case in RECORDED
    if len(case["input_ids"]) > 1
    and ((case["penalty_alpha"], case["top_k"]) if "top_k" in case else None) in TOGETHER[case["model"]]
]


@pytest.mark.parametrize("case", BATCHES, ids=_id)
def test_prompts_together_and_one_alone_give_the_recorded_tokens(case: dict[str, Any]) -> None:
    """Each row what its prompt was recorded to give alone: 4.55.4 errs on some padded rows."""
    model = _model(case["model"])
    alone = [one for one in RECORDED if len(one["input_ids"]) == 1 and _settings(one) == _settings(case)]
    prompts = zip(case["input_ids"], case["attention_mask"], strict=True)
    assert [one["input_ids"][0] for one in alone] == [row[mask.index(1) :] for row, mask in prompts]
    for one, tokens in zip(alone, _chosen(case, model), strict=True):
        (recorded,) = _recorded(one)
        assert tokens[: len(recorded)] == recorded
        assert set(tokens[len(recorded) :]) <= {model.generation_config.pad_token_id}
    if case.get("top_k", 4) != 4:
        return  # a row alone has another path than rows with padding whatever the penalty and the candidates are
    longest = max(alone, key=lambda one: len(one["input_ids"][0]))
    assert _chosen(longest, model) == _recorded(longest)


DOLA = json.loads((ROOT / "tests/recorded/dola_4_55_4.json").read_text())["cases"]


def _dola_id(case: dict[str, Any]) -> str:
    penalty = f"-penalty{case['repetition_penalty']}" if "repetition_penalty" in case else ""
    return f"{case['model']}-B{len(case['input_ids'])}-T{len(case['input_ids'][0])}-{case['dola_layers']}{penalty}"


def _dola_cases() -> list[dict[str, Any]]:
    """Every batch, and each of the four settings of a model with another one of its four prompts alone."""
    batches = [case for case in DOLA if len(case["input_ids"]) > 1]
    alone = [case for case in DOLA if len(case["input_ids"]) == 1]
    assert len(alone) == 4 * len(batches)  # of a model four settings of the first prompt, of the second, ...
    return [*batches, *(case for place, case in enumerate(alone) if place // 4 % 4 == place % 4)]


@pytest.mark.parametrize("case", _dola_cases(), ids=_dola_id)
def test_dola_by_its_old_arguments_gives_the_recorded_tokens(case: dict[str, Any]) -> None:
    """A third of the tokens; a batch chooses one layer for all rows."""
    ids = torch.tensor(case["input_ids"])
    options = {name: case[name] for name in ("dola_layers", "repetition_penalty") if name in case}
    steps = case["max_new_tokens"] // 3
    tokens = decoding.generate(
        _model(case["model"]), ids, attention_mask=torch.tensor(case["attention_mask"]), max_new_tokens=steps,
        do_sample=False, **options,
    )  # fmt: skip
    assert tokens[:, ids.shape[1] :].tolist() == [recorded[:steps] for recorded in case["tokens"]]


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
