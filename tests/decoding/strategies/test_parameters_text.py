"""Parameters of strategies as text and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import tiny_model

from decoding import LOL, ContextAware, ContrastiveDecoding, DoLa, OptionError, Prompt
from decoding.evals.engine.configurations import digest
from decoding.strategies.parameters_text import as_json, as_results, as_text
from decoding.strategies.registry import StrategySpec, parse_strategy

# Recorded before the module was written: samples of evaluations are kept under hashes of these.
DIGESTS = {
    "greedy": "44136fa355b3678a",
    "beam": "62977340592618c9",
    "sampling:top_k=3": "62e5fb243e498080",
    "contrastive-search:max_history=9": "46eb3ba312d3bc46",
    "contrastive-decoding:amateur=amateur": "2c82617d5a601b25",
    "contrastive-decoding:amateur=induced,form=log_probs,beta=1.0,alpha=0.0": "e66b153331a15ecc",
    "dola": "bad51e11c452991b",
    "dola:layers=1,3": "906eb8a956b65e1a",
    "context-aware:context=From the encyclopaedia.\n\n": "70ccb45d8af32303",
    "lol:amateur=induced,lower_layers=0.5,0.75": "9b0907b4286a078e",
}


def _digest(spec: StrategySpec) -> str:
    return digest({name: as_results(value) for name, value in spec.parameters.items()})


@pytest.mark.parametrize("text", DIGESTS, ids=repr)
def test_hashes_of_parameters_stay_what_they_were(text: str) -> None:
    # Texts are stripped where they are parsed; this one is not.
    spec = parse_strategy(text)
    if spec.name == "context-aware":
        spec = StrategySpec(spec.name, ContextAware(text.partition("=")[2]))
    assert _digest(spec) == DIGESTS[text]


@pytest.mark.parametrize(
    ("strategy", "right"),
    [
        (lambda: ContrastiveDecoding(tiny_model("llama")), "b948cd0b188eae6e"),
        (lambda: ContrastiveDecoding(Prompt("Lie.")), "e2bb21251b8fe9e1"),
        (lambda: ContextAware(torch.tensor([5, 6])), "e025a3f43c51ae7c"),
        (lambda: ContextAware([[5], [6, 7]]), "b1cf8a81d6fc268d"),
        (lambda: LOL(Prompt([1, 2]), [0.5, 2], guidance={"en": "x", "de": [4, 5]}), "dd61b066dbba2533"),
        (lambda: DoLa([3, 1]), "906eb8a956b65e1a"),
    ],
    ids=["model", "prompt", "tensor", "rows", "mapping", "layers"],
)
def test_hashes_of_what_is_no_text_stay_what_they_were(strategy: Any, right: str) -> None:
    assert _digest(StrategySpec("any", strategy())) == right


def test_a_parameter_that_was_added_later_has_a_hash_of_its_own_once_it_is_given() -> None:
    specs = [
        parse_strategy(f"context-aware:context=sea{rest}") for rest in ("", ",placement=none", ",placement=system")
    ]
    assert ["placement" in spec.parameters for spec in specs] == [False, False, True]
    assert len({_digest(spec) for spec in specs}) == 2
    assert parse_strategy(specs[2].spec) == specs[2]


def test_a_file_holds_values_as_they_are_read_again() -> None:
    value = {"de": [4, 5.5, True, None], "path": Path("a/b"), "rows": torch.tensor([[1, 2]]), "lie": Prompt("Lie.")}
    written = as_json("guidance", value)
    assert json.loads(json.dumps(written)) == written
    assert written == {"de": [4, 5.5, True, None], "path": "a/b", "rows": [[1, 2]], "lie": {"text": "Lie."}}
    with pytest.raises(OptionError, match=r"amateur=.*cannot be written to a file; must be text, numbers or lists"):
        as_json("amateur", tiny_model("llama"))


def test_text_is_what_a_command_line_has() -> None:
    assert [as_text(value) for value in ((1, 0.5), [3], 0.6, True, "a b", Prompt("lie"))] == [
        "1,0.5", "3", "0.6", "True", "a b", "prompt:lie",
    ]  # fmt: skip
    assert as_text(tiny_model("llama")) == "LlamaForCausalLM"
