"""Options that several commands have, and how commands read them. Nothing here needs model code."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from decoding.errors import InputError, OptionError, one_line
from decoding.models.builtin import BUILT_IN
from decoding.models.releases import RELEASES
from decoding.rows import iter_placed_texts
from decoding.strategies.parameters_text import named_values
from decoding.strategies.registry import STRATEGIES, strategy_name


def complete_model(incomplete: str) -> list[str]:
    """Return the models that a shell offers for what is typed: built-in ones, and those that can be fetched."""
    return [name for name in (*BUILT_IN, *RELEASES) if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A built-in model (expert, amateur), a fetched one (decoding fetch), a model folder, a .gguf file, or "
        "a name on the hub.",
        autocompletion=complete_model,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, ...; by default cuda where there is one, else cpu."),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="float32, bfloat16, float16 or auto; by default auto on a GPU, float32 on the CPU."
    ),
]
DeviceMap = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto, balanced, ...: split the model over several devices (device_map)."),
]
TpPlan = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="auto: tensor parallelism over the processes of torchrun (tp_plan)."),
]
PrefillChunk = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Chunked prefill: read prompts N tokens at a time, to save memory."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the strategy; repeatable.")
]
GenerationOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--generation-config",
        metavar="NAME=VALUE",
        help="An option of transformers' GenerationConfig, such as repetition_penalty=1.2; repeatable.",
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="At most N new tokens; by default 100, or what the context has left."),
]
Chat = Annotated[bool, typer.Option("--chat", help="Put each prompt into the model's chat template.")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the random draws; every prompt starts from it.")]
Output = Annotated[Path | None, typer.Option(metavar="DIR", help="Also write the results to files in this folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PROMPT_COLUMNS = ("prompt", "prefix_text", "text")  # of a table of prompts, the first of these that a row has


@dataclass(frozen=True)
class Placement:
    """Options of a command that loads a model: where it goes, and in which dtype."""

    device: Device = None
    dtype: Dtype = None
    device_map: DeviceMap = None

    def check(self) -> None:
        """Raise OptionError where no model can be placed so, before one is loaded."""
        from decoding.models.device_options import pick_device, placement

        placement(self.device, self.device_map, None)
        pick_device(self.device)

    def load(self, model: str) -> tuple[Any, Any]:
        """Load a model and its tokenizer; see :func:`decoding.load`."""
        from decoding.models import loading

        return loading.load(model, **dataclasses.asdict(self))


@dataclass(frozen=True)
class ParallelPlacement(Placement):
    """The same, of a command that the processes of torchrun can run together."""

    tp_plan: TpPlan = None


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of its dataclasses as options, in the place of the dataclass.

    A parameter whose annotation is a dataclass of options, such as ``placement: Placement``, becomes one option a
    field, and so do fields that are dataclasses; the command is called with the dataclass. The signature that typer
    reads has the options alone.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups = {
        parameter.name: parameter.annotation
        for parameter in parameters
        if dataclasses.is_dataclass(parameter.annotation)
    }

    @functools.wraps(command)
    def with_groups(**given: Any) -> None:
        command(**{name: _group(kind, given) for name, kind in groups.items()}, **given)

    return with_signature(with_groups, [option for parameter in parameters for option in _options(parameter)])


def _options(parameter: inspect.Parameter) -> Iterator[inspect.Parameter]:
    """Yield the options of a parameter: itself, or those of its dataclass's fields."""
    kind = parameter.annotation
    if not dataclasses.is_dataclass(kind):
        yield parameter
        return
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        yield from _options(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )


def _group(kind: Any, given: dict[str, Any]) -> Any:
    """Take the values of a dataclass's fields out of ``given``, and make the dataclass of them."""
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            field.name: _group(hints[field.name], given)
            if dataclasses.is_dataclass(hints[field.name])
            else given.pop(field.name)
            for field in dataclasses.fields(kind)
        }
    )


def with_signature(command: Callable[..., None], options: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """Tell typer that a function of keyword arguments has these options."""
    parameters = [option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def known_strategies(given: Any) -> Any:
    """Check the names of a ``--strategy`` option while the command line is read, before any model code is imported.

    Raises:
        OptionError: an unknown name.
    """
    for spec in [given] if isinstance(given, str) else given or ():
        strategy_name(spec)
    return given


def complete_strategy(incomplete: str) -> list[str]:
    """Return the strategies that a shell offers for what is typed after ``--strategy``."""
    return [name for name in STRATEGIES if name.startswith(incomplete)]


def strategy_option(names: Iterable[str]) -> Any:
    """Return the option ``--strategy`` of a command that takes one strategy, of these names."""
    return typer.Option(
        metavar="NAME",
        callback=known_strategies,
        autocompletion=complete_strategy,
        help=f"One of {', '.join(names)}; parameters may follow a colon.",
    )


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    """Return the ``name=value`` strings of ``--set`` as a dictionary.

    Raises:
        OptionError: a string without ``=``, or a name given twice.
    """
    return named_values("--set", pairs, "--set top_k=5")


def codes_of(option: str, given: str) -> list[str]:
    """Return the codes of an option such as ``--languages de,fr``.

    Raises:
        OptionError: one that is empty, or given twice.
    """
    codes = [code.strip() for code in given.split(",")]
    if not all(codes):
        raise OptionError(f"{option} {given!r}: a code is empty; expected codes with commas between, such as de,fr")
    twice = next((code for code in codes if codes.count(code) > 1), None)
    if twice is not None:
        raise OptionError(f"{option} {given!r}: {twice} is given twice")
    return codes


def whole_numbers_of(option: str, given: str, expected: str) -> tuple[int, ...]:
    """Return the numbers of an option such as ``--k 2,3``.

    Args:
        option: its name.
        given: its value.
        expected: what the message says of values that are accepted.

    Raises:
        OptionError: something between the commas is no whole number.
    """
    try:
        return tuple(int(number) for number in given.split(","))
    except ValueError:
        raise OptionError(f"{option} {given!r}: expected {expected}") from None


def prompts_of(given: Sequence[str] | None, file: Path | None = None) -> list[str]:
    """Return the prompts of ``--prompt`` and those of a file, or else standard input as one prompt.

    Raises:
        InputError: as :func:`placed_prompts_of`.
    """
    return [prompt for _, prompt in placed_prompts_of(given, file)]


def placed_prompts_of(given: Sequence[str] | None, file: Path | None = None) -> list[tuple[str, str]]:
    """Return the prompts of ``--prompt`` and those of a file, or else standard input as one prompt, each after its
    place as messages name it: "prompt 2" of ``--prompt``, "" where there is one, and of standard input.

    A file has one prompt a line; a table (CSV, JSON, JSON lines, parquet) has them in a column ``prompt``,
    ``prefix_text`` or ``text``.

    Raises:
        InputError: an empty prompt, no prompt at all, or a file that cannot be read.
    """
    several = len(given or ()) > 1
    prompts = [(f"prompt {number}" if several else "", prompt) for number, prompt in enumerate(given or (), 1)]
    if file is not None:
        in_file = list(iter_placed_texts(file, PROMPT_COLUMNS))
        if not in_file:
            raise InputError(f"--prompts {file}: holds no prompt; expected one prompt a line")
        prompts += in_file
    if not prompts and file is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("no prompt: give --prompt TEXT, or pipe a text in")
        try:
            prompts = [("", sys.stdin.read().rstrip("\n"))]
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is no UTF-8 text ({one_line(error)})") from error
    for place, prompt in prompts:
        if not prompt.strip():
            raise InputError(f"{f'{place}: ' if place else ''}the prompt is empty: give at least one word")
    return prompts
