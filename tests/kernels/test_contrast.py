"""Every contrast of the family against its naive definition, in torch and as a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import assert_equals_definition, draw_logits, logits_id
from torch import Tensor

from decoding.kernels.contrast import (
    contrast_log_probs,
    contrast_log_probs_naive,
    contrast_logits,
    contrast_logits_naive,
    multi_layer_contrast,
    multi_layer_contrast_naive,
)

# The interpreter computes both sides of tl.where: inf - inf where the other is taken.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

SHAPES = [(2, 1003, 3), (1, 2048, 1), (5, 517, 2), (1, 5000, 2), (2, 3, 130, 2)]  # batch, (time,) vocab, layers


class Inputs:
    """Logits of every reader, in rows with NaN between them."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, excluded: float = 0.0) -> None:
        *rows, vocab, layers = shape
        generator = torch.Generator().manual_seed(sum(shape))

        def logits(*lead: int) -> Tensor:
            drawn = draw_logits(*lead, *rows, vocab, generator=generator)
            if excluded:
                drawn[torch.rand(drawn.shape, generator=generator) < excluded] = -torch.inf
            return drawn.to(device, dtype)[..., :vocab]

        self.expert, self.amateur, self.guided = logits(), logits(), logits()
        self.lower, self.lower_amateur = logits(layers), logits(layers)
        self.layer = torch.randint(layers, tuple(rows), generator=generator).to(device)

    @property
    def chosen(self) -> Tensor:
        return torch.take_along_dim(self.lower, self.layer[None, ..., None], dim=0)[0]


LOL = {"amateur_weight": 0.8, "lower_amateur_weight": 0.6, "fusion_weight": 0.7, "refocus_weight": 0.4}
Form = Callable[..., Tensor]
# By name: the function, given inputs, alpha and a backend; and its definition, given inputs and alpha.
FORMS: dict[str, tuple[Form, Form]] = {
    "logits": (
        lambda x, alpha, backend: contrast_logits(x.expert, x.amateur, 0.5, alpha, backend),
        lambda x, alpha: contrast_logits_naive(x.expert, x.amateur, 0.5, alpha),
    ),
    "log-probs": (
        lambda x, alpha, backend: contrast_log_probs(x.expert, x.amateur, 0.8, 0.5, alpha, backend=backend),
        lambda x, alpha: contrast_log_probs_naive(x.expert, x.amateur, 0.8, 0.5, alpha),
    ),
    "dola": (
        lambda x, alpha, backend: contrast_log_probs(x.expert, x.lower, alpha=alpha, layer=x.layer, backend=backend),
        lambda x, alpha: contrast_log_probs_naive(x.expert, x.chosen, alpha=alpha),
    ),
    "refocused": (
        lambda x, alpha, backend: multi_layer_contrast(
            x.expert, x.amateur, x.guided, **LOL, alpha=alpha, backend=backend
        ),
        lambda x, alpha: multi_layer_contrast_naive(x.expert, x.amateur, x.guided, **LOL, alpha=alpha),
    ),
}
for fusion in ("static", "entropy"):
    for guidance in (False, True):

        def _computed(x: Any, alpha: Any, backend: str, fusion: str = fusion, guidance: bool = guidance) -> Tensor:
            guided = x.guided if guidance else None
            return multi_layer_contrast(
                x.expert,
                x.amateur,
                guided,
                x.lower,
                x.lower_amateur,
                **LOL,
                fusion=fusion,
                alpha=alpha,
                backend=backend,
            )

        def _defined(x: Any, alpha: Any, fusion: str = fusion, guidance: bool = guidance) -> Tensor:
            guided = x.guided if guidance else None
            return multi_layer_contrast_naive(
                x.expert, x.amateur, guided, x.lower, x.lower_amateur, **LOL, fusion=fusion, alpha=alpha
            )

        FORMS[f"{fusion}{'-refocused' if guidance else ''}"] = (_computed, _defined)


# Every form on two blocks of three rows, and one form of each kernel on each other shape and dtype: how rows are cut
# into blocks, and how logits are read, does not depend on the form.
ON_OTHERS = {
    (SHAPES[1], torch.float32): ("dola", "entropy-refocused"),
    (SHAPES[2], torch.float32): ("log-probs", "static"),
    (SHAPES[3], torch.float32): ("logits", "entropy"),
    (SHAPES[4], torch.float32): ("dola", "static-refocused"),
    (SHAPES[0], torch.bfloat16): ("log-probs", "entropy-refocused"),
    (SHAPES[4], torch.float16): ("refocused", "static"),
}
CASES = [(form, SHAPES[0], torch.float32) for form in FORMS]
CASES += [(form, *of) for of, forms in ON_OTHERS.items() for form in forms]


