"""Rows that draw from seeds of their own, against transformers' own sampling of one row and a recomputation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCAB, left_padded, random_ids, random_prompt, tiny_model
from torch import Tensor
from transformers import LogitsProcessorList, TextStreamer
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

import decoding
from decoding import ContrastiveSearch, DoLa, OptionError
from decoding.evals import miniature
from decoding.generation.draws import draw

LENGTHS = (9, 4, 12, 1, 7)
NEW = 7
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "nucleus": {"top_k": 0, "top_p": 0.9},
    "typical": {"top_k": 0, "typical_p": 0.8, "temperature": 1.3},
    "several": {"top_k": 40, "top_p": 0.95, "min_p": 0.01, "temperature": 1.5},
    "penalised": {"top_k": 50, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "eta_cutoff": 1e-3},
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


def of_transformers(model: Any, inputs: dict[str, Tensor], seeds: list[int], **options: Any) -> list[list[int]]:
    """The new tokens of each row alone, by transformers' own loop from ``torch.manual_seed``, up to its end."""
    texts = []
    for row, seed in enumerate(seeds):
        keep = inputs["attention_mask"][row].bool()
        alone = {name: values[row : row + 1, keep] for name, values in inputs.items()}
        torch.manual_seed(seed)
        tokens = model.generate(**alone, do_sample=True, max_new_tokens=NEW, **options)
        texts.append(new_tokens(model, tokens, alone)[0])
    return texts


def new_tokens(model: Any, tokens: Tensor, inputs: dict[str, Tensor]) -> list[list[int]]:
    """The new tokens of each row, up to its end."""
    start, end = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1], 2
    rows = tokens[:, start:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


@pytest.mark.parametrize(
    ("name", "rows"), [("llama", 2), ("llama", 5), ("gpt2", 3), ("mistral-sliding", 3), ("mamba", 3), ("t5", 3)]
)
def test_a_row_draws_in_any_batch_what_it_draws_alone(name: str, rows: int) -> None:
    model, options = tiny_model(name), OPTIONS["several"]
    model.generation_config.eos_token_id = 2  # so that some rows end before others
    inputs = left_padded([random_prompt(length, seed) for seed, length in enumerate(LENGTHS[:rows])])
    seeds = [40 + row for row in range(rows)]
    tokens = decoding.generate(model, **inputs, do_sample=True, seeds=seeds, max_new_tokens=NEW, **options)
    assert new_tokens(model, tokens, inputs) == of_transformers(model, inputs, seeds, **options)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_sampler_and_processor_acts_as_in_plain_generate(llama: Any, options: dict[str, Any]) -> None:
    inputs, seeds = left_padded([random_prompt(length, length) for length in LENGTHS[:3]]), [1, 2**64 - 1, 1]
    tokens = decoding.generate(llama, **inputs, do_sample=True, seeds=seeds, max_new_tokens=NEW, **options)
    texts = new_tokens(llama, tokens, inputs)
    assert texts == of_transformers(llama, inputs, seeds, **options)
    assert texts[0] != texts[2]


@torch.no_grad()
def test_draws_are_those_of_a_recomputation() -> None:
    """Against the embedded expert's own logits of the whole text at each step, in transformers' own samplers."""
    model, tokenizer = miniature.load("expert", dtype=torch.float32)
    model.generation_config.eos_token_id = None
    prompts = ["The old clockmaker", "In the town of Varn there lives", "Tom"]
    encoding = tokenizer(prompts, return_tensors="pt", padding=True)
    inputs = {name: encoding[name] for name in ("input_ids", "attention_mask")}
    samplers = LogitsProcessorList(
        [
            TemperatureLogitsWarper(1.2),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.98),
            TypicalLogitsWarper(0.97),
            MinPLogitsWarper(0.001),
        ]
    )
    tokens = decoding.generate(
        model, **inputs, do_sample=True, seeds=[0, 1, 2], max_new_tokens=NEW,
        temperature=1.2, top_k=60, top_p=0.98, typical_p=0.97, min_p=0.001,
    )  # fmt: skip
    for row, prompt in enumerate(prompts):
        text, generator = tokenizer(prompt, return_tensors="pt")["input_ids"], torch.Generator().manual_seed(row)
        for _ in range(NEW):
            warped = samplers(text, model(text, use_cache=False).logits[:, -1].float())
            text = torch.cat([text, torch.multinomial(warped.softmax(-1), 1, generator=generator)], dim=1)
        assert tokens[row, -NEW:].tolist() == text[0, -NEW:].tolist()


