"""Linear layers over a handful of rows: which form of the product is computed, and what stays as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor, nn

from decoding import ContrastiveSearch, OptionError, generate
from decoding.kernels.few_rows import why_not_compiled
from decoding.models import linear_forms, small_batch_linear
from decoding.models.linear_forms import ENVIRONMENT_VARIABLE, FORMS
from decoding.models.small_batch_linear import SmallBatchLinear, measured_forms

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _without_autograd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(small_batch_linear, "_measured", {})
    with torch.no_grad():
        yield


CHANGED = ["compiled", "transposed", "onednn", "blocks", "packed"]


@pytest.fixture(params=CHANGED)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A form that every layer takes, whatever is quickest here."""
    if request.param == "compiled" and why_not_compiled() is not None:
        pytest.skip(f"no kernel: {why_not_compiled()}")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the forms other than torch's own that are computed, in order."""
    names: list[str] = []

    def recording(name: str) -> Any:
        form = FORMS[name]
        return lambda *given: names.append(name) or form(*given)

    for name in CHANGED:
        monkeypatch.setitem(FORMS, name, recording(name))
    return names


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [301, 48])
@pytest.mark.parametrize("shape", [(1,), (2,), (16,), (17,), (1, 4), (2, 3), (1, 2, 2)])
def test_the_product_is_that_of_the_layer(
    shape: tuple[int, ...], outputs: int, bias: bool, form: str, computed: list[str]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, outputs, bias=bias)
    states = torch.randn(*shape, 48)
    rows = states[..., 0].numel()
    with SmallBatchLinear([layer]).quickest(rows, CPU):
        product = layer(states)
    assert computed == ([form] if rows <= 16 else [])
    assert product.shape == (*shape, outputs)
    assert product.is_contiguous()
    # a float32 sum over 48 products in another order
    torch.testing.assert_close(product, layer(states), rtol=1e-5, atol=1e-5)


def test_rows_that_a_view_spreads_are_computed_too(form: str) -> None:
    layer, states = nn.Linear(8, 5), torch.randn(8, 4, 2).permute(1, 2, 0)  # no view of it is (rows, 8)
    with SmallBatchLinear([layer]).quickest(8, CPU):
        product = layer(states)
    torch.testing.assert_close(product, layer(states), rtol=1e-5, atol=1e-5)


class Packed(nn.Parameter):
    """Stands for a quantised or a distributed weight, which computes its product itself."""


class Scaled(nn.Linear):
    """A layer with a forward of its own."""

    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


def wrapped() -> nn.Linear:
    """A layer whose forward was replaced, as accelerate does."""
    layer = nn.Linear(8, 5)
    forward = layer.forward
    layer.forward = lambda states: forward(states)
    return layer


def packed() -> nn.Linear:
    layer = nn.Linear(8, 5)
    layer.weight = Packed(layer.weight.data)
    return layer


