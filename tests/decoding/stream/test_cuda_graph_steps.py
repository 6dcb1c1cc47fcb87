"""``compile=True`` against the same call without: static steps as they run on a CPU, and recorded and replayed."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recorded_graph import RecordedGraph
from tiny_models import VOCAB, tiny_model
from torch import Tensor

import decoding
from decoding import LOL, ContrastiveDecoding, ContrastiveSearch, DoLa, Strategy
from decoding.capabilities.capabilities import open_stream
from decoding.stream import cuda_graph_steps, static_layout

NAMES = ["llama", "qwen2", "gpt2", "gemma2", "mistral-sliding"]
KINDS = ["search", "contrastive decoding", "dola"]
NEW = 10


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_layout, "BUCKET", 4)  # so that a short text crosses several


@pytest.fixture(params=["as it is", "recorded"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """How static steps run; recorded, they are replayed without Python, as a CUDA graph replays them."""
    if request.param == "recorded":
        monkeypatch.setitem(cuda_graph_steps.GRAPHS, "cpu", RecordedGraph)
    yield request.param
    cuda_graph_steps._idle.clear()  # models are shared by tests, and a recorded step is no step of another way


of_recorded_steps = pytest.mark.parametrize("way", ["recorded"], indirect=True)  # what goes on around steps


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[RecordedGraph]]:
    monkeypatch.setitem(cuda_graph_steps.GRAPHS, "cpu", RecordedGraph)
    monkeypatch.setattr(RecordedGraph, "made", 0)
    yield RecordedGraph
    cuda_graph_steps._idle.clear()


@functools.cache
def _model(name: str, seed: int = 0) -> Any:
    return tiny_model(name, seed)


def _prompts(*lengths: int, seed: int = 1) -> dict[str, Tensor]:
    """Left-padded prompts."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    width = max(lengths)
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


def _layouts(model: Any) -> list[Any]:
    return list(cuda_graph_steps._idle.get(model, ()))


def _strategy(kind: str, name: str) -> Strategy:
    if kind == "search":
        return ContrastiveSearch(0.6, 4)
    return DoLa("high") if kind == "dola" else ContrastiveDecoding(_model(name, 7))


@functools.cache
def _without_compile(name: str, kind: str, lengths: tuple[int, ...]) -> list[list[int]]:
    tokens = decoding.generate(
        _model(name), **_prompts(*lengths), strategy=_strategy(kind, name), max_new_tokens=NEW
    )  # fmt: skip
    return tokens.tolist()


# One model has every kind of pass, in a batch and alone. What a step meets in a model are its positions, masks and
# windows: under branches, and under one token, whose readers and exits are the same in all.
CASES: list[tuple[str, str, tuple[int, ...], str]] = [
    *(("llama", kind, (5, 13, 1), way) for kind in KINDS for way in ("recorded", "as it is")),
    *(("llama", kind, (9,), "recorded") for kind in KINDS),
    *((name, "search", (5, 13, 1), "recorded") for name in NAMES[1:]),
    ("qwen2", "dola", (5, 13, 1), "as it is"),
    ("gpt2", "contrastive decoding", (5, 13, 1), "as it is"),
    ("gemma2", "dola", (5, 13, 1), "recorded"),
    ("gemma2", "search", (5, 13, 1), "as it is"),
    ("mistral-sliding", "contrastive decoding", (5, 13, 1), "recorded"),
]


@pytest.mark.parametrize(
    ("name", "kind", "lengths", "way"),
    CASES,
    ids=lambda value: f"rows-{len(value)}" if isinstance(value, tuple) else value,
    indirect=["way"],
)
def test_tokens_are_those_without_compile(name: str, kind: str, lengths: tuple[int, ...], way: str) -> None:
    model, strategy, inputs = _model(name), _strategy(kind, name), _prompts(*lengths)
    expected = _without_compile(name, kind, lengths)
    tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW, compile=True)
    assert tokens.tolist() == expected
    (layout,) = _layouts(model)
    read = range(max(lengths), max(lengths) + NEW - (0 if kind == "search" else 1))  # what stands before each step
    buckets = {static_layout.bucket_of(length + (4 if kind == "search" else 1)) for length in read}
    assert len(buckets) >= 3
    assert {step.bucket for step in layout.steps.values()} == buckets
    assert all((step.graph is not None) == (way == "recorded") for step in layout.steps.values())


