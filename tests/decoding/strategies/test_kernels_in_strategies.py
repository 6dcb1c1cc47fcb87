"""Contrastive search on its kernels: natively on a GPU, in Triton's interpreter without one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, sharper_model, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LogitsProcessorList

import decoding
from decoding.models import attention
from decoding.stream import static_layout
from decoding.stream.prepare import prepare_inputs

NEW_TOKENS = 2  # past a window of 8 and within a bucket of 16 slots, as the prompt has 9


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Device that the kernels run on; skips where triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    monkeypatch.setenv("DECODING_KERNELS", "triton")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _padded(device: torch.device) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCAB, (2, 9), generator=torch.Generator().manual_seed(5))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_kernels_choose_the_tokens_of_the_torch_forms(
    name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(name).to(device)
    options: dict[str, Any] = {**_padded(device), "max_new_tokens": NEW_TOKENS, "penalty_alpha": 0.6, "top_k": 4}
    tokens = decoding.generate(model, **options)
    scored = decoding.generate(model, **options, return_dict_in_generate=True, output_scores=True)
    monkeypatch.setenv("DECODING_KERNELS", "torch")
    assert tokens.equal(decoding.generate(model, **options))
    assert tokens.equal(scored.sequences)
    model.cpu()


def test_rows_with_numbers_of_candidates_of_their_own(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharper_model("llama").to(device)
    options: dict[str, Any] = {
        **_padded(device), "max_new_tokens": NEW_TOKENS, "strategy": decoding.AdaptiveContrastiveSearch(30.0, 2, 7)
    }  # fmt: skip
    tokens = decoding.generate(model, **options)
    monkeypatch.setenv("DECODING_KERNELS", "torch")
    assert tokens.equal(decoding.generate(model, **options))
    model.cpu()


@pytest.mark.parametrize(("name", "compile"), [("gpt2", False), ("mistral-sliding", True)])
def test_branches_attended_to_by_the_kernel_give_the_tokens_of_the_torch_forms(
    name: str, compile: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding, grouped heads, windows and the unused end of a static layout, which the kernel does not read."""
    model = tiny_model(name).to(device)
    options: dict[str, Any] = {**_padded(device), "max_new_tokens": NEW_TOKENS, "penalty_alpha": 0.6, "top_k": 2}
    expected = decoding.generate(model, **options, compile=compile)  # and how the model branches is found out
    spans = _attending_by_kernel(monkeypatch)
    assert decoding.generate(model, **options, compile=compile).equal(expected)
    assert len(spans) >= 3 * NEW_TOKENS  # layers
    assert all(span is not None for span in spans)
    model.cpu()


def test_steps_of_one_token_are_attended_to_by_the_kernel_too(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama").to(device)
    options: dict[str, Any] = {**_padded(device), "max_new_tokens": NEW_TOKENS, "dola_layers": "high"}
    expected = decoding.generate(model, **options)
    spans = _attending_by_kernel(monkeypatch)
    assert decoding.generate(model, **options).equal(expected)
    assert len(spans) >= 3 * (NEW_TOKENS - 1)
    model.cpu()


def _attending_by_kernel(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Caches of any length are attended to by the kernel; the spans that it is given."""
    from decoding.kernels.few_query_attention import fused as triton

    attend, spans = triton.few_query_attention_triton, []

    def watched(*arguments: Any) -> torch.Tensor:
        spans.append(arguments[-1])
        return attend(*arguments)

    monkeypatch.setattr(attention, "LONG", 0)
    monkeypatch.setattr(static_layout, "BUCKET", 16)
    monkeypatch.setattr(triton, "FILLING", 4)  # the interpreter runs programs one by one
    monkeypatch.setattr(triton, "few_query_attention_triton", watched)
    return spans


class AskedTheHost(TorchDispatchMode):
    """Raises where a tensor's value decides what the host does next, which on a GPU would wait for it."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation unless it hands values to the host."""
        name = function.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "equal", "masked_select", "unique"), name
        return function(*args, **(kwargs or {}))


def test_a_step_asks_for_no_value() -> None:
    """On any device; what a CPU alone may ask for, its winners as a list, is not seen here."""
    _steps(torch.device("cpu"), AskedTheHost)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_never_waits_for_the_gpu(device: torch.device) -> None:
    @contextmanager
    def refusing() -> Iterator[None]:
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    _steps(device, refusing)


def _steps(device: torch.device, within: Callable[[], AbstractContextManager[Any]]) -> None:
    """A few steps of greedy contrastive search; after the first, which checks the model and compiles, ``within``."""
    model = tiny_model("llama").to(device)
    strategy = decoding.ContrastiveSearch(penalty_alpha=0.6, top_k=4)
    ids, kwargs, config = prepare_inputs(model, **_padded(device))
    with torch.no_grad():
        session = strategy.session(model, ids, kwargs, config)
        for step in range(4):
            with within() if step > 0 else nullcontext():
                tokens = session.greedy(ids, LogitsProcessorList())
                session.advance(tokens)
                ids = torch.cat([ids, tokens[:, None]], dim=1)
    session.release()
    model.cpu()
