"""What the commands share: options, reading prompts, writing results."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from decoding.errors import InputError, OptionError, one_line

Model = Annotated[
    str, typer.Option(metavar="NAME", help="A built-in model (expert, amateur), a model folder, or a name on the hub.")
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; by default cuda if there is one, else cpu.")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="float32, bfloat16, float16 or auto; by default auto on a GPU, float32 on the CPU."
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="auto, balanced, ...: split the model over all devices, as transformers' device_map."
    ),
]
TpPlan = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto: under torchrun, one model shared out among all processes."),
]
PrefillChunk = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Read prompts in pieces of so many tokens: less memory for long ones."),
]
Seed = Annotated[
    int, typer.Option(min=0, metavar="N", help="Seed of the random draws; each prompt begins with it anew.")
]
Output = Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the results to files in this folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """``name=value`` strings of ``--set`` as a dictionary.

    Raises:
        OptionError: a string without ``=``, or a name given twice.
    """
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise OptionError(f"--set {pair!r}: accepted is name=value, for instance --set top_k=5")
        if name in settings:
            raise OptionError(f"--set {name}: given twice")
        settings[name] = value
    return settings


def prompts_of(given: Sequence[str] | None, file: Path | None = None) -> list[str]:
    """The prompts of ``--prompt``, those of a file (one a line), or standard input as one prompt.

    Raises:
        InputError: an empty prompt, none at all, or a file that cannot be read.
    """
    prompts = list(given or [])
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--prompts {file}: cannot be read ({one_line(error)})") from error
        lines = [line for line in lines if line.strip()]
        if not lines:
            raise InputError(f"--prompts {file}: holds no prompt; accepted is one prompt a line")
        prompts += lines
    if not prompts and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("no prompt: give --prompt TEXT, or pipe a text in")
        try:
            prompts = [sys.stdin.read().rstrip("\n")]
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is no UTF-8 text ({one_line(error)})") from error
    if any(not prompt.strip() for prompt in prompts):
        raise InputError("the prompt is empty: give at least one word")
    return prompts
