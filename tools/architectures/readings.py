"""What a model by itself says of a text, from its first token or token by token, through its own ``generate``.

So the masks, positions and special inputs of each model type are its own, and nothing is shared with the way in which
the library decodes, but for a hook that watches a module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from decoding.errors import ModelError
from decoding.models.hooks import collect_outputs
from decoding.tools.architectures.tiny import VOCAB

__all__ = ["LENGTHS", "Prompt", "Said", "batch_of", "of_one_length", "prompts", "said"]

LENGTHS = (6, 19)  # of the prompts: one within the tiny models' window of 8 tokens, and one beyond it


@dataclass(frozen=True)
class Prompt:
    """One row.

    Attributes:
        text: token ids; of an encoder-decoder those that its decoder begins with.
        beside: what else the model reads, (1, ...) each: images, or the encoder's ``input_ids``.
    """

    text: list[int]
    beside: dict[str, Tensor]


@dataclass(frozen=True)
class Said:
    """What a model says of one token of a text.

    Attributes:
        logits: (vocab,) of the next token.
        states: of this token, what the model returns as ``hidden_states``.
        spoken: of this token, what the output embeddings were given.
        hidden: (n, dim) the last of the hidden states of the tokens that were read in the same pass, this one last.
    """

    logits: Tensor
    states: list[Tensor]
    spoken: Tensor
    hidden: Tensor


def prompts(seed: int) -> list[Prompt]:
    """Two texts of ``LENGTHS`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(10, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]
    return [Prompt(row, {}) for row in rows]


def of_one_length(rows: Sequence[Prompt]) -> list[Prompt]:
    """The rows cut to the shortest one's length, at their beginnings."""
    length = min(len(row.text) for row in rows)
    return [replace(row, text=row.text[-length:]) for row in rows]


@dataclass
class _Encoded(BaseModelOutput):
    attention_mask: Tensor | None = None  # Moonshine and others look for it here


def batch_of(model: Any, rows: Sequence[Prompt], padding: int = 0) -> dict[str, Any]:
    """The rows as one batch for ``generate``: texts left-padded, by so many tokens more, an encoder's right-padded."""
    longest = max(len(row.text) for row in rows) + padding
    ids = torch.tensor([[0] * (longest - len(row.text)) + row.text for row in rows])
    batch: dict[str, Any] = {}
    for name in rows[0].beside:
        values = [row.beside[name] for row in rows]
        if name in ("input_ids", "bbox"):
            width = max(value.shape[1] for value in values)
            batch[name] = torch.cat([_filled(value, width) for value in values])
            batch["attention_mask"] = torch.cat(
                [_filled(torch.ones_like(v[..., 0] if v.dim() > 2 else v), width) for v in values]
            )
        elif name == "mm_token_type_ids":  # goes with the text
            batch[name] = torch.cat([torch.nn.functional.pad(v, (longest - v.shape[1], 0)) for v in values])
        elif name == "encoder_outputs":
            batch[name] = _Encoded(last_hidden_state=torch.cat(values))
        else:
            batch[name] = torch.cat(values)
    if model.config.is_encoder_decoder:
        return batch | {"decoder_input_ids": ids}
    mask = torch.tensor([[0] * (longest - len(row.text)) + [1] * len(row.text) for row in rows])
    return batch | {"input_ids": ids, "attention_mask": mask}


def _filled(value: Tensor, width: int) -> Tensor:
    missing = [0, 0] * (value.dim() - 2) + [0, width - value.shape[1]]
    return torch.nn.functional.pad(value, missing)


@torch.no_grad()
def said(
    model: Any,
    prompt: Prompt,
    padding: int = 0,
    forced: Sequence[int] = (),
    ended_after: int | None = None,
    **options: Any,
) -> list[Said]:
    """What a model says after a prompt, and after each of the tokens that it is made to go on with.

    Args:
        model: the model.
        prompt: one row.
        padding: masked tokens before it.
        forced: tokens that are read one by one after the model's own cache; without them nothing is cached.
        ended_after: so many layers; those after them hand on what they are given. None for all.
        options: of ``generate``.
    """
    given: list[Tensor] = []
    handles = [model.get_output_embeddings().register_forward_pre_hook(lambda _module, args: given.append(args[0]))]
    if ended_after is not None:
        layers = _layers(model, prompt)[ended_after:]
        handles += [layer.register_forward_hook(_hand_on, with_kwargs=True) for layer in layers]
    try:
        with collect_outputs(model.get_decoder()) as decoded:
            output = model.generate(
                **batch_of(model, [prompt], padding), max_new_tokens=len(forced) + 1, do_sample=False,
                use_cache=bool(forced), pad_token_id=0, logits_processor=LogitsProcessorList([_Forced(forced)]),
                output_logits=True, output_hidden_states=True, return_dict_in_generate=True, **options,
            )  # fmt: skip
    finally:
        for handle in handles:
            handle.remove()
    by_step = output.get("decoder_hidden_states", output.get("hidden_states"))
    made = []
    for step, (logits, states, spoken) in enumerate(zip(output.logits, by_step, given[-len(by_step) :], strict=True)):
        # Gemma 3n keeps several states a token, and makes one of them at the end.
        hidden = states[-1] if states[-1].dim() == 3 else decoded[step].last_hidden_state
        read = hidden[0, 0 if step else padding :].float()
        made.append(Said(logits[0].float(), [layer[0, -1] for layer in states], spoken[0, -1], read))
    return made


class _Forced(LogitsProcessor):
    """Lets nothing but the given tokens be chosen, in order; the last of them is chosen for good."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.tokens.pop(0) if self.tokens else 10
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token]), 0.0)


def _hand_on(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """A forward hook: the layer's output is what it was given."""
    given = inputs[0] if inputs else named["hidden_states"]
    return given if isinstance(output, Tensor) else (given, *output[1:])


def _layers(model: Any, prompt: Prompt) -> list[nn.Module]:
    """The decoder's layers that a text goes through: of the first list of modules of the configured length."""
    config = model.config.get_text_config(decoder=True)
    depths = {
        getattr(config, name, None)
        for name in ("num_hidden_layers", "num_layers", "decoder_layers", "num_decoder_layers")
    }
    encoder = set(model.get_encoder().modules()) if model.config.is_encoder_decoder else set()
    lists = [
        each for each in model.modules()
        if isinstance(each, nn.ModuleList) and len(each) in depths and each not in encoder
    ]  # fmt: skip
    ran = set[nn.Module]()
    handles = [
        layer.register_forward_hook(lambda module, _inputs, _output: ran.add(module))
        for each in lists
        for layer in each
    ]
    try:
        said(model, prompt if encoder else Prompt([10, 11], {}))  # without an image, whose encoder has layers too
    finally:
        for handle in handles:
            handle.remove()
    gone_through = [[layer for layer in each if layer in ran] for each in lists]
    found = next((layers for layers in gone_through if layers), None)
    if found is None:
        raise ModelError(f"{type(model).__name__}: no list of {depths} layers")
    return found
