"""The product of a few rows on a CPU: against its definition, the same bits beside any others, and how it is built."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import stat
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from decoding.kernels.few_rows import building, few_row_product, few_row_product_naive, why_not_compiled
from decoding.kernels.few_rows.building import BuildError, built

needs_compiler = pytest.mark.skipif(why_not_compiled() is not None, reason=f"no kernel: {why_not_compiled()}")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@needs_compiler
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("inputs", [1, 7, 16, 33, 576])
@pytest.mark.parametrize("outputs", [1, 2, 5, 6, 64, 301])
@pytest.mark.parametrize("rows", [*range(1, 10), 12, 16, 17])
def test_the_product_is_that_of_its_definition(rows: int, outputs: int, inputs: int, bias: bool) -> None:
    states, weight = numbers(rows, inputs), numbers(outputs, inputs, seed=1)
    offsets = numbers(outputs, seed=2) if bias else None
    product = few_row_product(states, weight, offsets)
    assert product.dtype == torch.float32
    torch.testing.assert_close(
        product.double(), few_row_product_naive(states, weight, offsets), rtol=1e-5, atol=2e-6 * inputs**0.5
    )


@needs_compiler
def test_nothing_beside_the_tensors_is_read_or_written() -> None:
    nan = torch.full((1000,), torch.nan)
    for outputs in range(1, 12):
        states = torch.cat([nan, numbers(3 * 19), nan])[1000:-1000].view(3, 19)
        weight = torch.cat([nan, numbers(outputs * 19), nan])[1000:-1000].view(outputs, 19)
        offsets = torch.cat([nan, numbers(outputs), nan])[1000:-1000]
        assert few_row_product(states, weight, offsets).isfinite().all()


@needs_compiler
def test_a_row_is_the_same_beside_any_others_and_with_any_number_of_threads() -> None:
    states, weight = numbers(16, 100), numbers(203, 100, seed=1)
    torch.set_num_threads(1)
    alone = torch.cat([few_row_product(row[None], weight) for row in states])
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in range(1, 17):
            assert torch.equal(few_row_product(states[:rows], weight), alone[:rows])


@needs_compiler
def test_other_shapes_and_kinds_of_tensors_get_torchs_product() -> None:
    states, weight = numbers(2, 3, 8), numbers(5, 8, seed=1)
    expected = few_row_product_naive(states.view(6, 8), weight).view(2, 3, 5).float()
    torch.testing.assert_close(few_row_product(states, weight), expected)
    spread = states.transpose(0, 1).contiguous().transpose(0, 1)
    assert not spread.is_contiguous()
    torch.testing.assert_close(few_row_product(spread, weight), expected)
    torch.testing.assert_close(few_row_product(states, weight.T.contiguous().T), expected)
    torch.testing.assert_close(few_row_product(states.double(), weight.double()).float(), expected)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        few_row_product(states, numbers(5, 9))
    with pytest.raises(RuntimeError, match="dtype"):
        few_row_product(states, weight.double())
    with pytest.raises(RuntimeError, match="size of the tensor"):
        few_row_product(states, weight, torch.ones(4))
    assert few_row_product(states[:0], weight).shape == (0, 3, 5)
    assert torch.equal(few_row_product(states[..., :0], weight[:, :0]), torch.zeros(2, 3, 5))


@needs_compiler
def test_the_defaults_of_a_program_change_nothing() -> None:
    states, weight = numbers(4, 64), numbers(1000, 64, seed=1)
    expected = few_row_product(states, weight)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            assert torch.equal(few_row_product(states, weight), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@needs_compiler
def test_what_records_operations_sees_torchs_own() -> None:
    seen: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():
        few_row_product(numbers(2, 8), numbers(5, 8))
    assert any("mm" in name for name in seen)
    seen.clear()
    few_row_product(numbers(2, 8), numbers(5, 8))
    assert not seen


# --- how it is built -------------------------------------------------------------------------------------------------


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A process that has not built the kernel yet, and the folder where it will be kept."""
    monkeypatch.setenv("DECODING_CACHE", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    building._built.cache_clear()
    yield tmp_path / "kernels"
    building._built.cache_clear()


def another_process() -> None:
    building._built.cache_clear()


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@needs_compiler
def test_it_is_compiled_once_and_kept(unbuilt: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    compiler = script(tmp_path / "compiler", f'echo called >> "{calls}"; exec "{shutil.which("cc") or "gcc"}" "$@"')
    monkeypatch.setenv("CC", str(compiler))
    built()
    built()
    assert len(list(unbuilt.iterdir())) == 1  # the library, and no folder in which it was made
    another_process()
    built()
    assert calls.read_text() == "called\n"
    another_process()
    monkeypatch.setattr(building, "_instructions", lambda: "flags: of another machine that shares the folder")
    built()
    assert calls.read_text() == "called\ncalled\n"
    assert len(list(unbuilt.iterdir())) == 2


@needs_compiler
@pytest.mark.parametrize("hindrance", ["a file", "no library"])
def test_where_it_cannot_be_kept_it_is_built_for_the_process(unbuilt: Path, hindrance: str) -> None:
    if hindrance == "a file":
        unbuilt.write_text("in the way of the folder")
    else:
        built()
        (library,) = unbuilt.iterdir()
        library.unlink()  # this process has it mapped
        library.write_text("cut short, or where nothing may be executed")
        another_process()
    torch.testing.assert_close(few_row_product(torch.ones(2, 40), torch.ones(3, 40)), torch.full((2, 3), 40.0))


@pytest.mark.parametrize(
    ("compiler", "message"),
    [
        ("echo 'product.c: In function' >&2; echo 'x.c:1: error: no vectors' >&2; exit 1", "error: no vectors"),
        ("exit 3", "exit status 3"),
        ("exit 0", "exit status 0"),  # and no library
    ],
)
def test_a_compiler_that_fails_is_named_with_its_reason(
    unbuilt: Path, compiler: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = script(tmp_path / "compiler", compiler)
    monkeypatch.setenv("CC", str(path))
    for _ in range(2):
        with pytest.raises(BuildError, match=message) as raised:
            built()
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)
    assert not list(unbuilt.iterdir())
    with pytest.raises(BuildError):
        few_row_product(torch.ones(2, 4), torch.ones(3, 4))


@pytest.mark.usefixtures("unbuilt")
def test_no_failure_keeps_the_tensors_of_its_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CC", str(tmp_path / "absent"))
    for _ in range(2):
        states = torch.ones(2, 4)
        kept = weakref.ref(states)
        with contextlib.suppress(BuildError):
            few_row_product(states, torch.ones(3, 4))
        assert why_not_compiled() is not None
        del states
        gc.collect()
        assert kept() is None


@pytest.mark.usefixtures("unbuilt")
def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (why_not_compiled() or "").startswith("no C compiler is found")
    another_process()
    monkeypatch.setenv("CC", str(tmp_path / "absent"))
    assert (why_not_compiled() or "").startswith("the C compiler does not run: ")
    assert os.environ["CC"] in (why_not_compiled() or "")