@functools.cache
def _with_adapter(name: str) -> Any:
    """A model with an adapter "liar" that says something."""
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", fan_in_fan_out=name == "gpt2")
    model = peft.get_peft_model(tiny_model(name), config, adapter_name="liar").eval()
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture
def scaled() -> Iterator[Callable[[Any, float], None]]:
    """A function that scales the adapter of a model until the test ends."""
    models = []

    def scale(model: Any, factor: float) -> None:
        models.append(model)
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.scale_layer(factor)

    yield scale
    for model in models:
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module.unscale_layer()


@pytest.mark.parametrize(
    ("name", "kind", "way"),
    [("llama", "lol", "recorded"), ("llama", "contrastive decoding", "as it is"), ("gpt2", "lol", "recorded")],
    indirect=["way"],
)
def test_rows_of_a_lora_amateur_are_captured_too(
    name: str, kind: str, way: str, scaled: Callable[[Any, float], None]
) -> None:
    model, inputs = _with_adapter(name), _prompts(5, 13, 1)
    strategy = LOL("liar", [1, 2], guidance=[9, 40, 17]) if kind == "lol" else ContrastiveDecoding("liar")
    options = {"strategy": strategy, "max_new_tokens": 7, "pad_token_id": 0}
    texts = []
    for scale in (None, 0.5):  # an adapter that was scaled between two calls is no longer what was captured
        if scale is not None:
            scaled(model, scale)
        texts.append(decoding.generate(model, **inputs, **options).tolist())
        assert decoding.generate(model, **inputs, **options, compile=True).tolist() == texts[-1]
    assert texts[0] != texts[1]
    (layout,) = _layouts(decoding.models.wrappers.unwrapped(model))
    assert layout.batch == (9 if kind == "lol" else 6)


@of_recorded_steps
def test_processors_stopping_and_streaming_are_those_without_compile(way: str) -> None:
    class Streamer:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def put(self, tokens: Tensor) -> None:
            self.seen.append(tokens.tolist())

        def end(self) -> None:
            self.seen.append("end")

    model, inputs = _model("llama"), _prompts(5, 13, 1)
    options = {"strategy": ContrastiveSearch(0.6, 4), "repetition_penalty": 1.2, "max_new_tokens": NEW}
    end = int(decoding.generate(model, **inputs, **options)[1, 13 + 5])
    seen = []
    for compile in (False, True):
        streamer = Streamer()
        tokens = decoding.generate(
            model, **inputs, **options, eos_token_id=end, pad_token_id=0, streamer=streamer, compile=compile
        )
        seen.append((tokens.tolist(), streamer.seen))
    assert seen[0] == seen[1]
    assert tokens[1, 13 + 6 :].eq(0).all()


@of_recorded_steps
def test_sampled_tokens_are_those_without_compile(way: str) -> None:
    strategy = ContrastiveDecoding(_model("llama", 7))
    options = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": NEW}
    seen = []
    for compile in (False, True):
        torch.manual_seed(3)
        tokens = decoding.generate(_model("llama"), **_prompts(5, 9), strategy=strategy, compile=compile, **options)
        seen.append(tokens.tolist())
    assert seen[0] == seen[1]


def test_a_second_call_replays_what_the_first_captured(recorded: type[RecordedGraph]) -> None:
    model, strategy = _model("llama"), ContrastiveSearch(0.6, 4)
    decoding.generate(model, **_prompts(5, 13, 1), strategy=strategy, max_new_tokens=NEW, compile=True)
    (layout,), made = _layouts(model), recorded.made
    assert made >= 3
    for keys, values in layout.storage:  # an earlier text that broke must not be heard of
        keys.fill_(torch.nan)
        values.fill_(torch.nan)
    other = _prompts(13, 2, 7, seed=5)
    tokens = decoding.generate(model, **other, strategy=strategy, max_new_tokens=NEW, compile=True)
    assert tokens.tolist() == decoding.generate(model, **other, strategy=strategy, max_new_tokens=NEW).tolist()
    assert recorded.made == made
    assert _layouts(model) == [layout]


