"""Arguments of ``generate`` that transformers does not pass to a decoding method, read from the caller's frame."""

from __future__ import annotations

import inspect
import sys
from typing import Any

from transformers import GenerationMixin

__all__ = ["arguments_of_generate"]


def arguments_of_generate(frames: int = 4) -> dict[str, Any]:
    """``streamer``, ``synced_gpus`` and ``assistant_model`` of the ``generate`` call that runs a strategy, and as
    ``given`` what it was given beside them.

    transformers passes none of them to a ``custom_generate`` callable (versions 5.17 to 5.23 were checked), yet a
    streamer that gets no token or an assistant that is ignored would be a surprise. So would readers
    without the image, sound or encoder's text that the expert has, which transformers passes on encoded. They are read
    from the caller's frame; where that is not among the next ones, nothing was passed. Once transformers passes them
    on, this module is no longer needed.

    Args:
        frames: how many of the caller's callers may be it.
    """
    generate = inspect.unwrap(GenerationMixin.generate).__code__
    frame = sys._getframe(2)
    for _ in range(frames):
        if frame is None:
            break
        if frame.f_code is generate:
            arguments = frame.f_locals
            passed = {name: arguments.get(name) for name in ("streamer", "synced_gpus", "assistant_model")}
            passed["given"] = {"inputs": arguments.get("inputs"), **(arguments.get("kwargs") or {})}
            if isinstance(arguments, dict):  # a copy, up to Python 3.12: as long as the frame, its cache would live
                arguments.clear()
            return passed
        frame = frame.f_back  # type: ignore[assignment]
    return {}
