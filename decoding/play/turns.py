"""A line of callers before something that serves one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from decoding.errors import InputError

__all__ = ["Turns"]


class Turns:
    """Gives turns in the order in which they are asked for.

    Args:
        most_waiting: callers that may wait beside the one whose turn it is.
    """

    def __init__(self, most_waiting: int) -> None:
        self._most_waiting = most_waiting
        self._line: list[object] = []
        self._changed = threading.Condition()

    @contextmanager
    def place(self) -> Iterator[Callable[[float], int]]:
        """Stand in the line for the time of the block.

        Returns:
            A function of seconds that waits for at most so long, and returns how many are still ahead: 0 when it is
            the caller's turn, which lasts to the end of the block.

        Raises:
            InputError: as many as may are waiting already.
        """
        me = object()
        with self._changed:
            if len(self._line) > self._most_waiting:
                waiting = len(self._line) - 1
                them = "1 text waits" if waiting == 1 else f"{waiting} texts wait"
                raise InputError(f"the model is busy, and {them} for it: try again in a moment")
            self._line.append(me)

        def ahead(seconds: float) -> int:
            with self._changed:
                if self._line[0] is not me:
                    self._changed.wait(seconds)
                return self._line.index(me)

        try:
            yield ahead
        finally:
            with self._changed:
                self._line.remove(me)
                self._changed.notify_all()