# --- the draw -------------------------------------------------------------------------------------------------------

PROBABILITIES = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.03, 0.01, 0.0])
CHI_SQUARE = 22.46  # of 6 degrees of freedom, above it in one of a thousand


def chi_square(tokens: Tensor) -> float:
    expected = PROBABILITIES[:-1].double() * len(tokens)
    counts = tokens.bincount(minlength=8).double()
    assert counts[-1] == 0
    return float(((counts[:-1] - expected).square() / expected).sum())


def test_draws_of_a_row_and_across_rows_have_the_softmaxs_distribution() -> None:
    scores = PROBABILITIES.log()[None] + 3.0
    one = [torch.Generator().manual_seed(5)]
    in_turn = torch.cat([draw(scores, one) for _ in range(5_000)])
    assert chi_square(in_turn) < CHI_SQUARE
    # Independent: pairs of successive draws are as often the same token as two draws are.
    same = (in_turn[::2] == in_turn[1::2]).double().mean()
    assert abs(same - PROBABILITIES.square().sum()) < 4 * 0.5 / 50  # four standard deviations of 2,500 pairs
    # The first draws of 5,000 rows, whose seeds are neighbours.
    across = torch.cat(
        [draw(scores.expand(500, -1), [torch.Generator().manual_seed(i + j) for j in range(500)])
         for i in range(0, 5_000, 500)]
    )  # fmt: skip
    assert chi_square(across) < CHI_SQUARE


@pytest.mark.parametrize("seeded", [True, False])
def test_rows_with_nothing_to_draw_from_are_told_and_the_others_drawn(seeded: bool) -> None:
    scores = torch.full((5, 4), -torch.inf)
    scores[0, 2] = 1.0  # the only one
    scores[2] = torch.tensor([0.0, torch.nan, 0.0, 0.0])
    scores[3] = torch.tensor([0.0, torch.inf, 0.0, 0.0])
    scores[4, [1, 3]] = -7.0  # a tie
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        generators = [torch.Generator().manual_seed(seed) for _ in range(5)] if seeded else None
        tokens = draw(scores, generators).tolist()
        assert tokens[:4] == [2, -1, -1, -1]
        seen.add(tokens[4])
    assert seen == {1, 3}


