"""The stream's four verbs against full recomputation, in every way of branching."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from streams import stream_with_way
from tiny_models import random_ids, tiny_model
from torch import Tensor

import decoding
from decoding import InputError, ModelError, Stream
from decoding.cache.growing import GrowingLayer
from decoding.cache.layer_kinds import kind_of
from decoding.capabilities.branching import branching_of
from decoding.models.structure import _structures, inspect_model
from decoding.stream.ways import Way

pytestmark = pytest.mark.filterwarnings("ignore::decoding.DecodingWarning")  # of what is read anew

SHARING = ["llama", "mistral-sliding", "gemma2", "gpt2", "opt", "cohere"]
WAYS: list[tuple[str, Way]] = [
    *((name, "shared prefix") for name in SHARING),
    *((name, "fork") for name in ["llama", "mistral-sliding", "gemma2", "bloom", "mamba"]),
    *((name, "recompute") for name in ("llama", "gemma2", "bloom", "mamba")),
]


@torch.no_grad()
def _recomputed(model: Any, ids: Tensor) -> Tensor:
    """(length, dim) last hidden states of one row, read anew."""
    return model(ids[None], use_cache=False, output_hidden_states=True).hidden_states[-1][0]


def _open(model: Any, way: Way, **options: Any) -> tuple[Stream, list[Tensor]]:
    """A stream over two rows of 5 and 13 tokens (longer than the sliding windows), the first left-padded."""
    rows = [random_ids(5, seed=1), random_ids(13, seed=2)]
    padded = torch.stack([torch.cat([torch.zeros(8, dtype=torch.long), rows[0]]), rows[1]])
    mask = torch.ones_like(padded)
    mask[0, :8] = 0
    if "mamba" in type(model).__name__.lower():  # its convolution reads padding as text: rows of one length
        rows = list(random_ids(2, 13, seed=3))
        padded, mask = torch.stack(rows), torch.ones(2, 13, dtype=torch.long)
    return stream_with_way(model, way, input_ids=padded, attention_mask=mask, **options), rows


def _close(value: Tensor, reference: Tensor) -> None:
    torch.testing.assert_close(value, reference, atol=2e-4, rtol=1e-3)  # float32, sums in another order


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_the_verbs_equal_reading_everything_anew(name: str, way: Way) -> None:
    model = tiny_model(name)
    stream, rows = _open(model, way)
    for row, text in enumerate(rows):
        _close(stream.prompt.hidden[row, -len(text) :], _recomputed(model, text))
    for step in range(2):
        candidates, chosen = random_ids(2, 4, seed=10 + step), torch.tensor([step, 3 - step])
        hidden = stream.branch(candidates).hidden
        assert hidden.shape[:3] == (2, 4, 1)
        for row in range(2):
            for branch in range(4):
                _close(
                    hidden[row, branch, 0],
                    _recomputed(model, torch.cat([rows[row], candidates[row, branch, None]]))[-1],
                )
        kept = stream.commit(chosen)
        rows = [torch.cat([rows[row], candidates[row, chosen[row], None]]) for row in range(2)]
        _close(kept.hidden[:, -1], torch.stack([_recomputed(model, text)[-1] for text in rows]))
        with torch.no_grad():
            _close(stream.logits(kept), torch.stack([model(text[None]).logits[0, -1] for text in rows]))
    tokens = random_ids(2, 3, seed=20)
    hidden = stream.extend(tokens).hidden
    for row in range(2):
        rows[row] = torch.cat([rows[row], tokens[row]])
        _close(hidden[row], _recomputed(model, rows[row])[-3:])
    assert stream.length == len(rows[1])


# Several tokens a branch need positions, masks and windows of their own where branches share a prefix. Where rows are
# forked or read anew they are the rows' own: one with windows and one whose positions are biases stand for all.
@pytest.mark.parametrize(
    ("name", "way"),
    [way for way in WAYS if way[1] == "shared prefix" or way[0] in ("gemma2", "bloom")],
)
def test_branches_of_several_tokens(name: str, way: Way) -> None:
    model = tiny_model(name)
    stream, rows = _open(model, way)
    answers = random_ids(2, 3, 5, seed=30)
    hidden = stream.branch(answers).hidden  # (2, 3, 5, dim)
    for row in range(2):
        for branch in range(3):
            _close(hidden[row, branch], _recomputed(model, torch.cat([rows[row], answers[row, branch]]))[-5:])
    kept = stream.commit(torch.tensor([2, 0]))
    rows = [torch.cat([rows[0], answers[0, 2]]), torch.cat([rows[1], answers[1, 0]])]
    _close(kept.hidden[0], _recomputed(model, rows[0])[-5:])
    token = random_ids(2, 1, seed=31)
    _close(stream.extend(token).hidden[1, 0], _recomputed(model, torch.cat([rows[1], token[1]]))[-1])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(way for way in WAYS if way[1] == "shared prefix"),
        ("gemma2", "fork"),
        ("mamba", "fork"),
        ("llama", "recompute"),
    ],
)
def test_a_branch_that_is_not_kept_leaves_no_trace(name: str, way: Way) -> None:
    model = tiny_model(name)
    stream, rows = _open(model, way, restorable=True)
    stream.branch(random_ids(2, 4, seed=40))
    stream.branch(random_ids(2, 4, seed=41))
    token = random_ids(2, 1, seed=42)
    hidden = stream.extend(token).hidden
    for row in range(2):
        _close(hidden[row, 0], _recomputed(model, torch.cat([rows[row], token[row]]))[-1])


@pytest.mark.parametrize("name", ["llama", "gpt2", "bloom"])
def test_rewinding_forgets_what_came_after(name: str) -> None:
    model = tiny_model(name)
    stream, rows = _open(model, branching_of(model).way)
    stream.extend(random_ids(2, 6, seed=50))
    stream.rewind(13)
    token = random_ids(2, 1, seed=51)
    hidden = stream.extend(token).hidden
    for row in range(2):
        _close(hidden[row, 0], _recomputed(model, torch.cat([rows[row], token[row]]))[-1])
    with pytest.raises(InputError, match=r"rewind\(99\): the stream has read 14 tokens"):
        stream.rewind(99)


def test_a_cache_that_cannot_go_back_says_so() -> None:
    stream, _ = _open(tiny_model("mamba"), "fork")
    with pytest.raises(ModelError, match="its cache cannot be rewound by 3 tokens"):
        stream.rewind(10)


def test_commit_without_branch_says_so() -> None:
    stream, _ = _open(tiny_model("llama"), "shared prefix")
    with pytest.raises(InputError, match="without branch"):
        stream.commit(torch.tensor([0, 0]))


def test_a_shared_branch_copies_no_prefix() -> None:
    stream, _ = _open(tiny_model("llama"), "shared prefix")
    stream.extend(random_ids(2, 1))
    before = [layer.keys.data_ptr() for layer in stream.cache.layers]
    for step in range(20):
        stream.branch(random_ids(2, 4, seed=step))
        stream.commit(torch.tensor([0, 3]))
    assert [layer.keys.data_ptr() for layer in stream.cache.layers] == before


def test_grouped_query_heads_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    attend, heads = torch.nn.functional.scaled_dot_product_attention, []

    def watched(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        heads.append(key.shape[1])
        return attend(query, key, *args, **kwargs)

    stream, _ = _open(tiny_model("llama"), "shared prefix")  # 4 query heads, 2 key heads
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    stream.branch(random_ids(2, 4))
    assert heads == [2, 2, 2]


@pytest.mark.parametrize("n", [1, 3])
def test_both_ways_of_moving_the_winners_are_the_same(n: int) -> None:
    """Streams on a GPU gather, for they may not ask which branch won; those on a CPU move row by row."""
    before, entries = torch.randn(4, 2, 7, 3), torch.randn(4, 2, 5 * n, 3)
    branch = torch.tensor([3, 0, 1, 4])
    layers = [GrowingLayer(), GrowingLayer()]
    for layer, winners in zip(layers, (branch.tolist(), None), strict=True):
        for states in (before, entries):
            layer.update(states, states)
        kind_of(layer).keep(layer, 5 * n, branch[:, None] * n + torch.arange(n), winners)
    expected = torch.stack([entries[row, :, i * n : (i + 1) * n] for row, i in enumerate(branch.tolist())])
    for layer in layers:
        for kept in (layer.keys, layer.values):
            assert torch.equal(kept, torch.cat([before, expected], dim=2))


def test_only_the_kept_hidden_state_goes_through_the_head() -> None:
    model = tiny_model("llama")
    stream, _ = _open(model, "shared prefix")
    seen: list[int] = []
    handle = model.lm_head.register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].shape[:-1].numel())
    )
    stream.branch(random_ids(2, 4))
    assert seen == []
    stream.logits(stream.commit(torch.tensor([1, 2])))
    handle.remove()
    assert seen == [2]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("llama", "head"),
        ("gemma2", "head, soft-capped"),
        ("cohere", "head, times logit_scale"),
        ("t5", "head of hidden / sqrt(d_model)"),
        ("bart", "head"),
    ],
)
def test_the_way_from_hidden_states_to_logits_is_found(name: str, recipe: str) -> None:
    found = inspect_model(tiny_model(name))
    assert (found.head_transform, found.separable) == (recipe, True)
    assert found.no_early_exit is None


def test_a_head_that_nobody_knows_is_left_to_the_model() -> None:
    """The model's own forward serves then: same tokens, only slower."""
    model = tiny_model("llama")
    ids = random_ids(1, 9)
    expected = decoding.generate(model, ids, max_new_tokens=8, penalty_alpha=0.6, top_k=4)
    own_forward = model.forward
    # logits that depend on more than the head's input: not rebuilt from it
    model.forward = lambda *args, **kwargs: _shifted(own_forward(*args, **kwargs))
    _structures.discard(model, lambda key: True)  # as after any change of a model that keeps its dtype and device
    assert not inspect_model(model).separable
    assert decoding.generate(model, ids, max_new_tokens=8, penalty_alpha=0.6, top_k=4).tolist() == expected.tolist()


def _shifted(output: Any) -> Any:
    output.logits = output.logits + 7.0 * output.logits.new_ones(output.logits.shape[-1])
    return output
