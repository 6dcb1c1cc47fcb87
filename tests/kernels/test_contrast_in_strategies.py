"""The contrastive strategies on the kernels: their scores of random logits, and the tokens of whole calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from torch import Tensor

import decoding
from decoding import LOL, ContextAware, ContrastiveDecoding, DoLa
from decoding.strategies.contrast.readers import ReaderLogits

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

VOCAB, AMATEUR_VOCAB = 300, 296  # padded differently
NO_TEXT = torch.empty(0, dtype=torch.long)  # these contrasts do not depend on it
STRATEGIES: dict[str, Any] = {
    "contrastive-decoding": ContrastiveDecoding("amateur"),
    "contrastive-decoding-log-probs": ContrastiveDecoding("amateur", 0.02, 0.9, "log_probs", 0.5),
    "dola": DoLa([1, 2, 3]),
    "dola-one-layer": DoLa([2], alpha=0.3),
    "dola-batch": DoLa([1, 2, 3], divergence="jensen-shannon", per_row=False),
    "context-aware": ContextAware("context", alpha=0.7),
    "lol": LOL("amateur", [1, 2], amateur_weight=0.8, lower_amateur_weight=0.6),
    "lol-guided": LOL("amateur", [1, 2], guidance=[1], alpha=0.02),
    "lol-entropy-guided": LOL("amateur", [1, 2], guidance=[1], fusion="entropy"),
}


def _reader_logits(rows: tuple[int, ...], device: torch.device) -> dict[str, ReaderLogits]:
    """Draw logits of every reader that a strategy has, with exits of three layers."""
    generator = torch.Generator().manual_seed(len(rows))

    def logits(*shape: int) -> Tensor:
        return (3 * torch.randn(*shape, generator=generator)).to(device)

    expert, exits = logits(*rows, VOCAB), logits(3, *rows, VOCAB)
    expert[..., 5] = exits[..., 5] = -torch.inf  # a padding token of the model
    return {
        "expert": ReaderLogits(expert, exits),
        "amateur": ReaderLogits(logits(*rows, AMATEUR_VOCAB), logits(3, *rows, AMATEUR_VOCAB)),
        "guided expert": ReaderLogits(logits(*rows, VOCAB)),
        "expert in context": ReaderLogits(logits(*rows, VOCAB)),
    }


# Logits with a dimension of time are what one strategy of each kernel is given, with exits and without.
TEACHER_FORCED = ("contrastive-decoding-log-probs", "dola-batch", "lol-entropy-guided")


@pytest.mark.parametrize(
    ("name", "rows"),
    [*((name, (2,)) for name in STRATEGIES), *((name, (1, 3)) for name in TEACHER_FORCED)],
    ids=lambda value: value if isinstance(value, str) else {1: "step", 2: "teacher-forced"}[len(value)],
)
def test_the_kernels_compute_the_scores_that_torch_computes(
    name: str, rows: tuple[int, ...], kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader_logits = _reader_logits(rows, kernel_device)
    if "guided" not in name:
        del reader_logits["guided expert"]
    contrasts = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("DECODING_KERNELS", backend)
        contrast = STRATEGIES[name].contrast(reader_logits, NO_TEXT)
        contrasts.append((contrast.scores, contrast.masked, contrast.apply_plausibility(contrast.scores)))
    for in_torch, in_triton in zip(*contrasts, strict=True):
        # Rounding of scores of about 10: torch computes each log-softmax first, the kernel sums as it reads.
        torch.testing.assert_close(in_triton, in_torch, atol=2e-5, rtol=1e-5)
    scores, masked, mask_after = contrasts[1]
    assert torch.equal(masked, mask_after)  # the fused mask equals the one that is applied after processors
    assert not torch.equal(scores, masked) or name == "context-aware"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_contrast_never_waits_for_the_gpu(name: str) -> None:
    reader_logits = _reader_logits((2,), torch.device("cuda"))
    if "guided" not in name:
        del reader_logits["guided expert"]
    expected = STRATEGIES[name].contrast(reader_logits, NO_TEXT).masked  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        scores = STRATEGIES[name].contrast(reader_logits, NO_TEXT).masked
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(scores, expected)


# Processors come between scores and mask in the session that all contrasts share.
@pytest.mark.parametrize(
    ("name", "processors"),
    [
        *((name, {}) for name in ("contrastive-decoding", "dola", "context-aware", "lol-guided")),
        ("lol-guided", {"repetition_penalty": 1.3}),
    ],
    ids=lambda value: value if isinstance(value, str) else "processors" if value else "fused-mask",
)
def test_both_backends_generate_the_same_tokens(
    name: str, processors: dict[str, float], kernel_device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama").to(kernel_device)
    amateur = tiny_model("llama", seed=7).to(kernel_device)
    strategy = {
        "contrastive-decoding": ContrastiveDecoding(amateur),
        "dola": DoLa([1, 2]),
        "context-aware": ContextAware([7, 8]),
        "lol-guided": LOL(amateur, [1], guidance=[5, 6]),
    }[name]
    ids = torch.tensor([[1, 9, 23, 11], [1, 5, 5, 8]], device=kernel_device)
    tokens = []
    for backend in ("torch", "triton"):
        monkeypatch.setenv("DECODING_KERNELS", backend)
        tokens.append(
            decoding.generate(
                model, ids, strategy=strategy, attention_mask=torch.ones_like(ids), max_new_tokens=4, **processors
            ).tolist()
        )
    assert tokens[0] == tokens[1]