def test_the_error_of_a_row_without_a_token_names_it(llama: Any) -> None:
    def forbid(input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.index_fill(0, torch.tensor([1]), -torch.inf)

    with pytest.raises(OptionError, match=r"no token is left to choose at step 0 \(row 1\)"):
        decoding.generate(
            llama, random_ids(2, 4), do_sample=True, seeds=[1, 2], max_new_tokens=3,
            logits_processor=LogitsProcessorList([forbid]),
        )  # fmt: skip


# --- with the rest of generate --------------------------------------------------------------------------------------


def test_torchs_own_generator_is_neither_read_nor_moved(llama: Any) -> None:
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        texts.append(decoding.generate(llama, random_ids(2, 6), do_sample=True, seeds=[5, 6], max_new_tokens=NEW))
        assert torch.get_rng_state().equal(before)
    assert texts[0].tolist() == texts[1].tolist()


def test_both_ways_in_captured_steps_and_streamers_draw_the_same(
    llama: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = random_ids(1, 6)
    options = {"do_sample": True, "temperature": 3.0, "seeds": [9], "max_new_tokens": NEW}
    for strategy in (ContrastiveSearch(0.3, 8), DoLa([1, 2])):
        facade = decoding.generate(llama, ids, strategy=strategy, **options)
        assert llama.generate(ids, custom_generate=strategy, **options).tolist() == facade.tolist()
    sampled = decoding.generate(llama, ids, **options)
    assert decoding.generate(llama, ids, compile=True, **options).tolist() == sampled.tolist()

    class Tokens:
        def decode(self, tokens: list[int], **_: Any) -> str:
            return "".join(f"w{token} " for token in tokens)

    decoding.generate(llama, ids, streamer=TextStreamer(Tokens()), **options)  # type: ignore[arg-type]
    assert capsys.readouterr().out.split() == [f"w{token}" for token in sampled[0].tolist()]


def test_each_returned_sequence_has_its_own_seed(llama: Any) -> None:
    ids = random_ids(2, 6)
    options = {"do_sample": True, "max_new_tokens": NEW}
    together = decoding.generate(llama, ids, num_return_sequences=2, seeds=[1, 2, 3, 4], **options)
    apart = decoding.generate(llama, ids.repeat_interleave(2, 0), seeds=[1, 2, 3, 4], **options)
    assert together.tolist() == apart.tolist()


@pytest.mark.parametrize("seeds", [np.array([3, 4]), torch.tensor([3, 4]), (3, np.int64(4))], ids=type)
def test_seeds_may_be_numbers_of_any_library(llama: Any, seeds: Any) -> None:
    options = {"do_sample": True, "max_new_tokens": NEW}
    expected = decoding.generate(llama, random_ids(2, 6), seeds=[3, 4], **options)
    assert decoding.generate(llama, random_ids(2, 6), seeds=seeds, **options).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 3}, "seeds=3: must be a list of whole numbers, one for each row"),
        ({"seeds": [[1, 2]]}, r"seeds: \[1, 2\] is among them; each must be a whole number from 0 to 2\^64 - 1"),
        ({"seeds": [1, -1]}, "seeds: -1 is among them"),
        ({"seeds": [1, 2**64]}, "seeds: 18446744073709551616 is among them"),
        ({"seeds": [1, True]}, "seeds: True is among them"),
        ({"seeds": [1, 2.0]}, "seeds: 2.0 is among them"),
        ({"seeds": [1]}, "seeds: 1 are given for 2 rows; must be one for each row"),
        ({"seeds": []}, "seeds: 0 are given for 2 rows"),
        ({"seeds": [1, 2], "num_return_sequences": 2}, "seeds: 2 are given for 4 rows"),
        ({"seeds": [1, 2, 3, 4], "num_beams": 2}, "seeds: with num_beams=2 beams draw, not rows"),
        ({"seeds": [1, 2], "do_sample": False}, "seeds: nothing is drawn without do_sample=True"),
        ({"seeds": [1, 2], "custom_generate": DoLa()}, "custom_generate: would decode in place of sampling"),
        ({"seeds": [1, 2], "prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens: sampling drafts in its own way"),
    ],
)
def test_seeds_that_cannot_be_honoured_are_refused_in_one_line(
    llama: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        decoding.generate(llama, random_ids(2, 4), max_new_tokens=3, **{"do_sample": True, **options})


def test_a_models_own_config_may_ask_for_sampling() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    model.generation_config.update(do_sample=True, top_k=0, temperature=2.0)
    tokens = decoding.generate(model, random_ids(2, 6), seeds=[1, 2], max_new_tokens=NEW)
    expected = decoding.generate(
        tiny_model("llama"), random_ids(2, 6), seeds=[1, 2], max_new_tokens=NEW, do_sample=True, top_k=0,
        temperature=2.0,
    )  # fmt: skip
    assert tokens.tolist() == expected.tolist()
    assert tokens.max() < VOCAB
