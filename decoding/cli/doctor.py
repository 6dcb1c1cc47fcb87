"""``decoding doctor``: what runs here, and how a model is served."""

from __future__ import annotations

from decoding.cli.options import Json, Model, ParallelPlacement, expanded
from decoding.cli.output import as_json, console

__all__ = ["doctor_command"]


@expanded
def doctor_command(*, model: Model = "expert", placement: ParallelPlacement, json: Json = False) -> None:
    """Report versions and how a model is served: how it branches, what its head is, whether it has early exits and
    can read drafts.

    Example: decoding doctor --model expert
    """
    from rich.table import Table

    from decoding.cli.diagnosis import diagnose
    from decoding.models.devices import is_main_process

    loaded, tokenizer = placement.load(model)
    report = diagnose(model, loaded, tokenizer)
    if not is_main_process(loaded):
        return
    if json:
        print(as_json(report, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in report.items():
        table.add_row(name, {True: "yes", False: "no", None: "unknown"}.get(value, str(value)))
    console().print(table, markup=False)