def test_weights_may_change_in_place_or_move_between_calls(recorded: type[RecordedGraph]) -> None:
    model, strategy, inputs = tiny_model("llama"), ContrastiveSearch(0.6, 4), _prompts(6, 11)
    seen = []
    for change in ("none", "in place", "moved"):
        weight = model.model.layers[0].mlp.down_proj.weight
        with torch.no_grad():
            if change == "in place":
                weight.neg_()
            elif change == "moved":
                weight.data = weight.data.roll(1, 0).clone()
        expected = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW)
        tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW, compile=True)
        assert tokens.tolist() == expected.tolist()
        seen.append((tokens.tolist(), recorded.made))
    assert seen[0][0] != seen[1][0] != seen[2][0]
    assert seen[0][1] == seen[1][1] < seen[2][1]


def test_layouts_that_do_not_fit_make_room_and_go_with_their_model() -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(0.6, 4)
    kept = []
    for inputs, new in ((_prompts(9), 5), (_prompts(9), 12), (_prompts(5, 9), 5)):
        decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=new, compile=True)
        (layout,) = _layouts(model)
        kept.append(weakref.ref(layout))
    del layout
    gc.collect()
    assert [reference() is None for reference in kept] == [True, True, False]
    del model
    gc.collect()
    assert kept[2]() is None


@pytest.mark.parametrize(("name", "way"), [("llama", "as it is"), ("gemma2", "recorded")], indirect=["way"])
def test_a_stream_branches_rewinds_reorders_and_extends_as_without_compile(name: str, way: str) -> None:
    generator = torch.Generator().manual_seed(2)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(3, VOCAB, shape, generator=generator)

    inputs = _prompts(4, 11, 7)
    pair = [open_stream(_model(name), compile=compile, restorable=True, **inputs) for compile in (False, True)]
    rows, several, single = torch.tensor([2, 0, 0]), tokens(3, 4, 3), tokens(3, 3)

    def same(*readings: Any) -> None:
        # two ways through attention in float32
        torch.testing.assert_close(readings[1].hidden, readings[0].hidden, atol=1e-4, rtol=1e-4)

    same(*(stream.branch(several) for stream in pair))
    for stream in pair:
        stream.reorder(rows)  # with the branches, which still wait
    same(*(stream.commit(torch.tensor([1, 0, 3])) for stream in pair))
    for token in single.split(1, dim=1):
        same(*(stream.extend(token) for stream in pair))
    for stream in pair:
        stream.reorder(rows)
    same(*(stream.branch(several[:, :, 0]) for stream in pair))
    if name == "llama":  # a window that has moved on cannot go back
        for stream in pair:
            stream.rewind(9)  # into the prompt
        same(*(stream.extend(single[:, :1]) for stream in pair))
        assert pair[0].length == pair[1].length == 10
    same(*(stream.extend(single) for stream in pair))
    for stream in pair:
        stream.release()


@of_recorded_steps
def test_a_text_of_unknown_length_outgrows_its_layout(way: str) -> None:
    model, inputs = _model("llama"), _prompts(5, 9)
    tokens = [
        model.generate(
            **inputs, num_beams=3, do_sample=False, max_new_tokens=NEW,
            logits_processor=[
                decoding.ContrastiveSearchLogitsProcessor(
                    model, attention_mask=inputs["attention_mask"], compile=compile
                )
            ],
        ).tolist()
        for compile in (False, True)
    ]  # fmt: skip
    assert tokens[0] == tokens[1]


