"""Assignment of tests to the workers of pytest-xdist."""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadFileScheduling

__all__ = ["FileScheduling", "place"]

# Files whose tests start processes by the pair, wait for signals, or limit the processes of a user: one worker runs
# them one after another. They come first, since they take the longest.
TOGETHER = (
    "tests/scale/test_tensor_parallel.py",
    "tests/scale/test_ray_workers.py",
    "tests/scale/test_ranks.py",
    "tests/serving/test_serve.py",
    "tests/evals/engine/test_runner.py",
    "tests/evals/sandbox/",
)


# Files of 10 s and more that would be among the last: whoever gets them would work alone at the end.
EARLY = ("tests/tools/architectures/",)


def place(nodeid: str) -> int:
    """Return the place of a test's file: 0 for those of :data:`TOGETHER`, 1 for :data:`EARLY`, 2 for others."""
    return 0 if nodeid.startswith(TOGETHER) else 1 if nodeid.startswith(EARLY) else 2


class FileScheduling(LoadFileScheduling):
    """One worker a file, so that what its tests share is made once; one worker for all files of :data:`TOGETHER`."""

    def __init__(self, config: Any, log: Any = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # else the files of most tests come first, which are not the longest

    def _split_scope(self, nodeid: str) -> str:
        return "together" if place(nodeid) == 0 else super()._split_scope(nodeid)
