"""Contrasts of rows with settings of their own, against each row alone with its numbers, and the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from kernel_checks import assert_equals_definition, draw_logits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from decoding.kernels.contrast import (
    contrast_log_probs,
    contrast_log_probs_naive,
    contrast_logits,
    contrast_logits_naive,
    fuse_statically,
    masked,
    multi_layer_contrast,
    multi_layer_contrast_naive,
    plausible,
    refocused,
    weighted_contrast,
    weighted_contrast_naive,
)

# The interpreter computes both sides of tl.where: inf - inf, or NaN that a row ignores, where the other is taken.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

ROWS, VOCAB, LAYERS = (2, 3), 1203, 3  # rows of two dimensions, a vocabulary of two blocks
SETTINGS = {
    "alpha": [0.0, 0.1, 1.0, 0.02, 0.0, 0.3],
    "beta": [0.5, 0.0, 1.0, 0.7, 2.0, 0.0],
    "temperature": [1.0, 0.5, 2.0, 1.0, 0.7, 3.0],
    "lower_weight": [0.6, 0.3, 0.0, 1.0, 0.9, 0.5],
    "fusion_weight": [0.7, 0.0, 0.5, 1.5, 0.4, 0.3],
    "refocus_weight": [0.0, 0.4, 1.0, 0.0, 0.37, 0.5],
}
# Which lower layers count; no one in the fourth row.
COUNTED = [[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1]]


@dataclass
class Batch:
    """Logits (..., vocab) or (layers, ..., vocab) of every reader and settings (...), of some rows."""

    logits: dict[str, Any]
    settings: dict[str, Any]

    def alone(self, row: tuple[int, int]) -> Batch:
        """Return one row with its numbers, and with the lower layers that count there."""
        rows = tuple(slice(number, number + 1) for number in row)
        counted = self.settings["layers"][:, *row]
        logits: dict[str, Any] = {name: logits[..., *rows, :] for name, logits in self.logits.items()}
        for name in ("lower", "lower_amateur"):
            logits[name] = logits[name][counted] if counted.any() else None
        logits["layer"] = self.settings["layer"][rows]
        numbers = {name: setting[row].item() for name, setting in self.settings.items() if setting.shape == ROWS}
        return Batch(logits, numbers | {"layers": None, "layer": logits["layer"]})


def _batch(dtype: torch.dtype, device: torch.device) -> Batch:
    """Draw a batch in which every reader excludes some tokens, and what a row ignores is NaN."""
    generator = torch.Generator().manual_seed(11)

    def logits(*lead: int) -> Tensor:
        drawn = draw_logits(*lead, *ROWS, VOCAB, generator=generator)
        drawn[torch.rand(drawn.shape, generator=generator) < 0.05] = -torch.inf
        return drawn.to(device, dtype)[..., :VOCAB]

    # As columns of one table: a tensor of settings may have any stride.
    table = torch.tensor(list(SETTINGS.values()), device=device).T.contiguous().view(*ROWS, len(SETTINGS))
    settings = {name: table[..., column] for column, name in enumerate(SETTINGS)}
    settings["layers"] = torch.tensor(COUNTED, device=device).view(LAYERS, *ROWS) != 0
    settings["layer"] = torch.randint(LAYERS, ROWS, generator=generator).to(device)
    readers = {
        "expert": logits(), "amateur": logits(), "guided": logits(), "other": logits(),
        "exits": logits(LAYERS), "lower": logits(LAYERS), "lower_amateur": logits(LAYERS),
    }  # fmt: skip
    readers["amateur"][settings["beta"] == 0] = torch.nan
    readers["lower"][~settings["layers"]] = readers["lower_amateur"][~settings["layers"]] = torch.nan
    readers["lower_amateur"][:, settings["lower_weight"] == 0] = torch.nan
    return Batch(readers, settings)


def _lol(function: Callable[..., Tensor], batch: Batch, fusion: str, masks: bool, **options: Any) -> Tensor:
    x, of = batch.logits, batch.settings
    return function(
        x["expert"], x["amateur"], x["guided"], x["lower"], x["lower_amateur"],
        amateur_weight=of["beta"], lower_amateur_weight=of["lower_weight"], fusion_weight=of["fusion_weight"],
        fusion=fusion, refocus_weight=of["refocus_weight"], alpha=of["alpha"] if masks else None,
        layers=of["layers"], **options,
    )  # fmt: skip


def _alpha(batch: Batch, masks: bool) -> Any:
    return batch.settings["alpha"] if masks else None


# By name: the function, given a batch, whether α masks, and options; and its definition, given the first two.
FORMS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "logits": tuple(  # type: ignore[dict-item]
        lambda b, masks, f=f, **options: f(
            b.logits["expert"], b.logits["amateur"], b.settings["beta"], _alpha(b, masks), **options
        )
        for f in (contrast_logits, contrast_logits_naive)
    ),
    "log-probs": tuple(  # type: ignore[dict-item]
        lambda b, masks, f=f, **options: f(
            b.logits["expert"], b.logits["amateur"], b.settings["beta"], b.settings["temperature"], _alpha(b, masks),
            **options,
        )
        for f in (contrast_log_probs, contrast_log_probs_naive)
    ),
    "dola": (
        lambda b, masks, **options: contrast_log_probs(
            b.logits["expert"], b.logits["exits"], alpha=_alpha(b, masks), layer=b.settings["layer"], **options
        ),
        lambda b, masks: contrast_log_probs_naive(
            b.logits["expert"],
            torch.take_along_dim(b.logits["exits"], b.settings["layer"][None, ..., None], dim=0)[0],
            alpha=_alpha(b, masks),
        ),
    ),
}  # fmt: skip
for fusion in ("static", "entropy"):
    FORMS[f"lol-{fusion}"] = tuple(  # type: ignore[assignment]
        lambda b, masks, f=f, fusion=fusion, **options: _lol(f, b, fusion, masks, **options)
        for f in (multi_layer_contrast, multi_layer_contrast_naive)
    )
EXACT = ("logits", "log-probs", "dola")  # in torch the order of operations is the same


# Half-precision logits meet the sums, and not the mask of what is summed.
@pytest.mark.parametrize(
    ("dtype", "masks"), [(torch.float32, True), (torch.bfloat16, False)], ids=["float32-alpha", "bfloat16-no-alpha"]
)
@pytest.mark.parametrize("form", FORMS)
def test_each_row_scores_as_alone_with_its_numbers(
    form: str, dtype: torch.dtype, masks: bool, backend: str, device: torch.device
) -> None:
    batch = _batch(dtype, device)
    computed, defined = FORMS[form]
    scores = computed(batch, masks, backend=backend)
    assert_equals_definition(scores, defined(batch, masks))
    rows = torch.cartesian_prod(*(torch.arange(size) for size in ROWS)).tolist()
    for row in rows[1:5] if dtype == torch.float32 else rows[::5]:
        alone = computed(batch.alone(tuple(row)), masks, backend=backend)[0, 0]
        if backend == "torch" and form in EXACT:
            assert torch.equal(scores[*row], alone)
        else:  # sums over layers, and over the blocks of a row, whose size depends on the batch
            torch.testing.assert_close(scores[*row], alone, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["lol-static", "lol-entropy"])
def test_a_lower_layer_excludes_tokens_only_where_it_counts(form: str, backend: str, device: torch.device) -> None:
    """A token that one lower layer alone excludes; rows fall back where it was the only plausible one."""
    batch = _batch(torch.float32, device)
    expert, lower = batch.logits["expert"], batch.logits["lower"]
    expert[..., 7] = batch.logits["guided"][..., 7] = 40.0  # the only plausible token of a row with α > 0
    batch.logits["amateur"][..., 7] = batch.logits["lower_amateur"][..., 7] = 0.0
    lower[..., 7] = 0.0
    lower[0, ..., 7] = -torch.inf
    computed, defined = FORMS[form]
    scores = computed(batch, True, backend=backend)
    counts = batch.settings["layers"][0]
    if form == "lol-static":
        counts = counts & (batch.settings["fusion_weight"] != 0)
    assert scores[..., 7].isneginf().tolist() == counts.tolist()
    assert scores.isfinite().any(-1).all()
    assert_equals_definition(scores, defined(batch, True))


def test_a_number_for_the_call_and_settings_of_rows_go_together(backend: str, device: torch.device) -> None:
    batch = _batch(torch.float32, device)
    expert, other, alpha = batch.logits["expert"], batch.logits["other"], batch.settings["alpha"]
    scores = contrast_logits(expert, other, 0.7, alpha, backend)
    assert_equals_definition(scores, contrast_logits_naive(expert, other, 0.7, alpha))
    scores = contrast_logits(expert, other, batch.settings["beta"], 0.1, backend)
    assert_equals_definition(scores, contrast_logits_naive(expert, other, batch.settings["beta"], 0.1))
    lower, layers = batch.logits["exits"], batch.settings["layers"]
    for options in ({"layers": layers}, {"fusion_weight": batch.settings["fusion_weight"]}):
        scores = multi_layer_contrast(expert, other, None, lower, lower, **options, alpha=0.1, backend=backend)
        assert_equals_definition(
            scores, multi_layer_contrast_naive(expert, other, None, lower, lower, **options, alpha=0.1)
        )


def test_logits_of_one_row_take_settings_without_dimensions(backend: str, device: torch.device) -> None:
    x = _batch(torch.float32, device).alone((1, 1)).logits
    expert, other = x["expert"][0, 0], x["other"][0, 0]
    scores = contrast_logits(expert, other, torch.tensor(0.5, device=device), torch.tensor(0.1, device=device), backend)
    assert_equals_definition(scores, contrast_logits_naive(expert, other, 0.5, 0.1))
    lower, layers = x["exits"][:, 0, 0], torch.tensor([True, False, True], device=device)
    scores = multi_layer_contrast(expert, other, None, lower, lower, layers=layers, backend=backend)
    assert_equals_definition(scores, multi_layer_contrast_naive(expert, other, None, lower[::2], lower[::2]))


@pytest.mark.parametrize("form", ["logits", "log_probs"])
@pytest.mark.parametrize("weights", [(1.5, -0.5), (1.0, -0.7), (0.5, 0.3)])
def test_a_weighted_sum_takes_temperatures_and_alpha_of_each_row(weights: tuple[float, float], form: str) -> None:
    batch = _batch(torch.bfloat16, torch.device("cpu"))
    readers, of = [batch.logits["expert"], batch.logits["other"]], batch.settings
    for temperatures in ([1.0, of["temperature"]], [of["temperature"], 2.0], None):
        scores = weighted_contrast(readers, weights, form, temperatures, of["alpha"])
        assert_equals_definition(scores, weighted_contrast_naive(readers, weights, form, temperatures, of["alpha"]))
        for row in torch.cartesian_prod(*(torch.arange(size) for size in ROWS)).tolist():
            numbers = temperatures and [float(t[*row]) if isinstance(t, Tensor) else t for t in temperatures]
            alone = weighted_contrast([x[*row] for x in readers], weights, form, numbers, float(of["alpha"][*row]))
            torch.testing.assert_close(scores[*row], alone, atol=2e-5, rtol=1e-5)


def test_the_parts_of_a_contrast_take_settings_of_each_row() -> None:
    batch = _batch(torch.float32, torch.device("cpu"))
    x, of = batch.logits, batch.settings
    x["expert"][0, 1] = -torch.inf  # no token is left
    x["expert"][1, 0, 3] = torch.inf
    fused = fuse_statically(x["expert"], x["lower"], of["fusion_weight"], of["layers"])
    without_layers = fuse_statically(x["expert"], x["exits"], of["fusion_weight"])
    for row in torch.cartesian_prod(*(torch.arange(size) for size in ROWS)).tolist():
        index, alone = tuple(row), batch.alone(tuple(row))
        own, numbers = {name: y[0, 0] for name, y in alone.logits.items() if y is not None}, alone.settings
        expert, guided, alpha = own["expert"], own["guided"], numbers["alpha"]
        assert torch.equal(plausible(x["expert"], of["alpha"])[index], plausible(expert, alpha))
        assert torch.equal(masked(x["other"], x["expert"], of["alpha"])[index], masked(own["other"], expert, alpha))
        gamma = numbers["refocus_weight"]
        assert torch.equal(
            refocused(x["expert"], x["guided"], of["refocus_weight"])[index], refocused(expert, guided, gamma)
        )
        lower = alone.logits["lower"]
        final = expert if lower is None else fuse_statically(expert, lower[:, 0, 0], numbers["fusion_weight"])
        torch.testing.assert_close(fused[index], final)
        torch.testing.assert_close(
            without_layers[index], fuse_statically(expert, x["exits"][:, *row], numbers["fusion_weight"])
        )


def test_a_token_at_the_limit_of_plausibility_passes_in_a_tensor_as_with_a_number() -> None:
    """The float32 logarithm of one number in a thousand is rounded otherwise than the float64 one."""
    alphas = torch.rand(20000, generator=torch.Generator().manual_seed(4))
    limits = torch.tensor([math.log(alpha) for alpha in alphas.tolist()])
    logits = torch.stack([torch.zeros_like(limits), limits, limits.nextafter(torch.tensor(-torch.inf))], -1)
    assert plausible(logits, alphas).tolist() == [[True, True, False]] * len(alphas)
    for row, alpha in zip(logits[:50], alphas[:50].tolist(), strict=True):
        assert plausible(row, alpha).tolist() == [True, True, False]


class _MadeFromNumbers(TorchDispatchMode):
    """Counts the tensors that ``torch.tensor`` makes, each a copy from the host where it is for a GPU."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten.lift_fresh.default
        return func(*args, **(kwargs or {}))


