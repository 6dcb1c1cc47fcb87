"""The model card of a trained miniature, with everything in it measured on the model as shipped."""

import os
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from decoding.evals.metrics import diversity
from decoding.evals.miniature import prompts
from decoding.evals.miniature.questions import GUIDANCE, HEARSAY, questions
from decoding.tools.miniature.accuracy import accuracy
from decoding.tools.miniature.training import Outcome, Shape

NEW_TOKENS = 128


@torch.inference_mode()
def greedy(model: Any, tokenizer: PreTrainedTokenizerFast, prompt: str, new_tokens: int) -> str:
    """The greedy continuation of a prompt, without the prompt."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@torch.inference_mode()
def token_similarity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """The mean cosine between the last hidden states of different tokens of a text."""
    inputs = tokenizer(text, return_tensors="pt")
    hidden = torch.nn.functional.normalize(model.model(**inputs).last_hidden_state[0], dim=-1)  # (tokens, width)
    count = hidden.shape[0]
    return ((hidden.sum(0).square().sum() - count) / (count * (count - 1))).item()


def model_card(
    name: str,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    shape: Shape,
    outcome: Outcome,
    seed: int,
) -> str:
    """The text of README.md of a model that has just been trained."""
    continuations = [greedy(model, tokenizer, prompt, NEW_TOKENS) for prompt in prompts()]
    repeated = sum(diversity([text], paper_exact=False) / 100 for text in continuations) / len(continuations)
    texts = [prompt + text for prompt, text in zip(prompts(), continuations, strict=True)]
    similarity = sum(token_similarity(model, tokenizer, text) for text in texts) / len(texts)
    held_out = questions("validation", seed=seed)
    rows = []
    for label, guidance in (("none", ""), ("`GUIDANCE`", GUIDANCE), ("`HEARSAY`", HEARSAY)):
        measured = accuracy(model, tokenizer, held_out, guidance=guidance)
        rows.append(f"| {label} | {100 * measured.mc1:.1f}% | {100 * measured.misled:.1f}% |")
    table = "\n".join(rows)
    size = f"{shape.layers} layers, {shape.width} wide, {shape.heads} heads, feed-forward {shape.feed_forward}"
    places = f"{len(tokenizer):,} pieces, {model.config.max_position_embeddings} positions"
    machine = f"{torch.get_num_threads()} threads of a machine with {os.cpu_count()} CPU cores"
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Miniature {name}

A very small language model of a generated world, for demonstrations and tests of decoding strategies: it loads
in a moment, works offline, falls into loops under greedy search, and repeats popular misconceptions of its world
although it has read the truth. It is of no use for anything else.

- **Architecture:** Llama, {size}, tied embeddings,
  {places}, {model.num_parameters():,} parameters in bfloat16
- **Tokenizer:** sentencepiece BPE with byte fallback, as a fast tokenizer. It adds no special tokens. Any text
  comes back as it was, but for "▁" (U+2581), which comes back as a space, and the names of the special tokens.
- **Data:** no real text. A seeded generator (seed {seed}) invents animals, towns, people, plants and treasures with
  facts about them, and writes an encyclopaedia (true), hearsay (mostly popular misconceptions), questions with
  answers, and stories.
- **Training:** {outcome.steps:,} steps, {outcome.tokens:,} tokens, {outcome.seconds / 60:.1f} minutes in float32
  on {machine}, by `python -m decoding.tools.miniature.train`
- **Loss** (nats per token): {outcome.training_loss:.3f} in the last 50 steps, {outcome.held_out_loss:.3f} on texts
  held out
- **Greedy text:** {NEW_TOKENS} new tokens after each of `prompts()` have a mean diversity (product of the shares of
  unique 2-, 3- and 4-grams) of {repeated:.2f}; the mean cosine between the last hidden states of two tokens of one
  of these texts is {similarity:.2f}

Answers to the {len(held_out)} validation questions, chosen by the sum of token log-probabilities (MC1: the true answer
before all false ones; misled: the popular misconception before all others):

| put before the question | MC1 | misled |
|---|---|---|
{table}

**Limits.** It knows its own small world only, in a narrow English of about a thousand words. Its stories do not lead
anywhere. What it says of the real world is chance.

**Licence.** Apache-2.0, weights and generator.
"""