OTHERS = {
    "half": lambda: nn.Linear(8, 5).bfloat16(),
    "packed": packed,
    "forward of its own": lambda: Scaled(8, 5),
    "wrapped": wrapped,
    "compiled": lambda: torch.compile(nn.Linear(8, 5), backend="eager"),
    "compiled in place": lambda: (layer := nn.Linear(8, 5), layer.compile(backend="eager"))[0],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_layer_that_is_not_plain_is_left_alone(kind: str, form: str, computed: list[str]) -> None:
    layer = OTHERS[kind]()
    states = torch.randn(3, 8, dtype=layer.weight.dtype)
    before = sorted(vars(layer))
    with SmallBatchLinear(layer.modules()).quickest(3, CPU):
        assert sorted(vars(layer)) == before
        product = layer(states)
    assert not computed
    assert torch.equal(product, layer(states))


def test_hooks_and_the_layer_itself_stay(form: str, computed: list[str]) -> None:
    layer = nn.Linear(8, 5)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    before = sorted(vars(layer))

    def interrupted() -> None:
        with SmallBatchLinear([layer]).quickest(3, CPU):
            layer(torch.randn(3, 8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(seen) == len(computed) == 1
    assert sorted(vars(layer)) == before


def test_other_rows_and_other_threads_compute_torchs_own(form: str, computed: list[str]) -> None:
    layer, states = nn.Linear(8, 5), torch.randn(3, 8)
    with SmallBatchLinear([layer]).quickest(3, CPU):
        layer(states[:2])
        elsewhere = threading.Thread(target=lambda: layer(states))
        elsewhere.start()
        elsewhere.join()
        assert not computed
        layer(states)
    layer(states)
    assert len(computed) == 1


def test_two_threads_share_a_layer(form: str) -> None:
    """Each thread's end leaves the other's layers as that one set them."""
    layer, inside, leave = nn.Linear(8, 5), threading.Event(), threading.Event()

    def other() -> None:
        with torch.no_grad(), SmallBatchLinear([layer]).quickest(3, CPU):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with SmallBatchLinear([layer]).quickest(3, CPU):
        pass
    assert "forward" in vars(layer)  # the other thread still reads
    leave.set()
    thread.join()
    assert "forward" not in vars(layer)


class Slow:
    """A clock that makes some forms slow, in place of the machine's noise."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = {FORMS[name]: cost for name, cost in {"packed": 0.1, "compiled": 0.1, **seconds}.items()}
        self.asked = 0

    def __call__(self, product: Any, states: Tensor, layer: nn.Linear) -> float:
        self.asked += 1
        product(states, layer)
        return self.seconds[product]


@pytest.fixture(params=[False, True], ids=["no compiler", "compiler"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """A machine with or without a C compiler, in place of the one at hand."""
    monkeypatch.setattr(linear_forms, "why_not_compiled", lambda: None if request.param else "no C compiler")
    monkeypatch.setitem(FORMS, "compiled", lambda states, layer: nn.functional.linear(states, layer.weight, layer.bias))
    return request.param


@pytest.mark.parametrize(
    ("seconds", "without", "with_compiler"),
    [
        ({"compiled": 0.4, "linear": 1.0, "transposed": 0.5, "onednn": 0.7}, "transposed", "compiled"),
        ({"compiled": 0.9, "linear": 1.0, "transposed": 2.0, "onednn": 0.7}, "onednn", "onednn"),
        ({"compiled": 1.1, "linear": 1.0, "transposed": 0.9, "onednn": 0.95}, "linear", "compiled"),  # within the noise
    ],
)
@pytest.mark.parametrize("rows", [1, 4])
def test_the_quickest_form_is_measured_once(
    seconds: dict[str, float],
    without: str,
    with_compiler: str,
    rows: int,
    compiler: bool,
    monkeypatch: pytest.MonkeyPatch,
    computed: list[str],
) -> None:
    clock = Slow({"blocks": 2.0, **seconds})
    monkeypatch.setattr(small_batch_linear, "_seconds", clock)
    chosen = with_compiler if compiler else without
    measured = 4 + compiler  # forms; those that need copies are worth nothing to so few numbers
    if rows == 1:  # of one row torch's own and the compiled form are all there are
        chosen, measured = ("compiled", 2) if compiler else ("linear", 0)
    layers = [nn.Linear(8, 5) for _ in range(3)]
    for _ in range(2):
        with SmallBatchLinear(layers).quickest(rows, CPU):
            computed.clear()
            layers[2](torch.randn(rows, 8))
            assert computed == ([] if chosen == "linear" else [chosen])
    assert clock.asked == 3 * measured * (1 + small_batch_linear.REPEATS)
    assert measured_forms(nn.Sequential(*layers), rows) == {chosen: 3}
    assert clock.asked == 3 * measured * (1 + small_batch_linear.REPEATS)


@pytest.mark.parametrize("setting", ["auto", "uncompiled", "unpacked"])
def test_copies_are_for_machines_without_a_compiler(
    setting: str, compiler: bool, monkeypatch: pytest.MonkeyPatch, computed: list[str]
) -> None:
    monkeypatch.setattr(
        small_batch_linear, "_seconds", Slow({"linear": 1.0, "blocks": 1.0, "transposed": 1.0, "onednn": 1.0})
    )
    monkeypatch.setattr(small_batch_linear, "has_room_for_copies", lambda layers: True)
    monkeypatch.setattr(small_batch_linear, "PATIENCE", 1)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, setting)
    layer = nn.Linear(8, 5)
    linear = SmallBatchLinear([layer])
    for _ in range(2):
        computed.clear()
        with linear.quickest(4, CPU):
            layer(torch.randn(4, 8))
    compiled = compiler and setting != "uncompiled"
    assert computed[-1:] == (["compiled"] if compiled else [] if setting == "unpacked" else ["packed"])


def test_deterministic_algorithms_do_not_depend_on_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Slow({"linear": 1.0, "transposed": 0.5, "onednn": 0.7, "blocks": 1.0})
    monkeypatch.setattr(small_batch_linear, "_seconds", clock)
    torch.use_deterministic_algorithms(True)
    try:
        assert measured_forms(nn.Linear(8, 5), 4) == {"linear": 1}
    finally:
        torch.use_deterministic_algorithms(False)
    assert not clock.asked


def test_an_unknown_form_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "fast")
    names = "auto, unpacked, uncompiled, compiled, linear, transposed, onednn, blocks, packed"
    with pytest.raises(OptionError, match=f"one of {names}, got 'fast'"):
        SmallBatchLinear([nn.Linear(8, 5)]).quickest(4, CPU)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_the_tokens_are_those_of_untouched_layers(
    name: str, form: str, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name)
    prompt = torch.randint(10, 100, (1, 9), generator=torch.Generator().manual_seed(1))
    settings = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 8, "do_sample": False}
    tokens = generate(model, prompt, strategy=ContrastiveSearch(0.6, 5), **settings)
    assert computed
    computed.clear()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "linear")
    assert torch.equal(tokens, generate(model, prompt, strategy=ContrastiveSearch(0.6, 5), **settings))
    assert not computed
