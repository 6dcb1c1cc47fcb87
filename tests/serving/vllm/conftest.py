"""Settings of the tests that run vLLM's engines; all of them are skipped where vLLM is not installed."""

from __future__ import annotations

import importlib.util
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

REASON = "vLLM is not installed here: make test-vllm makes an environment that has it"
PRESENT = importlib.util.find_spec("vllm") is not None


class SkippedModule(pytest.Module):
    """A file of tests that is not imported."""

    def collect(self) -> Iterator[pytest.Item]:
        """Skip it, with the one reason."""
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Return a file as one that is skipped, where vLLM is absent."""
    return None if PRESENT else SkippedModule.from_parent(parent, path=module_path)


class PretendedDriver:
    """Triton's driver of a CPU, which it does not have: its interpreter needs none."""

    @staticmethod
    def is_active() -> bool:
        """True: vLLM asks for exactly one that is."""
        return True


def prepare_vllm() -> None:
    """Set what vLLM reads as it is imported: engines in this process, on one thread, with few messages.

    Its V2 model runner is written in Triton. With a backend of the name "cpu" vLLM takes Triton for present on a CPU,
    and the interpreter runs the kernels. Processes that an engine starts do not have it.
    """
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_OMP_THREADS_BIND="nobind",
        VLLM_CPU_KVCACHE_SPACE="1",  # GiB
        VLLM_LOGGING_LEVEL="ERROR",
        VLLM_NO_USAGE_STATS="1",
        VLLM_USE_V2_MODEL_RUNNER="0",
        TRITON_INTERPRET="1",
        TORCHDYNAMO_DISABLE="1",  # inductor would ask for more of the pretended backend
        NUMBA_NUM_THREADS="1",  # drafts from n-grams are compiled by Numba, whose threads become torch's: what vLLM has
        # made for one thread gives other numbers on two, in every later engine of the process
    )
    from triton.backends import backends

    backends.setdefault("cpu", types.SimpleNamespace(driver=PretendedDriver, compiler=None))


@pytest.fixture(scope="session", autouse=True)
def as_on_a_cpu() -> None:
    """Have vLLM's V1 runner do what it does on a CPU without Triton, which its V2 runner is served by here.

    Its kernel of top-k and top-p does not run in Triton's interpreter, and that of slots takes half of all the time.
    """
    import torch
    from vllm.v1.sample.ops import topk_topp_sampler
    from vllm.v1.worker.block_table import BlockTable

    def compute_slot_mapping(self: BlockTable, num_reqs: int, query_start_loc: Any, positions: Any) -> None:
        torch.ops._C.compute_slot_mapping_kernel_impl(
            query_start_loc, positions, self.block_table.gpu, self.slot_mapping.gpu, self.block_size
        )

    topk_topp_sampler.HAS_TRITON = False
    BlockTable.compute_slot_mapping = compute_slot_mapping


if PRESENT:
    prepare_vllm()
    pytest.register_assert_rewrite("fuzzed_requests")
