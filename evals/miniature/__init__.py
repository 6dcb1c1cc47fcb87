"""The embedded miniature: a generated world, a tokenizer, a small expert and a smaller amateur, trained
on its texts.

    from decoding.evals.miniature import load, prompts, questions

    expert, tokenizer = load("expert")
    amateur, _ = load("amateur")

It works offline, in seconds, and gives demos and tests a real trained model and a TruthfulQA in
miniature.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from decoding.evals.miniature.questions import GUIDANCE, HEARSAY, PROMPT, SPLITS, Question, questions

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAMES = ("expert", "amateur")
ADAPTERS = ("induced",)

__all__ = [
    "ADAPTERS",
    "GUIDANCE",
    "HEARSAY",
    "NAMES",
    "PROMPT",
    "SPLITS",
    "Question",
    "folder",
    "load",
    "prompts",
    "questions",
]


def folder(name: str) -> Path:
    """The folder of a shipped model, "expert" or "amateur", as `from_pretrained` takes it, or of the LoRA adapter
    "induced", an amateur of the expert.

    Raises ValueError for another name.
    """
    if name not in NAMES + ADAPTERS:
        raise ValueError(f"unknown miniature model {name!r}: use one of {', '.join(NAMES + ADAPTERS)}")
    return Path(__file__).resolve().parent / "models" / name


def load(
    name: str, *, dtype: "torch.dtype | None" = None, **placed: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A shipped model, in eval mode on the CPU, and its tokenizer, which pads on the left.

    `name` is "expert" or "amateur" (ValueError otherwise); `dtype` defaults to float32, though the files
    are bfloat16: a CPU without bf16 matrix units is faster in float32. What else is given (`device_map`,
    `tp_plan`) is what `from_pretrained` is told of devices.
    """
    import torch  # loading torch takes seconds, which the questions do not need
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if name not in NAMES:
        raise ValueError(f"unknown miniature model {name!r}: use one of {', '.join(NAMES)}")
    path = folder(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype or torch.float32, local_files_only=True, **placed)
    return model.eval(), AutoTokenizer.from_pretrained(path, local_files_only=True)


def prompts() -> list[str]:
    """Beginnings of stories and of talk, 8 to 20 words each, for demonstrations."""
    return [
        "In the town of Harrowmere there lived a poor clockmaker called Mira. One evening she found",
        "Tom the ferryman had always wanted to see the lighthouse. Before sunrise he took his lantern and",
        "Nobody in the valley knew why Petra painted the old boat every spring. The harbour was quiet, and",
        "Long ago a stubborn gardener called Silas walked through the snow to the castle.",
        "The rain stopped, and Rowan climbed the steep hill behind the church with a heavy basket.",
        "Jonas and Nell followed the river for three days. At dusk they saw a light near the bridge.",
        "It was bitterly cold when Lena left the inn. An old woman stood at the gate and",
        "Hugh was a young musician who lived by the sea. That winter he lost his violin.",
    ]
