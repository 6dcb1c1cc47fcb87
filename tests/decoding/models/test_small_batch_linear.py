"""Linear layers over a handful of rows: what the CPU is spared, and what stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_models import tiny_model
from torch import nn

from decoding import ContrastiveSearch, generate
from decoding.models import small_batch_linear

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    """With one thread nothing is turned round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2,), (9,), (10,), (1, 4), (2, 3), (1, 2, 2)])
def test_the_product_is_that_of_the_layer(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 301, bias=bias)
    states = torch.randn(*shape, 48)
    with small_batch_linear.small_batch_linear(4, CPU):
        product = layer(states)
    assert product.shape == (*shape, 301)
    assert product.is_contiguous()
    # a float32 sum over 48 products in another order
    torch.testing.assert_close(product, layer(states), rtol=1e-5, atol=1e-5)


def test_only_plain_float32_weights_are_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[int] = []
    linear = small_batch_linear._linear
    monkeypatch.setattr(small_batch_linear, "_linear", lambda *given: turned.append(1) or linear(*given))

    class Packed(nn.Parameter):
        """Stands for a quantised or a distributed weight, which computes its product itself."""

    states = torch.randn(3, 8)
    plain, half, packed = nn.Linear(8, 5), nn.Linear(8, 5).bfloat16(), nn.Linear(8, 5)
    packed.weight = Packed(packed.weight.data)
    with small_batch_linear.small_batch_linear(3, CPU):
        plain(states)
        assert len(turned) == 1
        half(states.bfloat16())
        packed(states)
    plain(states)
    with small_batch_linear.small_batch_linear(64, CPU):
        plain(states)
    assert len(turned) == 1


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_tokens_are_those_of_untouched_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(name)
    prompt = torch.randint(10, 100, (1, 9), generator=torch.Generator().manual_seed(1))
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    tokens = generate(model, prompt, strategy=ContrastiveSearch(0.6, 5), **settings)
    monkeypatch.setattr(small_batch_linear, "ROWS", range(0))
    assert torch.equal(tokens, generate(model, prompt, strategy=ContrastiveSearch(0.6, 5), **settings))


def test_a_layer_that_its_user_compiled_is_left_to_its_compiler() -> None:
    layer = nn.Linear(8, 5)
    compiled = torch.compile(layer, backend="eager")
    for rows in (3, 4, 5):  # the second and third are traced with a symbolic number of rows
        states = torch.randn(rows, 8)
        with small_batch_linear.small_batch_linear(rows, CPU):
            assert torch.equal(compiled(states), layer(states))
