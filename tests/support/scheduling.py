"""Assignment of tests to the workers of pytest-xdist."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling

__all__ = ["FileScheduling", "together"]

# Files whose tests start processes by the pair, wait for signals, or limit the processes of a user: one worker runs
# them one after another. They come first, since they take the longest.
TOGETHER = (
    "tests/scale/test_tensor_parallel.py",
    "tests/scale/test_ray_workers.py",
    "tests/scale/test_ranks.py",
    "tests/serving/",
    "tests/evals/engine/test_runner.py",
    "tests/evals/sandbox/",
)


def together(nodeid: str) -> bool:
    """Tell whether a test belongs to the files of :data:`TOGETHER`."""
    return nodeid.startswith(TOGETHER)


class FileScheduling(LoadFileScheduling):
    """One worker a file, so that what its tests share is made once; one worker for all files of :data:`TOGETHER`."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # else the files of most tests come first, which are not the longest

    def _split_scope(self, nodeid: str) -> str:
        return "together" if together(nodeid) else super()._split_scope(nodeid)