@pytest.mark.parametrize(("form", "shape", "dtype"), CASES, ids=logits_id)
def test_every_form_equals_its_definition(
    form: str, shape: tuple[int, ...], dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    inputs = Inputs(shape, dtype, device)
    computed, defined = FORMS[form]
    assert_equals_definition(computed(inputs, 0.05, backend), defined(inputs, 0.05))


# No mask, and one that leaves out the excluded alone, for a form of each kernel.
@pytest.mark.parametrize(
    ("form", "alpha"),
    [*((form, 1e-3) for form in FORMS), *((form, alpha) for form in ("log-probs", "entropy") for alpha in (None, 0.0))],
)
def test_a_token_that_the_expert_excludes_stays_excluded(
    form: str, alpha: float | None, backend: str, device: torch.device
) -> None:
    inputs = Inputs((2, 1200, 2), torch.float32, device, excluded=0.1)
    computed, defined = FORMS[form]
    scores = computed(inputs, alpha, backend)
    assert not scores.isnan().any()
    assert (scores[inputs.expert == -torch.inf] == -torch.inf).all()
    assert_equals_definition(scores, defined(inputs, alpha))


@pytest.mark.parametrize(("form", "alpha"), [("static", 1.0), ("entropy-refocused", 0.02)])
def test_plausibility_is_computed_again_where_a_lower_layer_excludes_every_plausible_token(
    form: str, alpha: float, backend: str, device: torch.device
) -> None:
    """Five rows: the first falls back, the fourth with its last block only, and the last has no token left at all."""
    x = Inputs((5, 2600, 2), torch.float32, device)
    refocused = torch.lerp(x.expert, x.guided, 1 + LOL["refocus_weight"]) if "refocused" in form else x.expert
    plausible = refocused >= refocused.amax(-1, keepdim=True) + math.log(alpha)
    x.lower[1, 0, plausible[0]] = -torch.inf
    x.lower[0, 3, plausible[3]] = -torch.inf
    x.lower[0, 3, :2100] = -torch.inf
    x.lower[0, 4, ::2] = x.lower[1, 4, 1::2] = -torch.inf
    computed, defined = FORMS[form]
    scores = computed(x, alpha, backend)
    left = scores > -torch.inf
    assert [bool(row.any()) for row in left] == [True, True, True, True, False]
    assert not (left & plausible)[[0, 3]].any()
    assert not left[3, :2100].any()
    assert torch.equal(left[1:3], plausible[1:3])
    assert_equals_definition(scores, defined(x, alpha))


@pytest.mark.parametrize("form", FORMS)
def test_without_weight_the_amateur_is_ignored(form: str, backend: str, device: torch.device) -> None:
    x = Inputs((2, 700, 2), torch.float32, device)
    for logits in (x.amateur, x.lower_amateur):
        logits[..., ::7] = -torch.inf
    if form == "logits":
        assert_equals_definition(
            contrast_logits(x.expert, x.amateur, 0.0, 0.1, backend), contrast_logits_naive(x.expert, x.expert, 0.0, 0.1)
        )
    elif form in ("log-probs", "dola"):
        expected = contrast_log_probs_naive(x.expert, x.expert, 0.0)
        assert_equals_definition(contrast_log_probs(x.expert, x.amateur, 0.0, backend=backend), expected)
    else:
        settings = LOL | {"amateur_weight": 0.0, "lower_amateur_weight": 0.0}
        fusion = "entropy" if "entropy" in form else "static"
        scores = multi_layer_contrast(
            x.expert, x.amateur, x.guided, x.lower, x.lower_amateur, **settings, fusion=fusion, backend=backend
        )
        assert_equals_definition(
            scores,
            multi_layer_contrast_naive(x.expert, x.expert, x.guided, x.lower, x.lower, **settings, fusion=fusion),
        )


@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guided"])
def test_with_alpha_one_the_best_token_is_left(guidance: bool, backend: str, device: torch.device) -> None:
    """Maximum and comparison with it must round alike, for guided experts too."""
    for seed in range(5):
        x = Inputs((3, 900 + seed, 2), torch.float32, device)
        x.expert[1, 4] = x.expert[1, 8] = 30.0  # two that are equally good
        x.guided[1, 4] = x.guided[1, 8] = 30.0
        scores = multi_layer_contrast(
            x.expert, x.amateur, x.guided if guidance else None, refocus_weight=0.37, alpha=1.0, backend=backend
        )
        left = [row.isfinite().nonzero().flatten().tolist() for row in scores]
        refocused = 1.37 * x.guided.double() - 0.37 * x.expert.double() if guidance else x.expert
        best = refocused.argmax(-1).tolist()
        assert left == [[best[0]], [4, 8], [best[2]]]


def test_rows_and_layers_of_any_stride_are_read_in_place(backend: str, device: torch.device) -> None:
    """An expert's vocabulary cut to the amateur's, and layers that are not contiguous."""
    generator = torch.Generator().manual_seed(1)
    expert = torch.randn(4, 1030, generator=generator).to(device)[::2, :1024]
    layers = torch.randn(2, 5, 1024, generator=generator).to(device).transpose(0, 1)[::2]  # (3, 2, vocab)
    chosen = torch.tensor([2, 0], device=device)
    scores = contrast_log_probs(expert, layers, layer=chosen, backend=backend)
    assert_equals_definition(scores, contrast_log_probs_naive(expert, torch.stack([layers[2, 0], layers[0, 1]])))


def test_offsets_of_rows_and_layers_may_need_64_bits(backend: str, device: torch.device) -> None:
    stride, vocab = 2**30, 260  # 4 GiB in half precision, of which a CPU touches a few pages
    rows = torch.empty_strided((3, 2 * vocab), (stride, 1), dtype=torch.bfloat16, device=device)
    rows.copy_(torch.randn(3, 2 * vocab, generator=torch.Generator().manual_seed(2)))
    expert, amateur = rows[:, :vocab], rows[:, vocab:]
    assert_equals_definition(
        contrast_logits(expert, amateur, 0.5, 0.1, backend), contrast_logits_naive(expert, amateur, 0.5, 0.1)
    )
    layer = torch.tensor([2], device=device)
    scores = contrast_log_probs(expert[:1], amateur[:, None], layer=layer, backend=backend)
    assert_equals_definition(scores, contrast_log_probs_naive(expert[:1], amateur[2:]))
    lower, lower_amateur = rows.view(3, 1, 2, vocab).unbind(2)
    scores = multi_layer_contrast(lower[0], lower_amateur[0], lower=lower, lower_amateur=lower_amateur, backend=backend)
    assert_equals_definition(scores, multi_layer_contrast_naive(lower[0], lower_amateur[0], None, lower, lower_amateur))


def test_readers_may_differ_in_dtype(backend: str, device: torch.device) -> None:
    x = Inputs((2, 1500, 2), torch.float32, device)
    x.amateur, x.guided, x.lower = x.amateur.half(), x.guided.bfloat16(), x.lower.double()
    computed, defined = FORMS["entropy-refocused"]
    assert_equals_definition(computed(x, 0.05, backend), defined(x, 0.05))


def test_without_rows_the_scores_are_empty(backend: str, device: torch.device) -> None:
    none = torch.zeros(0, 12, device=device)
    assert contrast_logits(none, none, 0.5, 0.1, backend).shape == (0, 12)


E32 = torch.zeros(2, 3)
LAYER = torch.zeros(3).long()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: contrast_logits(E32, torch.zeros(2, 4), 0.5),
            "amateur must be (..., vocab) with the batch and vocab of expert (2, 3), got (2, 4)",
        ),
        (lambda: contrast_log_probs(E32, E32, layer=LAYER[:2]), "amateur must be (layers, ..., vocab)"),
        (
            lambda: contrast_log_probs(E32, E32[None], layer=LAYER),
            "layer must hold one index a row, (2,), got (3,)",
        ),
        (
            lambda: multi_layer_contrast(E32, E32, lower=E32[None]),
            "lower and lower_amateur must be both given, with the same number of layers, or both None",
        ),
        (lambda: multi_layer_contrast(E32, E32, fusion="mean"), "fusion must be one of static, entropy, got 'mean'"),
        (
            lambda: contrast_logits(E32, E32, 0.5, backend="cuda"),
            "backend must be one of auto, triton, torch, got 'cuda'",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        call()
    assert message in str(raised.value)