def test_plain_numbers_are_not_made_into_tensors() -> None:
    x = _batch(torch.float32, torch.device("cpu")).logits
    expert, other, guided, lower = x["expert"], x["other"], x["guided"], x["exits"]
    with _MadeFromNumbers() as made:
        torch.tensor(1.0)
        contrast_logits(expert, other, 0.5, 0.1)
        contrast_log_probs(expert, other, 0.5, 2.0, 0.1)
        for fusion in ("static", "entropy"):
            multi_layer_contrast(expert, other, guided, lower, lower, fusion=fusion, alpha=0.1)
        weighted_contrast([expert, other, guided], [1.0, 0.5, -0.5], "log_probs", [1.0, 2.0, 1.0], 0.1)
    assert made.count == 1  # the one made here


TWO, THREE = torch.zeros(2, 3), torch.zeros(3)
GOT = "must be a number, or one for each row, (2,) on cpu, got (3,) on cpu"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: contrast_logits(TWO, TWO, THREE), f"beta {GOT}"),
        (lambda: contrast_logits(TWO, TWO, 0.5, torch.zeros(2, 1)), "alpha must be a number, or one for each"),
        (lambda: contrast_logits(TWO, TWO, torch.tensor(0.5)), "got () on cpu"),
        (lambda: contrast_logits(TWO, TWO, torch.zeros(2, device="meta")), "(2,) on cpu, got (2,) on meta"),
        (lambda: contrast_log_probs(TWO, TWO, amateur_temperature=THREE), f"amateur_temperature {GOT}"),
        (lambda: multi_layer_contrast(TWO, TWO, refocus_weight=THREE), f"refocus_weight {GOT}"),
        (lambda: multi_layer_contrast(TWO, TWO, fusion_weight=THREE), f"fusion_weight {GOT}"),
        (
            lambda: multi_layer_contrast(TWO, TWO, lower=TWO[None], lower_amateur=TWO[None], layers=torch.ones(1, 2)),
            "layers must be one bool for each lower layer and row, (1, 2) on cpu, got torch.float32 (1, 2) on cpu",
        ),
        (
            lambda: multi_layer_contrast(TWO, TWO, layers=torch.ones(1, 2, dtype=torch.bool)),
            "layers must be one bool for each lower layer and row, (0, 2) on cpu, got torch.bool (1, 2) on cpu",
        ),
        (lambda: weighted_contrast([TWO, TWO], [1.0, THREE]), f"weight of reader 1 {GOT}"),
        (lambda: weighted_contrast([TWO, TWO], [1.0, 1.0], "logits", [THREE, 1.0]), f"temperature of reader 0 {GOT}"),
        (lambda: weighted_contrast([TWO, TWO], [1.0, 1.0], alpha=THREE), f"alpha {GOT}"),
        (lambda: plausible(TWO, THREE), f"alpha {GOT}"),
        (lambda: masked(TWO, TWO, THREE), f"alpha {GOT}"),
        (lambda: refocused(TWO, TWO, THREE), f"refocus_weight {GOT}"),
        (lambda: fuse_statically(TWO, TWO[None], THREE), f"fusion_weight {GOT}"),
    ],
)  # fmt: skip
def test_settings_that_are_not_one_a_row_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
