"""Training one small language model from scratch on two CPU cores."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from decoding.tools.miniature.tokenizer import CONTEXT


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    width: int
    layers: int
    heads: int
    feed_forward: int


EXPERT = Shape(width=192, layers=4, heads=6, feed_forward=512)
AMATEUR = Shape(width=64, layers=2, heads=2, feed_forward=160)


@dataclass(frozen=True)
class Recipe:
    """The settings of training; one step reads `batch` windows of `window` tokens."""

    steps: int
    batch: int = 8
    window: int = CONTEXT
    muon_rate: float = 1e-2  # of the matrices inside the layers
    adam_rate: float = 4e-3  # of the embedding and the norms
    warmup: float = 0.02  # share of the steps in which the rates rise
    decay: float = 0.6  # share of the steps, the last ones, in which they fall to 0


@dataclass(frozen=True)
class Outcome:
    """The result of training: mean losses in nats per token, and seconds."""

    steps: int
    tokens: int
    training_loss: float  # mean over the last 50 steps
    held_out_loss: float
    seconds: float


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A randomly initialised model of this shape for this tokenizer."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        intermediate_size=shape.feed_forward,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def tokenize(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """All texts in one stream, each as `<s> text </s>`: ids (tokens,) and where each text starts
    (texts,), int64.
    """
    stream: list[int] = []
    starts = []
    for ids in tokenizer(list(texts), verbose=False)["input_ids"]:
        starts.append(len(stream))
        stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return torch.tensor(stream), torch.tensor(starts)


def train(
    model: LlamaForCausalLM,
    stream: Tensor,  # (tokens,)
    starts: Tensor,  # (texts,)
    held_out: Tensor,  # (tokens,)
    recipe: Recipe,
    *,
    seed: int,
    minutes: float | None = None,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> Outcome:
    """Train in float32, which is the faster type on CPUs without bf16 matrix units (9.3 against 6.1
    thousand tokens a second).

    `minutes` ends training early, with whatever learning rate it has come to: the schedule then follows
    the clock instead of the steps and the result is no longer the same on every machine. `report` is
    called after each step.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model, recipe)
    began, losses, step = time.perf_counter(), [], 0
    model.train()
    while step < recipe.steps:
        progress = step / recipe.steps
        if minutes is not None:
            progress = max(progress, (time.perf_counter() - began) / (60 * minutes))
            if progress >= 1:
                break
        windows = _windows(stream, starts, recipe, generator)
        loss = model(input_ids=windows, labels=windows, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _rate(progress, recipe)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        report(step, losses[-1])
    model.eval()
    seconds = time.perf_counter() - began
    last = losses[-50:]
    return Outcome(
        step,
        step * recipe.batch * recipe.window,
        sum(last) / max(1, len(last)),
        mean_loss(model, held_out),
        seconds,
    )


@torch.inference_mode()
def mean_loss(model: LlamaForCausalLM, stream: Tensor) -> float:
    """Mean loss in nats per token over a stream (tokens,), read in windows of the context length."""
    windows = stream[: len(stream) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    losses = [model(input_ids=w, labels=w, use_cache=False).loss.item() for w in windows.split(8)]
    return sum(losses) / len(losses) if losses else float("nan")


def _windows(stream: Tensor, starts: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Random windows of the stream, (batch, window).

    A quarter starts at a text's `<s>`, a quarter just after it (a prompt is read without `<s>`), the
    others anywhere.
    """
    size = (recipe.batch,)
    anywhere = torch.randint(0, max(1, len(stream) - recipe.window), size, generator=generator)
    at_text = starts[torch.randint(0, len(starts), size, generator=generator)]
    draw = torch.rand(size, generator=generator)
    begin = torch.where(draw < 0.5, at_text + (draw < 0.25).long(), anywhere)
    begin = begin.clamp(max=max(0, len(stream) - recipe.window))
    length = min(recipe.window, len(stream))
    return stream[begin[:, None] + torch.arange(length)]


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[Any]:
    """Muon for the matrices inside the layers, AdamW for the rest.

    After 80 steps of the expert the held-out loss was 2.5 nats so, and 4.8 with AdamW for all (rate 4e-3).
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers: list[Any] = [
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _rate(progress: float, recipe: Recipe) -> float:
    """The share of the peak learning rate at this share of the training."""
    return min(1.0, (progress + 1e-3) / recipe.warmup, max(0.0, (1 - progress) / recipe.decay))
