"""The history of hidden states: prompts in pieces, windows of the penalty, and what they hold in memory."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from search_oracle import contrastive_search_tokens
from tiny_models import left_padded, random_prompt, tiny_model

import decoding
from decoding.kernels.degeneration_penalty import degeneration_penalty_naive
from decoding.strategies.contrastive_search.history import BLOCK, HiddenHistory
from decoding.stream.prepare import prepare_inputs

STEPS = 8


_model = functools.cache(tiny_model)


@pytest.mark.parametrize(
    ("name", "window"),
    [("llama", 1), ("llama", 5), ("llama", 16), ("llama", 500), ("mistral-sliding", 5), ("bloom", 16)],
)
def test_only_the_last_tokens_count(name: str, window: int) -> None:
    """Rows of a left-padded batch, by shared prefix and by forked rows, the prompt at once and in pieces."""
    model = _model(name)
    prompts = [random_prompt(4, seed=1), random_prompt(12, seed=2)]
    strategy = decoding.ContrastiveSearch(0.9, 5, max_history=window)
    written = [
        decoding.generate(
            model, **left_padded(prompts), strategy=strategy, max_new_tokens=STEPS, prefill_chunk_size=piece
        )[:, 12:].tolist()
        for piece in (None, 5)
    ]
    expected = [
        contrastive_search_tokens(model, prompt, 0.9, 5, STEPS, window=window, expected=found)
        for prompt, found in zip(prompts, written[0], strict=True)
    ]
    assert written == [expected] * 2


@pytest.mark.parametrize(
    ("holes", "window", "backend"),
    [
        *((holes, window, "torch") for holes in (False, True) for window in (None, 1, 7, 40)),
        *((holes, window, "triton") for holes, window in ((False, None), (True, 7))),
    ],
)
def test_the_penalty_looks_at_the_last_states_of_each_row(
    window: int | None, holes: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against every pair looked at one by one, the states before the window and of padding left out by hand."""
    pytest.importorskip("triton")
    monkeypatch.setenv("DECODING_KERNELS", backend)
    monkeypatch.setattr("decoding.strategies.contrastive_search.history.BLOCK", 4)  # moves several times
    generator = torch.Generator().manual_seed(window or 0)
    states = torch.randn(2, 48, 24, generator=generator)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :9] = 0
    if holes:
        mask[1, 13:17] = 0
    history = HiddenHistory(mask, prompt=20, window=window)
    at = 0
    for n in (8, 8, 4, *[1] * 7, 11, 4):
        history.append(states[:, at : at + n])
        at += n
        candidates = torch.randn(2, 3, 24, generator=generator)
        if at < 20:
            continue
        penalty, told = history.penalty(candidates), history.repeated(candidates)
        for row in range(2):
            places = [slot for slot in range(at) if slot >= 20 or mask[row, slot]]
            places = places[-window:] if window else places
            expected, repeated = degeneration_penalty_naive(candidates[row : row + 1], states[row : row + 1, places])
            # float32 against float64
            torch.testing.assert_close(penalty[row : row + 1], expected, atol=1e-5, rtol=1e-5)
            assert told[1][row].tolist() == [places[place] for place in repeated[0].tolist()]
        assert torch.equal(told[0], penalty)
    history.reorder(torch.tensor([1, 0]))
    swapped = history.repeated(candidates.flip(0))
    assert [values.flip(0).tolist() for values in swapped] == [values.tolist() for values in told]


def test_a_window_bounds_what_is_held() -> None:
    history = HiddenHistory(window=512)
    for _ in range(40):
        history.append(torch.ones(1, 100, 8))
        assert history.states.shape[1] <= 512 + BLOCK
    history = HiddenHistory(window=64)
    history.append(torch.ones(1, 5000, 8))
    assert history.states.shape[1] <= 64 + BLOCK


