"""Settings of every test."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import tempfile
from typing import Any

import pytest
from fresh_process import without
from models_loaded_once import known_models, models_loaded_once
from quick_interpreter import patch_once, skip_what_nobody_reads

__all__ = ["known_models", "models_loaded_once", "same_last_bits"]

# What a worker of pytest-xdist has registered for its end is done before this, and after it there is nothing to do but
# to take down all that was imported, which takes 3 s.
if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)

# optimum-quanto imports setuptools (through torch's builder of extensions), which refuses to come after the distutils
# of the standard library; packages that other tests need import that.
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401

# Code of model folders and of metrics is copied here by the folder's name: not where another process, or the user of
# this machine, keeps a folder of the same name. transformers reads it as it is imported.
MODULES = tempfile.TemporaryDirectory(prefix="hf-modules-")
os.environ["HF_MODULES_CACHE"] = MODULES.name

# No test asks the hub, which would wait 20 s where there is no network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The models of the tests are so small that a second thread costs more than it gives: in the processes that tests start
# as well, beside which another worker runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(pluginmanager: pytest.PytestPluginManager) -> None:
    """Set up torch and Triton, before anything imports them; a process that only hands out tests needs neither."""
    options = pluginmanager.get_plugin("pytestconfig").known_args_namespace
    if getattr(options, "numprocesses", None) and "PYTEST_XDIST_WORKER" not in os.environ:
        return
    gc.disable()  # until all tests are imported: a seventh of that time, and nothing that is imported is garbage
    import torch  # 1.5 s, for which all workers would wait

    torch.set_num_threads(1)
    # Without a GPU the kernels are tested in Triton's interpreter. Triton reads this as it is imported, which
    # transformers may do first; whoever sets it decides.
    if not torch.cuda.is_available():
        os.environ.setdefault("TRITON_INTERPRET", "1")
    # transformers imports hqq, and with it torch's compiler, for a second more; the one test that needs it sees to it.
    # peft imports it too, for layers of a kind that no test has.
    with without("hqq"):
        import transformers.cache_utils  # noqa: F401

        with contextlib.suppress(ImportError):
            import peft  # noqa: F401


def pytest_collection_finish() -> None:
    """Keep the garbage collector away from imported modules: a pass over them takes 0.3 s, and tests ask for many."""
    if interpreter := sys.modules.get("triton.runtime.interpreter"):
        patch_once(interpreter)
        skip_what_nobody_reads(interpreter)
    gc.freeze()
    # Extensions that are kept from being collected complain as the interpreter ends; pytest makes ten passes before.
    atexit.register(gc.unfreeze)
    gc.enable()


def pytest_sessionfinish() -> None:
    """Remove the folder of copied modules."""
    MODULES.cleanup()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest tests of a worker first."""
    if hasattr(config, "workerinput"):
        from scheduling import place

        items.sort(key=lambda item: place(item.nodeid))


@pytest.fixture
def same_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process compute products of few rows in one form, for tests that compare their numbers bit by bit.

    Otherwise each process measures which form is the quickest, and on a busy machine they come to different results.
    """
    monkeypatch.setenv("DECODING_SMALL_BATCH_LINEAR", "linear")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return what shares out the tests of ``--dist loadfile``."""
    from scheduling import FileScheduling

    return FileScheduling(config, log) if config.getvalue("dist") == "loadfile" else None
