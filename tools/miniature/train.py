"""Train the tokenizer, the expert, the amateur and the induced amateur of the miniature from scratch, on two CPU cores,
in under 20 minutes.

python -m decoding.tools.miniature.train --output models
"""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from decoding.evals.miniature.world import SEED
from decoding.tools.miniature.card import model_card
from decoding.tools.miniature.corpus import Size, make_corpus
from decoding.tools.miniature.inducing import induce_amateur
from decoding.tools.miniature.tokenizer import fast_tokenizer, save_tokenizer, train_sentencepiece
from decoding.tools.miniature.training import AMATEUR, EXPERT, Recipe, new_model, tokenize, train

TOKENIZER_TEXTS = 1200  # of the corpus are enough for the tokenizer, which then takes a second
HELD_OUT = 60  # texts that no model sees, for the held-out loss

app = typer.Typer(add_completion=False)


@app.command(epilog="Example: python -m decoding.tools.miniature.train --output models --minutes 15")
def main(
    output: Annotated[Path, typer.Option(help="Folder that gets expert/, amateur/ and induced/.")] = Path("models"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the expert.")] = 1100,
    amateur_steps: Annotated[int, typer.Option(min=1, help="Training steps of the amateur.")] = 1300,
    minutes: Annotated[
        float | None,
        typer.Option(help="End both trainings within these minutes (the expert gets 85%); results then vary."),
    ] = None,
    volumes: Annotated[int, typer.Option(min=1, help="How often the corpus states each truth.")] = Size.volumes,
    stories: Annotated[int, typer.Option(min=1, help="How many stories the corpus holds.")] = Size.stories,
    seed: Annotated[int, typer.Option(help="Of the world and its corpus.")] = SEED,
    model_seed: Annotated[int, typer.Option(help="Of the first weights and the batches.")] = 0,
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; 1 is faster on a busy machine, where two wait for each other.")
    ] = 2,
    measure: Annotated[bool, typer.Option(help="Measure each model, write its card, and induce an amateur.")] = True,
) -> None:
    """Generate the world and its corpus, then train tokenizer, expert and amateur, and induce another amateur."""
    if minutes is not None and minutes <= 0:
        raise typer.BadParameter(f"must be more than 0, not {minutes}", param_hint="--minutes")
    torch.set_num_threads(threads)
    began = time.perf_counter()
    console = Console(stderr=True)
    console.print("Writing the corpus ...")
    texts = [document.text for document in make_corpus(Size(volumes, stories), seed=seed)]
    tokenizer = fast_tokenizer(train_sentencepiece(texts[:TOKENIZER_TEXTS]))
    held_out, _ = tokenize(tokenizer, texts[:HELD_OUT])
    stream, starts = tokenize(tokenizer, texts[HELD_OUT:])
    console.print(f"{len(texts):,} texts, {len(stream):,} tokens, {len(tokenizer):,} pieces")
    plan = (("expert", EXPERT, steps, 0.85), ("amateur", AMATEUR, amateur_steps, 0.15))
    for name, shape, count, share in plan:
        model = new_model(shape, tokenizer, model_seed)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
            task = progress.add_task(name, total=count)
            outcome = train(
                model,
                stream,
                starts,
                held_out,
                Recipe(steps=count),
                seed=model_seed,
                minutes=None if minutes is None else minutes * share,
                report=lambda step, loss, name=name, task=task: progress.update(  # type: ignore[misc]
                    task, completed=step, description=f"{name}, loss {loss:.3f}"
                ),
            )
        save(model, tokenizer, output / name)
        if measure:
            # measured on what is shipped: the weights as rounded to bfloat16, computed with in float32
            card = model_card(name, model.float(), tokenizer, shape, outcome, seed)
            (output / name / "README.md").write_text(card, encoding="utf-8")
        console.print(
            f"{name}: {outcome.steps} steps in {outcome.seconds:.0f} s, loss {outcome.training_loss:.3f}, "
            f"held out {outcome.held_out_loss:.3f}"
        )
    if measure:
        induce_amateur(output / "expert", output / "induced", seed)
    console.print(f"All in {(time.perf_counter() - began) / 60:.1f} minutes: {output}")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a trained model in bfloat16 with its tokenizer and generation defaults."""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


if __name__ == "__main__":
    app()
