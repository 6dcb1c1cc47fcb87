"""What ``--engine vllm`` asks for each strategy, and what it refuses; tests/serving/vllm runs it."""

from __future__ import annotations

import importlib.util

import pytest

from decoding import OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.text_generation import generate_texts
from decoding.evals.engine.vllm_texts import asked_of_vllm, vllm_texts
from decoding.strategies.registry import parse_strategy


@pytest.mark.parametrize(
    ("spec", "options", "fields", "amateur"),
    [
        ("greedy", {"temperature": 0.0}, {"strategy": "none"}, None),
        (
            "sampling:temperature=0.5,top_p=0.9",
            {"temperature": 0.5, "top_k": 0, "top_p": 0.9},
            {"strategy": "none"},
            None,
        ),
        (
            "contrastive-search:top_k=5",
            {"temperature": 0.0},
            {"strategy": "contrastive-search", "penalty_alpha": 0.6, "top_k": 5},
            None,
        ),
        ("top-k:top_k=7", {"temperature": 1.0, "top_k": 7, "top_p": 1.0}, {"strategy": "none"}, None),
        (
            "dola:layers=2,alpha=0.2",
            {"temperature": 0.0},
            {"strategy": "dola", "alpha": 0.2, "layers": [2], "divergence": "dola", "final_norm": False},
            None,
        ),
        (
            "contrastive-decoding:amateur=amateur,beta=1",
            {"temperature": 0.0},
            {
                "strategy": "contrastive-decoding", "alpha": 0.1, "beta": 1.0, "form": "logits",
                "amateur_temperature": 1.0,
            },
            "amateur",
        ),
    ],
)  # fmt: skip
def test_a_strategy_becomes_a_request(spec, options, fields, amateur):
    assert asked_of_vllm(parse_strategy(spec)) == (options, fields, amateur)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("beam", "--engine vllm does not have beam; expected greedy, sampling, dola, "),
        ("guidance", "--engine vllm does not have guidance"),
        ("typical", "typical has no parameter typical_p there; leave out typical_p=0.95"),
        ("dola:per_row=false", "dola has no parameter per_row there; leave out per_row=False"),
        ("lol:amateur=amateur,lower_layers=0.5,guidance=w1", "lol has no parameter guidance there"),
    ],
)
def test_a_strategy_that_vllm_does_not_have_is_refused(spec, message, capfd):
    with pytest.raises(OptionError, match=message):
        asked_of_vllm(parse_strategy(spec))
    given = ["eval", "truthfulqa", "--miniature", "--generation", "--engine", "vllm", "--strategy", spec]
    assert main(given) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "vllm"], "--engine vllm generates texts, and this evaluation reads scores: leave it out"),
        (["--generation", "--engine-option", "dtype=float32"], "--engine-option: expected with --engine vllm"),
        (["--engine", "vlm"], "--engine 'vlm'; did you mean vllm? expected one of local, ray, vllm"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, capfd):
    assert main(["eval", "truthfulqa", "--miniature", "--strategy", "greedy", *options]) == 2
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"decoding: {message}\n")


class Recorded:
    """Answers prompts with given tokens, in place of an engine."""

    identity = {"name": "vllm", "version": "0"}  # noqa: RUF012

    def __init__(self, tokens):
        self.given = tokens

    def tokens(self, spec, prompts, seeds, max_new_tokens, stop):
        return [self.given for _ in prompts]


def test_texts_of_an_engine_end_before_a_stop_string():
    model, tokenizer = miniature.load("expert")
    new = tokenizer(" walked home. Q: What", add_special_tokens=False)["input_ids"]
    prompt = tokenizer("Tom")["input_ids"]
    given = {"max_new_tokens": 12, "stop": ("Q:",), "engine": Recorded(new)}
    (made,) = generate_texts(parse_strategy("greedy"), model, tokenizer, [prompt], [0], **given)
    assert made.text == " walked home. "
    assert tokenizer.decode(new[: made.tokens]).endswith("Q:")
    with pytest.raises(OptionError, match="does not take --generation-config repetition_penalty"):
        generate_texts(
            parse_strategy("greedy"), model, tokenizer, [prompt], [0], generation_config={"repetition_penalty": 1.2},
            **given,
        )  # fmt: skip


def test_samples_of_an_engine_are_kept_apart_from_those_of_the_model():
    model, tokenizer = miniature.load("expert")

    def hash_with(**engine):
        return configured([parse_strategy("greedy")], model, tokenizer, "expert", task={}, **engine)[0].hash

    hashes = [hash_with(), hash_with(engine=None)]
    hashes += [hash_with(engine={"name": "vllm", "version": version}) for version in ("0.32.0", "0.33.0")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_an_engine_reads_one_amateur(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    model, _ = miniature.load("expert")
    specs = [parse_strategy(f"contrastive-decoding:amateur={name}") for name in ("amateur", "expert")]
    with pytest.raises(OptionError, match="reads one amateur, and the strategies name amateur, expert"):
        vllm_texts("expert", specs, model)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="run it without torchrun"):
        vllm_texts("expert", specs[:1], model)
