"""``decoding generate``: continue texts with a strategy."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from transformers import TextStreamer

from decoding.capabilities.chunked_prefill import enable_chunked_prefill
from decoding.cli.options import (
    Device,
    DeviceMap,
    Dtype,
    Json,
    Model,
    Output,
    PrefillChunk,
    Seed,
    TpPlan,
    prompts_of,
    settings_of,
)
from decoding.cli.output import as_json, progress, writable, write_files
from decoding.errors import OptionError
from decoding.generation.strategy import Strategy
from decoding.models.devices import is_main_process
from decoding.models.loading import load
from decoding.strategies.registry import STRATEGIES, StrategySpec, parse_strategy
from decoding.text import (
    Continuation,
    _check_count,
    continuations,
)

__all__ = ["generate_command"]


def generate_command(
    model: Model = "expert",
    strategy: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"One of {', '.join(STRATEGIES)}; parameters may follow a colon."),
    ] = "contrastive-search",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the strategy; repeatable.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="The text to continue; repeatable; by default standard input."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="At most so many new tokens; by default 100, or what the context leaves."
        ),
    ] = None,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, metavar="N", help="Texts a prompt, with sampling or beam.")
    ] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text as it comes; one prompt.")] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="Capture the decode step: faster on a GPU once captured, the same text.")
    ] = False,
    prefill_chunk: PrefillChunk = None,
    seed: Seed = 0,
    device: Device = None,
    dtype: Dtype = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    json: Json = False,
    output: Output = None,
) -> None:
    """Continue a text.

    Example: decoding generate --prompt "The old clockmaker" --set top_k=5
    """
    choice = parse_strategy(strategy, settings_of(set_ or []))
    prompts = prompts_of(prompt)
    _check_count(choice, num_return_sequences)
    if compile and not isinstance(choice.strategy, Strategy):
        raise OptionError(f"--compile: {choice.name} is transformers' own; accepted are the strategies of this library")
    if stream:
        _check_stream(choice, prompts, json, num_return_sequences)
    writable(output)
    loaded, tokenizer = load(model, device, dtype, device_map=device_map, tp_plan=tp_plan)
    enable_chunked_prefill(loaded, prefill_chunk, padded=False)
    first = is_main_process(loaded)
    streamer = TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True) if stream and first else None
    records = []
    with progress(shown=first) as bar:
        task = bar.add_task(choice.name, total=len(prompts), visible=len(prompts) > 1)
        for each in prompts:
            for made in continuations(
                loaded, tokenizer, choice, each, max_new_tokens=max_new_tokens, seed=seed, chat=chat,
                count=num_return_sequences, streamer=streamer, compile=compile,
            ):  # fmt: skip
                record = _record(made, choice, model)
                records.append(as_json(record))
                if not stream and first:
                    print(records[-1] if json else made.text, flush=True)
            bar.advance(task)
    write_files(output if first else None, {"generate.jsonl": "".join(f"{record}\n" for record in records)})


def _record(made: Continuation, choice: StrategySpec, model: str) -> dict[str, Any]:
    return {
        "prompt": made.prompt,
        "text": made.text,
        "continuation": made.continuation,
        "strategy": choice.name,
        "parameters": choice.parameters,
        "new_tokens": made.new_tokens,
        "seconds": round(made.seconds, 4),
        "model": model,
    }


def _check_stream(choice: StrategySpec, prompts: list[str], json: bool, count: int) -> None:
    if json:
        raise OptionError("--stream prints text and --json an object: give one of them")
    if len(prompts) > 1 or count > 1:
        raise OptionError("--stream: accepted is one prompt and one text")
    if choice.name == "beam":
        raise OptionError("--stream: beam search knows its text only at the end; accepted are the other strategies")