@of_recorded_steps
def test_more_candidates_than_room_to_look_ahead(way: str) -> None:
    tokens = [
        decoding.generate(
            _model("llama"), **_prompts(6), penalty_alpha=0.6, top_k=VOCAB, max_new_tokens=5, compile=compile
        ).tolist()
        for compile in (False, True)
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_cache_that_is_returned_is_the_callers_own(name: str) -> None:
    model, inputs = _model(name), _prompts(5, 13)
    options = {"penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": NEW, "return_dict_in_generate": True}
    plain, captured = (
        decoding.generate(model, **inputs, output_scores=True, compile=compile, **options) for compile in (False, True)
    )
    before = [layer.keys.clone() for layer in captured.past_key_values.layers]
    decoding.generate(model, **_prompts(7, 3, seed=4), compile=True, **options)  # writes to the same layout
    for layer, other, keys in zip(captured.past_key_values.layers, plain.past_key_values.layers, before, strict=True):
        assert type(layer) is type(other)
        assert layer.keys.equal(keys)
        torch.testing.assert_close(layer.keys, other.keys, atol=1e-4, rtol=1e-4)
    for scores, others in zip(captured.scores, plain.scores, strict=True):
        torch.testing.assert_close(scores, others, atol=1e-4, rtol=1e-4)
    longer = [
        model.generate(
            output.sequences, past_key_values=output.past_key_values, max_new_tokens=5, do_sample=False,
            attention_mask=torch.cat([inputs["attention_mask"], torch.ones(2, NEW, dtype=torch.long)], dim=1),
        ).tolist()
        for output in (plain, captured)
    ]  # fmt: skip
    assert longer[0] == longer[1]


def test_what_a_reading_holds_outlives_the_next_step(way: str) -> None:
    stream = open_stream(_model("llama"), compile=True, exits=(1,), **_prompts(9))
    first = stream.extend(torch.tensor([[5]]))
    hidden, early = first.hidden.clone(), first.exits[0].clone()
    assert not stream.extend(torch.tensor([[6]])).hidden.equal(hidden)
    num_branch_tokens = stream.branch(torch.tensor([[6, 7]]))
    assert first.hidden.equal(hidden)
    assert first.exits[0].equal(early)
    one, two = num_branch_tokens.hidden[0]
    assert not one.equal(two)
    assert stream.commit(torch.tensor([1])).hidden[0].equal(two)
    stream.release()


def test_every_form_of_call_takes_it() -> None:
    model, strategy = tiny_model("llama"), ContrastiveSearch(0.6, 4)
    inputs = _prompts(9)
    expected = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=9).tolist()
    config = decoding.api.copy.deepcopy(model.generation_config)
    config.compile = True
    calls: dict[str, Any] = {
        "plugin": lambda: model.generate(**inputs, custom_generate=strategy, compile=True, max_new_tokens=9),
        "arguments": lambda: decoding.generate(
            model, **inputs, penalty_alpha=0.6, top_k=4, compile=True, max_new_tokens=9
        ),
        "config": lambda: decoding.generate(
            model, **inputs, strategy=strategy, generation_config=config, max_new_tokens=9
        ),
    }
    for name, call in calls.items():
        cuda_graph_steps._idle.clear()
        assert call().tolist() == expected, name
        assert len(_layouts(model)) == 1, name


def test_inside_and_outside_inference_mode(recorded: type[RecordedGraph]) -> None:
    model, strategy, inputs = _model("qwen2"), ContrastiveSearch(0.6, 4), _prompts(9)
    expected = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW).tolist()
    for mode in (True, False, True):
        with torch.inference_mode(mode):
            tokens = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=NEW, compile=True)
        assert tokens.tolist() == expected


@of_recorded_steps
def test_threads_share_a_model_and_no_layout(way: str) -> None:
    model, strategy = _model("llama"), ContrastiveSearch(0.6, 4)
    prompts = [_prompts(9, seed=seed) for seed in range(3)]
    expected = [
        decoding.generate(model, **prompt, strategy=strategy, max_new_tokens=NEW).tolist() for prompt in prompts
    ]
    answers: dict[int, Any] = {}

    def call(index: int) -> None:
        for _ in range(2):
            answers[index] = decoding.generate(
                model, **prompts[index], strategy=strategy, max_new_tokens=NEW, compile=True
            ).tolist()

    threads = [threading.Thread(target=call, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[index] for index in range(3)] == expected


@pytest.mark.parametrize("smallest", [16, 256])
def test_a_bucket_wastes_little(smallest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_layout, "BUCKET", smallest)
    ends = [static_layout.bucket_of(length) for length in range(1, 70_000)]
    assert ends == sorted(ends)
    assert all(length <= end for length, end in enumerate(ends, start=1))
    assert all(end - length < max(smallest, length / 8) for length, end in enumerate(ends, start=1))
    assert all(static_layout.bucket_of(end) == end for end in set(ends))
    assert len(set(ends)) <= 16 + 8 * 13
