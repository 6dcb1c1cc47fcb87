"""``decoding generate``: continue texts with a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from decoding.cli.options import (
    Chat,
    GenerationOptions,
    Json,
    MaxNewTokens,
    Model,
    Output,
    ParallelPlacement,
    PrefillChunk,
    Seed,
    Settings,
    expanded,
    prompts_of,
    settings_of,
    strategy_option,
)
from decoding.cli.output import as_json, progress, writable, write_files
from decoding.errors import InputError, OptionError
from decoding.strategies.baselines import Baseline
from decoding.strategies.generation_options import OPTIONS, check_apply, options_from_text
from decoding.strategies.parameters_text import from_text
from decoding.strategies.registry import STRATEGIES, StrategySpec, parse_strategy

if TYPE_CHECKING:
    from decoding.text import Continuation

__all__ = ["generate_command"]


@expanded
def generate_command(
    *,
    model: Model = "expert",
    strategy: Annotated[str, strategy_option(STRATEGIES)] = "contrastive-search",
    set_: Settings = None,
    generation_config: GenerationOptions = None,
    drafts: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Propose tokens ahead, same text sooner: prompt-lookup, amateur (the strategy's), exit:LAYER (the "
            "model's first layers), or a smaller model of the same tokens.",
        ),
    ] = None,
    draft_tokens: Annotated[
        str | None,
        typer.Option(metavar="N", help="Drafts of a round; by default auto, which adapts to what was accepted."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="The text to continue; repeatable; by default standard input."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An image that the prompts are about, for a model of images; repeatable."),
    ] = None,
    audio: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A WAV file to write down, or that the prompts are about, for a model of sound."
        ),
    ] = None,
    max_new_tokens: MaxNewTokens = None,
    num_return_sequences: Annotated[
        int, typer.Option(min=1, metavar="N", help="Texts per prompt, with sampling or beam.")
    ] = 1,
    chat: Chat = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the text while it is generated; one prompt.")] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="CUDA graphs of the decode step: faster after their capture, same text.")
    ] = False,
    prefill_chunk: PrefillChunk = None,
    seed: Seed = 0,
    placement: ParallelPlacement,
    json: Json = False,
    output: Output = None,
) -> None:
    """Continue a text.

    What the model's generation_config.json has beside the strategy (penalties, banned tokens) acts too, as in
    transformers' own generate(); --generation-config sets it for this call.

    Example: decoding generate --prompt "The old clockmaker" --set top_k=5 --drafts prompt-lookup
    """
    spec = parse_strategy(strategy, settings_of(set_ or []))
    options = _with_drafts(options_from_text(generation_config or ()), drafts, draft_tokens)
    check_apply(options, [spec])
    _check_media(spec, image or (), audio)
    prompts = [""] if audio is not None and prompt is None else prompts_of(prompt)
    if compile and isinstance(spec.strategy, Baseline):
        raise OptionError(f"--compile: {spec.name} is a strategy of transformers; expected one of this library")
    if stream:
        _check_stream(spec, prompts, json, num_return_sequences)

    from transformers import TextStreamer

    from decoding.capabilities.chunked_prefill import enable_chunked_prefill
    from decoding.models.devices import is_main_process
    from decoding.models.loading import load_processor
    from decoding.models.media import read_image, read_sound, sampling_rate
    from decoding.strategies.effective_config import decoded_with, effective_config
    from decoding.text import check_count, check_prompts, continuations

    check_count(spec, num_return_sequences)
    writable(output)
    media = ({"images": [str(path) for path in image]} if image else {}) | ({"audio": str(audio)} if audio else {})
    images = [read_image(path) for path in image or ()]
    processor = load_processor(model) if images or audio is not None else None
    sound = None if audio is None else read_sound(audio, sampling_rate(processor))
    loaded, tokenizer = placement.load(model)
    enable_chunked_prefill(loaded, prefill_chunk, padded=False)
    if not media and len(prompts) > 1:
        check_prompts(loaded, tokenizer, prompts, max_new_tokens=max_new_tokens, chat=chat)
    main = is_main_process(loaded)
    streamer = TextStreamer(tokenizer, skip_prompt=chat, skip_special_tokens=True) if stream and main else None
    effective = effective_config(spec, loaded, options, folder=True)
    lines = []
    with decoded_with(loaded, options, folder=True), progress(shown=main) as bar:
        task = bar.add_task(spec.name, total=len(prompts), visible=len(prompts) > 1)
        for text in prompts:
            for continuation in continuations(
                loaded, processor or tokenizer, spec, text, max_new_tokens=max_new_tokens, seed=seed, chat=chat,
                count=num_return_sequences, streamer=streamer, compile=compile, images=images, sound=sound,
            ):  # fmt: skip
                lines.append(as_json(_record(continuation, spec, effective, model) | media))
                if not stream and main:
                    print(lines[-1] if json else continuation.text, flush=True)
            bar.advance(task)
    write_files(output if main else None, {"generate.jsonl": "".join(f"{line}\n" for line in lines)})


def _check_media(spec: StrategySpec, images: Sequence[Path], audio: Path | None) -> None:
    """Raise InputError where a strategy changes an image or sound and none is given."""
    needed = getattr(spec.strategy, "media", None)
    if needed == "image" and not images:
        raise InputError(f"--strategy {spec.name} changes the image of the prompt: give --image FILE")
    if needed == "audio" and audio is None:
        raise InputError(f"--strategy {spec.name} changes the sound: give --audio FILE")


def _with_drafts(options: dict[str, Any], drafts: str | None, draft_tokens: str | None) -> dict[str, Any]:
    """The options of ``--generation-config`` with those of ``--drafts`` and ``--draft-tokens``."""
    for name, text in (("drafts", drafts), ("draft_tokens", draft_tokens)):
        if text is not None:
            option = f"--{name.replace('_', '-')}"
            if name in options:
                raise OptionError(f"{option}: --generation-config {name} is given too; give one of them")
            value = from_text(name, text, OPTIONS[name].kind)
            OPTIONS[name].check(option, value)
            options[name] = value
    return options


def _record(
    continuation: Continuation, spec: StrategySpec, generation_config: Mapping[str, Any], model: str
) -> dict[str, Any]:
    return {
        "prompt": continuation.prompt,
        "text": continuation.text,
        "continuation": continuation.continuation,
        "strategy": spec.name,
        "parameters": spec.recorded,
        "generation_config": generation_config,
        "new_tokens": continuation.new_tokens,
        "seconds": round(continuation.seconds, 4),
        "model": model,
    }


def _check_stream(spec: StrategySpec, prompts: list[str], json: bool, count: int) -> None:
    if json:
        raise OptionError("--stream prints text and --json an object: give one of them")
    if len(prompts) > 1 or count > 1:
        raise OptionError("--stream: expected one prompt and one text")
    if spec.name == "beam":
        raise OptionError("--stream: beam search knows its text only at the end; expected another strategy")
