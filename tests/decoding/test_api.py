"""The token loop and its ways in, held to the contract of transformers' own sampling loop."""

from __future__ import annotations

import copy
import logging
import threading
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, random_ids, tiny_model, word_tokenizer
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TextIteratorStreamer,
    TextStreamer,
)

import decoding
from decoding import FSD, ContrastiveSearch, OptionError
from decoding.evals import miniature

SEARCH = {"penalty_alpha": 0.6, "top_k": 4}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


# --- ways in --------------------------------------------------------------------------------------------------------


def test_the_three_ways_in_choose_the_same_tokens(llama: Any) -> None:
    ids, strategy = random_ids(1, 9), ContrastiveSearch(**SEARCH)
    facade = decoding.generate(llama, ids, strategy=strategy, max_new_tokens=20)
    assert facade.tolist() == decoding.generate(llama, ids, max_new_tokens=20, **SEARCH).tolist()
    assert facade.tolist() == llama.generate(ids, custom_generate=strategy, max_new_tokens=20).tolist()
    processor = strategy.logits_processor(llama)
    assert facade.tolist() == llama.generate(ids, logits_processor=[processor], max_new_tokens=20).tolist()


def test_without_a_strategy_it_is_plain_generate(llama: Any) -> None:
    ids = random_ids(2, 9)
    torch.manual_seed(0)
    expected = llama.generate(ids, max_new_tokens=9, do_sample=True, top_k=20)
    torch.manual_seed(0)
    assert decoding.generate(llama, ids, max_new_tokens=9, do_sample=True, top_k=20).tolist() == expected.tolist()


def test_a_model_whose_config_asks_for_contrastive_search_gets_it(llama: Any) -> None:
    ids, model = random_ids(1, 9), copy.copy(llama)
    model.generation_config = copy.deepcopy(llama.generation_config)
    model.generation_config.update(**SEARCH)
    assert decoding.generate(model, ids, max_new_tokens=9).tolist() == (
        decoding.generate(llama, ids, max_new_tokens=9, **SEARCH).tolist()
    )


# --- batches and ends -----------------------------------------------------------------------------------------------


def test_finished_rows_give_pad_and_do_not_disturb_the_others(llama: Any) -> None:
    rows = [random_ids(1, 8, seed=seed) for seed in range(4)]
    alone = [decoding.generate(llama, row, max_new_tokens=16, **SEARCH)[0, 8:].tolist() for row in rows]
    ends = [alone[1][3], alone[2][7]]  # several EOS ids, met at different steps
    batch = decoding.generate(llama, torch.cat(rows), max_new_tokens=16, eos_token_id=ends, pad_token_id=0, **SEARCH)
    for row, free in zip(batch[:, 8:].tolist(), alone, strict=True):
        end = next((i + 1 for i, token in enumerate(free) if token in ends), 16)
        assert row[:end] == free[:end]
        assert set(row[end:]) <= {0}
    assert 0 in batch[1, 8:]


def test_it_stops_when_every_row_has_ended(llama: Any) -> None:
    ids = random_ids(1, 8)
    third = decoding.generate(llama, ids, max_new_tokens=16, **SEARCH)[0, 8:].tolist()[2]
    tokens = decoding.generate(llama, ids, max_new_tokens=16, eos_token_id=third, **SEARCH)
    assert tokens.shape[1] <= 8 + 3
    assert tokens[0, -1] == third


def test_min_new_tokens_holds_the_end_back(llama: Any) -> None:
    ids = random_ids(1, 8)
    first = decoding.generate(llama, ids, max_new_tokens=1, **SEARCH)[0, -1].item()
    tokens = decoding.generate(llama, ids, max_new_tokens=12, min_new_tokens=10, eos_token_id=first, **SEARCH)
    assert tokens.shape[1] >= 8 + 10
    assert first not in tokens[0, 8:17]


