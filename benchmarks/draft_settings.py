"""What ``drafts.py`` measures: prompts, strategies and kinds of drafts, by name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "LOOKED_UP",
    "RANDOM",
    "SETTINGS",
    "Setting",
    "Text",
    "amateur_of",
    "articles",
    "context_aware",
    "no_strategy",
    "questions",
    "search",
]


@dataclass(frozen=True)
class Text:
    """A prompt, and a context that is put before it."""

    prompt: str
    context: str = ""


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: name or folder.
        texts: of the prompts.
        strategy: makes the strategy from model, tokenizer and texts; None is greedy search with the contexts.
        drafts: by title.
    """

    model: str
    texts: Callable[[argparse.Namespace], Sequence[Text]]
    strategy: Callable[[Any, Any, Sequence[Text], argparse.Namespace], Any]
    drafts: dict[str, Any] = field(default_factory=dict)


def articles(options: argparse.Namespace) -> list[Text]:
    """XSum's articles, each to be summarised."""
    texts = []
    for file in sorted((options.data / "summarization").glob("xsum_train_*.json")):
        for entry in json.loads(file.read_text(encoding="utf-8")):
            article = entry["context"].rpartition("\n\nArticle:\n")[2].partition("\n\nSummarization:")[0]
            texts.append(Text("\nThe article in a few sentences:", f"Article:\n{article[:1600]}\n"))
    return texts


def questions(options: argparse.Namespace) -> list[Text]:
    """HaluEval's questions, each with the knowledge that answers it."""
    lines = (options.data / "halueval" / "qa_one-turn_data.json").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines[: options.prompts * 4]]
    return [Text(f"Question: {entry['question']}\nAnswer:", f"{entry['knowledge']}\n") for entry in entries]


def openings(*texts: str) -> Callable[[argparse.Namespace], list[Text]]:
    """Given prompts."""
    return lambda options: [Text(text) for text in texts]


STORIES = openings(
    "Once upon a time there was a little", "One day Tom and Lily went to the", "The dog wanted to play with",
    "In a small house by the sea lived", "Mia had a red ball that she", "It was raining, so the children",
    "The old man said to the boy", "A big bear came out of the",
)  # fmt: skip
TOWN = openings(
    "The town lies", "The river rises in", "Question: Where is the old bridge?\nAnswer:", "The market is held",
    "In the north of the town", "The people of the valley", "Question: What do they make there?\nAnswer:", "In spring",
)  # fmt: skip
FACTS = openings(
    "The capital of France is", "Water boils at a temperature of", "The main causes of the First World War were",
    "To make bread at home you need", "Photosynthesis is the process by which", "The human heart has",
    "In computer science, a stack is", "The Great Wall of China was built",
)  # fmt: skip


def context_aware(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
    """Context-aware decoding, a context a row."""
    import decoding

    return decoding.ContextAware([text.context for text in texts], tokenizer=tokenizer)


def against(amateur: str) -> Callable[..., Any]:
    """Contrastive decoding against an amateur."""

    def make(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
        import decoding

        return decoding.ContrastiveDecoding(amateur_of(amateur, model, options), tokenizer=tokenizer)

    return make


def lol(amateur: str, lower_layers: Sequence[float]) -> Callable[..., Any]:
    """LOL with guidance, its readers fused."""

    def make(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
        import decoding

        return decoding.LOL(amateur_of(amateur, model, options), lower_layers, guidance="default", tokenizer=tokenizer)

    return make


def search(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
    """Contrastive search."""
    import decoding

    return decoding.ContrastiveSearch()


def no_strategy(*given: Any) -> None:
    """Greedy search."""


def amateur_of(amateur: str, model: Any, options: argparse.Namespace) -> Any:
    """An amateur by name; "lora" is the adapter of the command line, or one with random weights."""
    if amateur != "lora":
        return str(options.models / amateur) if (options.models / amateur).is_dir() else amateur
    if options.adapter is not None:
        return str(options.adapter)
    import peft
    import torch

    if "amateur" not in getattr(model, "peft_config", {}):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, model, adapter_name="amateur")
        model.peft_config = {"amateur": config}
        model.float()
    return "amateur"


RANDOM = "random"  # the model with random weights
GIVEN = {"right with 60%": "given:0.6", "right with 90%": "given:0.9"}
LOOKUP = {"prompt lookup": "prompt-lookup"}
SMOLLM, THIRDS = "smollm2-135m", (0.25, 0.5, 0.75)
SETTINGS = {
    "greedy with an article": Setting(SMOLLM, articles, no_strategy, LOOKUP),
    "context-aware, articles": Setting(SMOLLM, articles, context_aware, LOOKUP),
    "greedy with knowledge": Setting(SMOLLM, questions, no_strategy, LOOKUP),
    "context-aware, questions": Setting(SMOLLM, questions, context_aware, LOOKUP),
    "contrastive decoding, SmolLM2 and LoRA": Setting(SMOLLM, FACTS, against("lora"), LOOKUP),
    "LOL, SmolLM2 and LoRA": Setting(SMOLLM, FACTS, lol("lora", THIRDS), LOOKUP),
    "LOL, SmolLM2 and LoRA, questions": Setting(SMOLLM, questions, lol("lora", THIRDS), LOOKUP),
    "contrastive search, SmolLM2": Setting(SMOLLM, FACTS, search, {**LOOKUP, "exit 20": "exit:20"}),
    "contrastive search, SmolLM2, questions": Setting(SMOLLM, questions, search, LOOKUP),
    "contrastive decoding, embedded": Setting("expert", TOWN, against("amateur"), {**LOOKUP, "amateur": "amateur"}),
    "LOL, embedded": Setting("expert", TOWN, lol("induced", THIRDS), {**LOOKUP, "assistant": "model:amateur"}),
    "contrastive search, embedded": Setting("expert", TOWN, search, {"exit 2": "exit:2", "assistant": "model:amateur"}),
    "contrastive decoding, stories3M": Setting(
        "stories3M", STORIES, against("stories3M-amateur"), {**LOOKUP, "amateur": "amateur"}
    ),
    "LOL, stories3M": Setting(
        "stories3M", STORIES, lol("stories3M-amateur", THIRDS), {**LOOKUP, "amateur": "amateur"}
    ),
    "contrastive search, stories3M": Setting(
        "stories3M", STORIES, search, {**LOOKUP, "exit 4": "exit:4", "assistant": "model:stories3M-amateur"}
    ),
    "greedy, given": Setting(RANDOM, openings(*[""] * 8), no_strategy, GIVEN),
    "contrastive search, given": Setting(RANDOM, openings(*[""] * 8), search, GIVEN),
}  # fmt: skip
LOOKED_UP = [name for name, setting in SETTINGS.items() if "prompt lookup" in setting.drafts]