def test_the_states_of_a_prompt_are_held_once() -> None:
    """Their storage ends where the text will, and the stream holds none of them."""
    model = tiny_model("llama")
    strategy = decoding.ContrastiveSearch(0.6, 4)
    ids, kwargs, config = prepare_inputs(model, input_ids=torch.tensor([random_prompt(90, seed=3)]))
    config.max_length, config.prefill_chunk_size = 100, 16
    with torch.no_grad():
        session = strategy.session(model, ids, kwargs, config)
    assert session.history.states.shape[1] == 100
    assert session.stream.prompt.hidden.untyped_storage().nbytes() == 32 * 4
    session.release()


def test_a_continued_cache_keeps_its_history_or_reads_it_anew() -> None:
    """A narrower window takes it over; a wider one than was kept reads the text again."""
    model = tiny_model("llama")
    prompt = random_prompt(12, seed=4)
    for first, second in [(None, 6), (6, None), (6, 9), (9, 6)]:
        output = decoding.generate(
            model, torch.tensor([prompt]), strategy=decoding.ContrastiveSearch(0.9, 5, max_history=first),
            max_new_tokens=4, return_dict_in_generate=True,
        )  # fmt: skip
        so_far = [*output.sequences[0].tolist(), *random_prompt(3, seed=5)]
        tokens = decoding.generate(
            model, torch.tensor([so_far]), strategy=decoding.ContrastiveSearch(0.9, 5, max_history=second),
            past_key_values=output.past_key_values, max_new_tokens=6,
        )  # fmt: skip
        found = tokens[0, len(so_far) :].tolist()
        assert found == contrastive_search_tokens(model, so_far, 0.9, 5, 6, window=second, expected=found)


def test_a_copied_cache_is_continued_from_the_whole_text_and_refused_without_it() -> None:
    """One cache of a prompt, copied for each continuation: a copy has no history, which is read again."""
    model, strategy = tiny_model("llama"), decoding.ContrastiveSearch(0.9, 5)
    output = decoding.generate(
        model, torch.tensor([random_prompt(12, seed=4)]), strategy=strategy, max_new_tokens=4,
        return_dict_in_generate=True,
    )  # fmt: skip
    for seed in (5, 6):
        cache = copy.deepcopy(output.past_key_values)
        text = [*output.sequences[0].tolist(), *random_prompt(3, seed=seed)]
        tokens = decoding.generate(
            model, torch.tensor([text]), strategy=strategy, past_key_values=cache, max_new_tokens=6
        )
        found = tokens[0, len(text) :].tolist()
        assert found == contrastive_search_tokens(model, text, 0.9, 5, 6, expected=found)
    cache = copy.deepcopy(output.past_key_values)
    rest = {"attention_mask": torch.ones(1, len(text), dtype=torch.long), "past_key_values": cache}
    with pytest.raises(decoding.InputError, match=r"from the first token on, or a cache .* \(a copy of one has none\)"):
        decoding.generate(model, torch.tensor([text[15:]]), **rest, strategy=strategy, max_new_tokens=6)
    rest["past_key_values"] = output.past_key_values  # the cache itself has its history
    with pytest.raises(decoding.InputError, match="pass input_ids from the first token on"):  # 4 tokens are the whole?
        decoding.generate(model, torch.tensor([text[15:]]), past_key_values=output.past_key_values, strategy=strategy)
    tokens = decoding.generate(model, torch.tensor([text[15:]]), **rest, strategy=strategy, max_new_tokens=6)
    found = tokens[0, 4:].tolist()
    assert found == contrastive_search_tokens(model, text, 0.9, 5, 6, expected=found)


@pytest.mark.parametrize("window", [0, -1, 2.5, True, "8"])
def test_a_window_out_of_range_is_named(window: object) -> None:
    with pytest.raises(decoding.OptionError, match=r"max_history=.*must be a whole number from 1, or None"):
        decoding.ContrastiveSearch(max_history=window)  # type: ignore[arg-type]