def test_max_time_and_own_stopping_criteria_stop(llama: Any) -> None:
    class AfterFive(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
            return torch.full((len(input_ids),), input_ids.shape[1] >= 8 + 5)

    ids = random_ids(2, 8)
    assert decoding.generate(llama, ids, max_new_tokens=50, max_time=0.0, **SEARCH).shape[1] == 9
    assert decoding.generate(llama, ids, max_new_tokens=50, stopping_criteria=[AfterFive()], **SEARCH).shape[1] == 13


def test_stop_strings_of_the_models_own_config_stop() -> None:
    model, tokenizer = miniature.load("expert")
    inputs = tokenizer("The town lies", return_tensors="pt")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    whole = decoding.generate(model, **inputs, max_new_tokens=40, **SEARCH)[0]
    stop = tokenizer.decode(whole[12:14]).strip()
    given = decoding.generate(model, **inputs, max_new_tokens=40, stop_strings=stop, tokenizer=tokenizer, **SEARCH)
    model.generation_config.stop_strings = stop
    own = decoding.generate(model, **inputs, max_new_tokens=40, tokenizer=tokenizer, **SEARCH)
    assert own.tolist() == given.tolist() != [whole.tolist()]
    assert model.generation_config.stop_strings == stop


def test_stop_strings_stop() -> None:
    model, tokenizer = miniature.load("expert")
    inputs = tokenizer(miniature.prompts()[0], return_tensors="pt")
    free = tokenizer.decode(decoding.generate(model, **inputs, max_new_tokens=40, **SEARCH)[0])
    stop = free[len(miniature.prompts()[0]) :].split()[4]
    stopped = decoding.generate(model, **inputs, max_new_tokens=40, stop_strings=[stop], tokenizer=tokenizer, **SEARCH)
    text = tokenizer.decode(stopped[0])
    assert free.startswith(text)
    assert text != free
    assert stop in text[-len(stop) - 8 :]
    with pytest.raises(OptionError, match="pass tokenizer"):
        decoding.generate(model, **inputs, stop_strings=[stop], **SEARCH)


def test_stop_strings_and_token_healing_draw_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A config that is not the caller's beside the caller's options: transformers would warn once a process."""
    model, tokenizer = miniature.load("expert")
    ids = tokenizer("Long ago a stubborn garde", return_tensors="pt").input_ids
    warned: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("transformers.generation.utils"), "warning_once", warned.append, raising=False
    )
    options = {"tokenizer": tokenizer, "strategy": FSD()}
    beside = decoding.generate(model, ids, stop_strings=["er"], token_healing=True, max_new_tokens=16, **options)
    before = model.generation_config.to_dict()
    model.generation_config.stop_strings, model.generation_config.token_healing = ["er"], True
    of_config = decoding.generate(model, ids, max_new_tokens=16, **options)
    assert model.generation_config.to_dict() == {**before, "stop_strings": ["er"], "token_healing": True}
    assert beside.tolist() == of_config.tolist()
    given = GenerationConfig(max_new_tokens=16, stop_strings=["er"], token_healing=True)
    model.generation_config.stop_strings = model.generation_config.token_healing = None
    assert decoding.generate(model, ids, generation_config=given, **options).tolist() == beside.tolist()
    free = decoding.generate(model, ids, token_healing=True, max_new_tokens=16, **options)
    assert beside.shape[1] < free.shape[1]
    assert tokenizer.decode(free[0]).startswith(tokenizer.decode(beside[0]))
    assert warned == []


# --- processors and sampling ----------------------------------------------------------------------------------------


def test_processors_act_on_the_logits_before_candidates_are_taken(llama: Any) -> None:
    """A banned token is never a candidate, as in the oracle, though contrast alone might favour it."""
    ids = random_ids(1, 8)
    free = decoding.generate(llama, ids, max_new_tokens=10, **SEARCH)[0, 8:].tolist()
    banned = decoding.generate(llama, ids, max_new_tokens=10, bad_words_ids=[[free[0]], [free[3]]], **SEARCH)
    assert not {free[0], free[3]} & set(banned[0, 8:].tolist())
    allowed = list(range(10, 16))
    within = decoding.generate(llama, ids, max_new_tokens=10, prefix_allowed_tokens_fn=lambda *_: allowed, **SEARCH)
    assert set(within[0, 8:].tolist()) <= set(allowed)

    class OnlyTwo(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return torch.full_like(scores, -torch.inf).scatter(1, torch.tensor([[7, 9]]), 0.0)

    pair = decoding.generate(llama, ids, max_new_tokens=10, logits_processor=[OnlyTwo()], penalty_alpha=0.9, top_k=6)
    assert set(pair[0, 8:].tolist()) <= {7, 9}  # four of the six candidates had probability 0


def test_repetition_penalty_changes_the_candidates_as_in_greedy_search(llama: Any) -> None:
    ids = random_ids(2, 8)
    expected = llama.generate(ids, max_new_tokens=12, repetition_penalty=1.5, do_sample=False)
    given = decoding.generate(llama, ids, max_new_tokens=12, repetition_penalty=1.5, penalty_alpha=0.0, top_k=4)
    assert given.tolist() == expected.tolist()


def test_sampling_draws_among_the_candidates_from_the_softmax_of_their_scores(llama: Any) -> None:
    ids = random_ids(1, 8).repeat(4000, 1)
    temperature = 0.3
    torch.manual_seed(0)
    output = decoding.generate(
        llama, ids, strategy=ContrastiveSearch(**SEARCH), max_new_tokens=1, do_sample=True, temperature=temperature,
        top_k=0, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    expected = (output.scores[0][0] / temperature).softmax(-1)
    drawn = output.sequences[:, -1].bincount(minlength=VOCAB) / 4000
    assert (expected > 0).sum() == 4
    assert (drawn - expected).abs().max() < 0.04  # four standard deviations of 4000 draws
    greedy = decoding.generate(
        llama, ids[:1], max_new_tokens=1, return_dict_in_generate=True, output_scores=True, **SEARCH
    )
    torch.testing.assert_close(output.scores[0][:1], greedy.scores[0])  # temperature does not touch the scores


def test_the_same_seed_gives_the_same_sample_and_warpers_limit_the_candidates(llama: Any) -> None:
    ids, strategy = random_ids(2, 8), ContrastiveSearch(penalty_alpha=0.3, top_k=8)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append(decoding.generate(llama, ids, strategy=strategy, max_new_tokens=12, do_sample=True).tolist())
    assert runs[0] == runs[1]
    only = decoding.generate(llama, ids, strategy=strategy, max_new_tokens=12, do_sample=True, top_p=1e-6)
    assert only.tolist() == llama.generate(ids, max_new_tokens=12, do_sample=False).tolist()


def test_several_return_sequences(llama: Any) -> None:
    torch.manual_seed(0)
    tokens = decoding.generate(
        llama, random_ids(2, 8), strategy=ContrastiveSearch(), max_new_tokens=9, do_sample=True, temperature=2.0,
        num_return_sequences=3,
    )  # fmt: skip
    assert tokens.shape == (6, 17)
    assert tokens[:3, :8].eq(random_ids(2, 8)[0]).all()
    assert len({tuple(row) for row in tokens.tolist()}) > 2


# --- streamers and outputs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plugin", [False, True], ids=["facade", "custom_generate"])
def test_streamers_receive_prompt_tokens_and_end(
    llama: Any, tokenizer: PreTrainedTokenizerFast, plugin: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ids, strategy = random_ids(1, 8), ContrastiveSearch(**SEARCH)

    def run(streamer: Any) -> torch.Tensor:
        if plugin:
            return llama.generate(ids, custom_generate=strategy, streamer=streamer, max_new_tokens=10)
        return decoding.generate(llama, ids, strategy=strategy, streamer=streamer, max_new_tokens=10)

    text = tokenizer.decode(run(TextStreamer(tokenizer, skip_prompt=True))[0, 8:])
    assert capsys.readouterr().out.split() == text.split()
    parts = TextIteratorStreamer(tokenizer, timeout=20)
    thread = threading.Thread(target=run, args=(parts,))
    thread.start()
    streamed = "".join(parts)  # would time out if end() never came
    thread.join()
    assert streamed.split() == [*tokenizer.decode(ids[0]).split(), *text.split()]


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom", "t5"])
def test_everything_that_can_be_returned_has_the_shapes_of_greedy_search(name: str) -> None:
    model = tiny_model(name)
    model.set_attn_implementation("eager")
    asked = {
        "max_new_tokens": 5, "do_sample": False, "num_beams": 1, "return_dict_in_generate": True, "output_scores": True,
        "output_logits": True, "output_hidden_states": True, "output_attentions": True,
    }  # fmt: skip
    greedy = model.generate(random_ids(2, 8), **asked)
    ours = decoding.generate(model, random_ids(2, 8), **asked, **SEARCH)
    assert type(ours) is type(greedy)
    assert _shapes(ours) == _shapes(greedy)
    # Greedy search: values must agree.
    same = decoding.generate(model, random_ids(2, 8), **asked, penalty_alpha=0.0, top_k=3)
    for field in (
        "logits",
        "hidden_states",
        "attentions",
        "decoder_hidden_states",
        "decoder_attentions",
        "cross_attentions",
    ):
        for one, other in zip(_leaves(same.get(field)), _leaves(greedy.get(field)), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def _leaves(value: Any) -> list[torch.Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, torch.Tensor) else [leaf for item in value for leaf in _leaves(item)]


def _shapes(output: Any) -> dict[str, list[tuple[int, ...]]]:
    return {
        name: [tuple(leaf.shape) for leaf in _leaves(value)]
        for name, value in output.items()
        if name not in ("past_key_values", "sequences")
    }


# --- token healing --------------------------------------------------------------------------------------------------


def test_token_healing_has_the_tokenizer_that_was_given() -> None:
    """The healed prompt and its greedy continuation are those of plain generate, with a mask or without one."""
    model, tokenizer = miniature.load("expert")
    ids = tokenizer("Long ago a stubborn garde", return_tensors="pt").input_ids
    settings = {"max_new_tokens": 5, "do_sample": False, "token_healing": True, "tokenizer": tokenizer}
    healed = model.generate(ids, **settings)
    greedy = ContrastiveSearch(penalty_alpha=0.0)
    assert decoding.generate(model, ids, strategy=greedy, **settings).tolist() == healed.tolist()
    masked = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert decoding.generate(model, masked, strategy=greedy, **settings).tolist() == healed.tolist()
    longer = {name: torch.nn.functional.pad(value, (0, 1), value=1) for name, value in masked.items()}
    longer["input_ids"][:, -1] = tokenizer(" ", add_special_tokens=False)["input_ids"][-1]  # a space at the end
    assert decoding.generate(model, longer, strategy=greedy, **settings).tolist() == healed.tolist()
    del settings["tokenizer"]
    for strategy in (None, greedy):
        with pytest.raises(OptionError, match="token_healing=True: pass tokenizer="):
            decoding.generate(model, ids, strategy=strategy, **settings)
