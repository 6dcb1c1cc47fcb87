"""The command of the evidence: run a part, or draw the page of what was run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from decoding.errors import OptionError, nearest
from decoding.tools.evidence.page import draw
from decoding.tools.evidence.parts import PARTS
from decoding.tools.evidence.running import left_of, run_part

__all__ = ["evidence_command"]

PAGE = Path("docs/evidence.md")
RESULTS = Path("docs/evidence")


def evidence_command(
    parts: Annotated[list[str] | None, typer.Argument(metavar="PART", help="None lists the parts.")] = None,
    data: Annotated[str, typer.Option(metavar="DIR", help="Folder of the data sets.")] = "data",
    work: Annotated[str, typer.Option(metavar="DIR", help="Folder of samples and adapters.")] = ".evidence",
    anew: Annotated[bool, typer.Option("--anew", help="Run also the commands whose results are kept.")] = False,
    drawn: Annotated[bool, typer.Option("--draw", help="Run nothing: only draw the tables again.")] = False,
) -> None:
    """Run what is left of parts of the evidence, from the root of a clone, and draw docs/evidence.md.

    Example: python -m decoding.tools.evidence truthfulqa-smollm2 --data DIR
    """
    for name in parts or ():
        if name not in PARTS:
            raise OptionError(f"no part {name!r}{nearest(name, PARTS)}")
    if parts and drawn:
        raise OptionError("--draw draws all tables and runs no part: leave out --draw, or the names of parts")
    if not PAGE.exists():
        raise OptionError(f"{PAGE}: is not there; run this from the root of a clone")
    if not parts and not drawn:
        _list(work)
        return
    try:
        for name in parts or ():
            if left_of(PARTS[name], RESULTS / f"{name}.json", work, anew):
                run_part(name, data, work, RESULTS, anew)
            else:
                print(f"{name}: all of it has run; --anew runs it again")
    finally:  # what commands gave before one that failed is drawn too
        PAGE.write_text(draw(PAGE.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")


def _list(work: str) -> None:
    """Print the parts, how much of each ran, and what each comes after."""
    for name, part in PARTS.items():
        steps = len(part.steps)
        ran = steps - len(left_of(part, RESULTS / f"{name}.json", work))
        print(f"{name}  {'ran' if ran == steps else f'{ran} of {steps} commands ran' if ran else ''}".rstrip())
        after = dict.fromkeys(needed for step in part.steps for needed in step.after)
        if after:
            print(f"  after {', '.join(after)}")
