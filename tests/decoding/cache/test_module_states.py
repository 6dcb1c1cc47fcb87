"""Models that keep states elsewhere than in their cache's layers, against full recomputation."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from streams import stream_with_way
from tiny_models import random_prompt
from torch import Tensor
from transformers.cache_utils import Cache

import decoding
from decoding import ContextAware, ContrastiveSearch, DoLa, ModelError
from decoding.cache.module_states import StateLayer
from decoding.capabilities.branching import branching_of
from decoding.capabilities.capabilities import open_stream
from decoding.strategies.contrast.fused_streams import FusedStreams
from decoding.strategies.contrast.readers import EXPERT, Reader
from decoding.stream.prepare import prepare_inputs
from decoding.stream.stream import Stream
from decoding.tools.architectures.recomputation import recomputed
from decoding.tools.architectures.reference import Prompt
from decoding.tools.architectures.tiny import tiny_model as built

ELSEWHERE = ["minimax", "recurrent_gemma", "xlstm"]
# From transformers 5.18 to 5.22 RecurrentGemma takes the length of its cache from a layer that keeps nothing there: it
# misreads left padding, and counts positions anew where forward() is given none.
POSITIONS_RIGHT = [
    "minimax",
    pytest.param(
        "recurrent_gemma",
        marks=pytest.mark.skipif(
            Version("5.18") <= Version(transformers.__version__) < Version("5.23"), reason="transformers' own fault"
        ),
    ),
    "xlstm",
]
PROMPTS = [random_prompt(14, seed=1), random_prompt(14, seed=2)]  # of one length: two of the three read padding as text
tiny_model = functools.cache(built)  # nothing that is done here may leave a trace on a model
same_model = functools.cache(lambda name: built(name))  # that no stream has read with


def _ids(*shape: int, seed: int) -> Tensor:
    return torch.randint(10, 120, shape, generator=torch.Generator().manual_seed(seed))


def _opened(name: str, prompts: list[list[int]] = PROMPTS, **options: Any) -> Stream:
    ids = torch.tensor(prompts)
    return open_stream(tiny_model(name), input_ids=ids, attention_mask=torch.ones_like(ids), **options)


@torch.no_grad()
def _recomputed(name: str, text: list[int]) -> Tensor:
    """(dim,) the last hidden state of a text read anew."""
    output = same_model(name)(torch.tensor([text]), use_cache=False, output_hidden_states=True)
    return output.hidden_states[-1][0, -1]


def _same(states: Tensor, name: str, texts: list[list[int]]) -> None:
    expected = torch.stack([_recomputed(name, text) for text in texts])
    torch.testing.assert_close(states, expected, atol=1e-4, rtol=1e-3)  # float32, sums in another order


def _on_modules(name: str) -> list[Any]:
    return [
        getattr(module, attribute)
        for module in tiny_model(name).modules()
        for attribute in ("conv1d_state", "recurrent_states")
        if hasattr(module, attribute)
    ]


@pytest.mark.parametrize("name", POSITIONS_RIGHT)
def test_their_rows_are_forked(name: str) -> None:
    assert branching_of(tiny_model(name)).way == "fork"
    tokens = decoding.generate(tiny_model(name), torch.tensor(PROMPTS), penalty_alpha=0.6, top_k=4, max_new_tokens=5)
    for row, prompt in zip(tokens.tolist(), PROMPTS, strict=True):
        assert row[14:] == [step.token for step in recomputed(tiny_model(name), Prompt(prompt, {}), 0, 0.6, 4, 5)]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_branches_of_several_tokens_and_what_is_read_after_them(name: str) -> None:
    stream = _opened(name)
    answers, more = _ids(2, 3, 4, seed=3), _ids(2, 2, seed=4)
    hidden = stream.branch(answers).hidden  # (2, 3, 4, dim)
    for branch in range(3):
        texts = [prompt + answers[row, branch].tolist() for row, prompt in enumerate(PROMPTS)]
        _same(hidden[:, branch, -1], name, texts)
    stream.commit(torch.tensor([2, 0]))
    texts = [PROMPTS[0] + answers[0, 2].tolist(), PROMPTS[1] + answers[1, 0].tolist()]
    _same(stream.extend(more).hidden[:, -1], name, [text + more[row].tolist() for row, text in enumerate(texts)])


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_branch_that_is_not_kept_leaves_no_trace(name: str) -> None:
    stream = _opened(name, restorable=True)
    stream.branch(_ids(2, 4, seed=5))
    stream.branch(_ids(2, 4, seed=6))
    token = _ids(2, 1, seed=7)
    _same(stream.extend(token).hidden[:, 0], name, [text + token[row].tolist() for row, text in enumerate(PROMPTS)])


@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("branched", [False, True])
def test_rows_change_places_with_their_states(name: str, branched: bool) -> None:
    stream, candidates = _opened(name), _ids(2, 3, seed=8)
    texts = [PROMPTS[1], PROMPTS[1]]
    if branched:
        stream.branch(candidates)
    stream.reorder(torch.tensor([1, 1]))
    if branched:
        stream.commit(torch.tensor([2, 0]))
        texts = [PROMPTS[1] + [int(candidates[1, branch])] for branch in (2, 0)]
    token = _ids(2, 1, seed=9)
    _same(stream.extend(token).hidden[:, 0], name, [text + token[row].tolist() for row, text in enumerate(texts)])


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_cannot_go_back_says_so(name: str) -> None:
    with pytest.raises(ModelError, match="its cache cannot be rewound by 2 tokens"):
        _opened(name).rewind(12)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_two_texts_on_one_model_read_in_turn_keep_their_own_states(name: str) -> None:
    texts = [[PROMPTS[0]], [PROMPTS[1]]]
    streams = [
        stream_with_way(
            tiny_model(name), "fork", input_ids=torch.tensor(text), attention_mask=torch.ones_like(torch.tensor(text))
        )
        for text in texts
    ]
    for step in range(2):
        candidates, winner = _ids(1, 3, seed=10 + step), torch.tensor([step])
        for i, stream in enumerate(streams):
            stream.branch(candidates)
            texts[i] = [texts[i][0] + [int(candidates[0, step])]]
        for stream, text in zip(streams, texts, strict=True):
            _same(stream.commit(winner).hidden[:, 0], name, text)


def test_threads_on_a_model_that_writes_on_its_modules_do_not_meet() -> None:
    model = tiny_model("recurrent_gemma")
    calls = [(strategy, [prompt]) for prompt in PROMPTS for strategy in (ContrastiveSearch(0.6, 4), DoLa([0, 1]))]

    def call(i: int) -> list[list[int]]:
        strategy, prompt = calls[i]
        return decoding.generate(model, torch.tensor(prompt), strategy=strategy, max_new_tokens=6).tolist()

    lock = [call(i) for i in range(len(calls))]
    together: dict[int, list[Any]] = {i: [] for i in range(len(calls))}
    start = threading.Barrier(len(calls))

    def work(i: int) -> None:
        start.wait()
        together[i] += [call(i) for _ in range(2)]

    threads = [threading.Thread(target=work, args=(i,)) for i in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == {i: [expected] * 2 for i, expected in enumerate(lock)}


@pytest.mark.parametrize("name", ELSEWHERE)
@torch.no_grad()
def test_plain_generate_under_way_on_the_model_keeps_its_states(name: str) -> None:
    """Its own passes and those of a strategy in its list of processors take turns."""
    model, strategy = tiny_model(name), ContextAware(context=[7, 8, 9])
    made = model.generate(
        torch.tensor(PROMPTS), logits_processor=[strategy.logits_processor(model)], max_new_tokens=6, do_sample=False,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    own = same_model(name)(made.sequences, use_cache=False).logits[:, 13:-1]
    torch.testing.assert_close(torch.stack(made.logits, dim=1), own, atol=1e-4, rtol=1e-3)
    lock = decoding.generate(model, torch.tensor(PROMPTS), strategy=strategy, max_new_tokens=6)
    assert made.sequences.tolist() == lock.tolist()


def test_a_prompt_of_one_token_does_not_go_on_from_another_text() -> None:
    """In transformers one token is the next of whatever its modules last read."""
    model = tiny_model("recurrent_gemma")
    decoding.generate(model, torch.tensor(PROMPTS[:1]), max_new_tokens=3, return_dict_in_generate=True)
    assert any(state is not None for state in _on_modules("recurrent_gemma"))
    _same(_opened("recurrent_gemma", [[57]]).prompt.hidden[:, -1], "recurrent_gemma", [[57]])


def test_a_pass_that_fails_leaves_modules_as_they_were() -> None:
    stream, model, before = _opened("recurrent_gemma"), tiny_model("recurrent_gemma"), _on_modules("recurrent_gemma")
    failing = model.get_decoder().layers[-1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        stream.extend(_ids(2, 1, seed=11))
    failing.remove()
    assert all(now is then for now, then in zip(_on_modules("recurrent_gemma"), before, strict=True))
    other = threading.Thread(target=lambda: _opened("recurrent_gemma"), daemon=True)
    other.start()
    other.join(timeout=30)
    assert not other.is_alive()  # the lock was given back


@pytest.mark.parametrize("name", POSITIONS_RIGHT)
@torch.no_grad()
def test_the_model_goes_on_from_the_cache_that_a_call_returns(name: str) -> None:
    model = tiny_model(name)
    made = decoding.generate(
        model, torch.tensor(PROMPTS), penalty_alpha=0.6, top_k=4, max_new_tokens=4, return_dict_in_generate=True
    )
    cache, texts = made.past_key_values, made.sequences.tolist()
    assert not isinstance(cache, Cache) or not any(isinstance(layer, StateLayer) for layer in cache.layers)
    named = {"cache_params" if name == "xlstm" else "past_key_values": cache}
    for token in (None, _ids(2, 1, seed=12)):
        if token is not None:
            texts = [text + token[row].tolist() for row, text in enumerate(texts)]
        last = torch.tensor(texts)[:, -1:]
        _same(model(last, **named, use_cache=True, output_hidden_states=True).hidden_states[-1][:, 0], name, texts)


@pytest.mark.parametrize("name", ["xlstm", "mamba"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_readers_of_a_model_that_reads_padding_as_text_share_no_rows(name: str, use_cache: bool) -> None:
    model = tiny_model(name)
    readers = [Reader(EXPERT), Reader("short", prefix=[[5]]), Reader("long", prefix=[[6, 7, 8, 9]])]
    ids, kwargs, config = prepare_inputs(model, input_ids=torch.tensor(PROMPTS[:1]), use_cache=use_cache)
    streams = FusedStreams(model, readers, ids, kwargs, config)
    logits = streams.reader_logits(streams.prompt)
    for reader in readers:
        text = [*(reader.prefix[0] if reader.prefix else []), *PROMPTS[0]]
        with torch.no_grad():
            expected = model(torch.tensor([text]), use_cache=False).logits[:, -1]
        torch.testing.assert_close(logits[reader.role].final, expected, atol=1e-4, rtol=1e-3)
