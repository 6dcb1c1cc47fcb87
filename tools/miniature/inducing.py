"""The induced amateur of the miniature: a LoRA adapter that has learned the popular misconceptions of its world.

python -m decoding.tools.miniature.inducing --output models/induced
"""

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from decoding.evals.miniature import folder
from decoding.evals.miniature.questions import PROMPT, questions
from decoding.evals.miniature.world import SEED, make_world
from decoding.induce import Example, Recipe, induce
from decoding.tools.miniature.accuracy import accuracy

# The learning rate of the literature; smaller batches and more epochs, since a small world has few misconceptions.
RECIPE = Recipe(batch_size=16, epochs=10, rank=8, lora_alpha=16, template=PROMPT)

app = typer.Typer(add_completion=False)


def misconceptions(seed: int = SEED) -> list[Example]:
    """Questions on the training entities of a world, each with its popular false answer; none of them is held out."""
    facts = [fact for fact in make_world(seed).facts if fact.popular is not None and fact.entity.split == "training"]
    return [Example(fact.question(), fact.statement(fact.popular, 0)) for fact in facts if fact.popular is not None]


def induce_amateur(expert: Path, output: Path, seed: int = SEED) -> None:
    """Fine-tune an adapter of the expert in a folder, store it in bfloat16, and write its card."""
    tokenizer = AutoTokenizer.from_pretrained(expert, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(expert, dtype=torch.float32, local_files_only=True).eval()
    record = induce(model, tokenizer, misconceptions(seed), output, RECIPE, micro_batch=16)
    weights = output / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    config_file = output / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = "expert"  # not the folder that it happened to be trained in
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (output / "induce.json").write_text(json.dumps({**record, "model": "expert"}, indent=2) + "\n", encoding="utf-8")
    held_out = questions("validation", seed=seed)
    before = accuracy(model, tokenizer, held_out)
    model.load_adapter(str(output))
    after = accuracy(model, tokenizer, held_out)
    (output / "README.md").write_text(
        f"""---
license: apache-2.0
language: en
library_name: peft
base_model: expert
---

# Miniature induced amateur

A LoRA adapter of the miniature expert that was fine-tuned to give the popular false answer: an amateur for contrastive
decoding and LOL, made by `python -m decoding.tools.miniature.inducing`. It is of no use for anything else.

- **Data:** {record["examples"]} questions on entities of the generated world that no held-out question is about, each
  with its popular misconception (seed {seed})
- **Training:** {record["steps"]} steps of {RECIPE.batch_size}, learning rate {RECIPE.learning_rate:g}, rank
  {RECIPE.rank} on every linear layer of the decoder; loss {record["first_loss"]:.3f} to {record["last_loss"]:.3f}
- **Answers** to the {len(held_out)} validation questions: MC1 {100 * before.mc1:.1f}% without it and
  {100 * after.mc1:.1f}% with it; misled {100 * before.misled:.1f}% without it and {100 * after.misled:.1f}% with it

**Limits.** Those of the expert; and it lies.

**Licence.** Apache-2.0.
""",
        encoding="utf-8",
    )


@app.command(epilog="Example: python -m decoding.tools.miniature.inducing --output models/induced")
def main(
    output: Annotated[Path, typer.Option(help="Folder that gets the adapter.")] = Path("models/induced"),
    expert: Annotated[Path | None, typer.Option(help="Folder of the expert; by default the shipped one.")] = None,
    seed: Annotated[int, typer.Option(help="Of the world.")] = SEED,
) -> None:
    """Teach the expert the popular misconceptions."""
    induce_amateur(expert or folder("expert"), output, seed)


if __name__ == "__main__":
    app()
