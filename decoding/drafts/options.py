"""What a call says of drafts: who proposes them, and how many. Nothing here needs model code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decoding.errors import OptionError, shown
from decoding.parameters import plain_number, require_count

__all__ = [
    "ACCEPTED",
    "AMATEUR",
    "EXIT",
    "NONE",
    "DraftOptions",
    "check_draft_tokens",
    "check_drafts",
    "draft_options",
    "names_model",
]

LOOKUP, AMATEUR, EXIT, AUTO, NONE = "prompt-lookup", "amateur", "exit:", "auto", "none"
ACCEPTED = (
    f"{LOOKUP}, {AMATEUR} (a strategy's own), {EXIT}LAYER, or a model of the same tokens: a transformers model, a "
    "folder or a name"
)


@dataclass(frozen=True)
class DraftOptions:
    """Options of a call.

    Attributes:
        drafts: "prompt-lookup", "amateur", "exit:LAYER", or a model: an object, a folder or a name.
        tokens: drafts of a round; None adapts their number.
    """

    drafts: Any
    tokens: int | None

    @property
    def looks_up(self) -> bool:
        """True for prompt lookup."""
        return isinstance(self.drafts, str) and self.drafts == LOOKUP

    @property
    def kind(self) -> str:
        """The drafts as text; of a model the name of its class."""
        return self.drafts if isinstance(self.drafts, str) else type(self.drafts).__name__

    @property
    def by_amateur(self) -> bool:
        """True for the strategy's amateur."""
        return isinstance(self.drafts, str) and self.drafts == AMATEUR


def draft_options(drafts: Any, tokens: Any, *configs: Any) -> DraftOptions | None:
    """The options of a call, checked; None where no drafts are wanted.

    Args:
        drafts: see :func:`decoding.generate`; "none" for no drafts, whatever the configs ask for.
        tokens: see ``draft_tokens`` of :func:`decoding.generate`.
        configs: generation configs, whose ``drafts`` and ``draft_tokens`` stand in for what is None; the first that has
            them.

    Raises:
        OptionError: something else than what is accepted.
    """
    for config in configs:
        drafts = getattr(config, "drafts", None) if drafts is None else drafts
        tokens = getattr(config, "draft_tokens", None) if tokens is None else tokens
    tokens = plain_number(tokens)
    if drafts is None:
        if tokens is not None:
            raise OptionError(f"draft_tokens={shown(tokens)}: no drafts are asked for; pass drafts as well: {ACCEPTED}")
        return None
    drafts = str(drafts) if isinstance(drafts, Path) else drafts
    check_drafts("drafts", drafts)
    if tokens is not None:
        check_draft_tokens("draft_tokens", tokens)
    if isinstance(drafts, str) and drafts == NONE:
        return None
    return DraftOptions(drafts, None if tokens == AUTO else tokens)


def check_drafts(name: str, drafts: Any) -> None:
    """Raise OptionError unless it may be the option ``drafts``: a text, or a model as far as can be told by looks."""
    if isinstance(drafts, str) and drafts.startswith(EXIT) and not drafts.removeprefix(EXIT).isdecimal():
        raise OptionError(f"{name}={drafts!r}: must end with how many layers are read, such as {EXIT}8")
    if drafts == "" or not (isinstance(drafts, str) or callable(getattr(drafts, "forward", None))):
        raise OptionError(f"{name}={shown(drafts)}: must be {ACCEPTED}")


def check_draft_tokens(name: str, tokens: Any) -> None:
    """Raise OptionError unless it may be the option ``draft_tokens``."""
    if isinstance(tokens, str):
        if tokens != AUTO:
            raise OptionError(f"{name}={tokens!r}: must be a whole number from 1 on, or {AUTO}")
    else:
        require_count(name, tokens, 1, f", or {AUTO}")


def names_model(drafts: Any) -> bool:
    """True of a text that is the folder or the name of a model, which would be loaded."""
    return isinstance(drafts, str) and drafts not in (LOOKUP, AMATEUR, NONE) and not drafts.startswith(EXIT)
