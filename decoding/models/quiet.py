"""Silence of transformers and the hub's client while a command or this library works with them."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from decoding.errors import DecodingWarning

__all__ = ["quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, and log lines of transformers below an error; ``TRANSFORMERS_VERBOSITY`` overrules.

    Progress bars go as well; a :class:`decoding.DecodingWarning` does not.
    """
    from transformers.utils import logging as log  # half a second, which whoever only asks for help need not wait for

    hub = logging.getLogger("huggingface_hub")
    level, bars, hub_level = log.get_verbosity(), log.is_progress_bar_enabled(), hub.level
    with warnings.catch_warnings():
        if not os.environ.get("TRANSFORMERS_VERBOSITY"):
            warnings.simplefilter("ignore")
            warnings.simplefilter("always", DecodingWarning)
            log.set_verbosity_error()
            log.disable_progress_bar()
            hub.setLevel(logging.ERROR)
        try:
            yield
        finally:
            log.set_verbosity(level)
            hub.setLevel(hub_level)
            if bars:
                log.enable_progress_bar()
