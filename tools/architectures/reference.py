"""Reference outputs: a model's logits and states of a text, from its first token or token by token.

They come from the model's own ``generate``, so that masks, positions and special inputs are those of its type. Nothing
is shared with the library's decoding, but for a hook that collects a module's outputs and a memo of a model's layers.
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
from decoding.models.memo import PerModelMemo
from decoding.models.text_config import text_config
from decoding.tools.architectures.tiny import VOCAB

__all__ = ["LENGTHS", "Prompt", "ReferenceStep", "batch_of", "of_one_length", "prompts", "reference_steps"]

_layers_of = PerModelMemo[list[nn.Module]]()
LENGTHS = (6, 19)  # of the prompts: one within the tiny models' window of 8 tokens, and one beyond it


@dataclass(frozen=True)
class Prompt:
    """One row.

    Attributes:
        text: token ids; for an encoder-decoder the first ones of its decoder.
        other_inputs: of the model, (1, ...) each: images, or the encoder's ``input_ids``.
    """

    text: list[int]
    other_inputs: dict[str, Tensor]


@dataclass(frozen=True)
class ReferenceStep:
    """The outputs of a model for one token of a text.

    Attributes:
        logits: (vocab,) of the next token.
        states: its states in the ``hidden_states`` that the model returns.
        head_input: its input of the output embeddings.
        hidden: (n, dim) last hidden states of the tokens of the same pass, this one last.
    """

    logits: Tensor
    states: list[Tensor]
    head_input: Tensor
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
    attention_mask: Tensor | None = None  # Moonshine and others expect it here


def batch_of(model: Any, rows: Sequence[Prompt], padding: int = 0) -> dict[str, Any]:
    """The rows as one batch for ``generate``: texts left-padded, with ``padding`` more, encoder inputs right-padded."""
    longest = max(len(row.text) for row in rows) + padding
    ids = torch.tensor([[0] * (longest - len(row.text)) + row.text for row in rows])
    batch: dict[str, Any] = {}
    for name in rows[0].other_inputs:
        values = [row.other_inputs[name] for row in rows]
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
def reference_steps(
    model: Any,
    prompt: Prompt,
    padding: int = 0,
    forced: Sequence[int] = (),
    ended_after: int | None = None,
    **options: Any,
) -> list[ReferenceStep]:
    """The outputs of a model after a prompt, and after each of the tokens that it is forced to continue with.

    Args:
        model: the model.
        prompt: one row.
        padding: masked tokens before it.
        forced: tokens that are read one by one after the model's own cache; without them nothing is cached.
        ended_after: number of layers; those after them pass on their input. None for all.
        options: of ``generate``.
    """
    head_inputs: list[Tensor] = []
    head = model.get_output_embeddings()
    handles = [head.register_forward_pre_hook(lambda _module, args: head_inputs.append(args[0]))]
    if ended_after is not None:
        layers = _layers_of.get(model, None, lambda: _layers(model, prompt))[ended_after:]
        handles += [layer.register_forward_hook(_pass_on, with_kwargs=True) for layer in layers]
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
    steps = []
    head_inputs = head_inputs[-len(by_step) :]
    for step, (logits, states, head_input) in enumerate(zip(output.logits, by_step, head_inputs, strict=True)):
        # Gemma 3n keeps several states a token, and merges them at the end.
        hidden = states[-1] if states[-1].dim() == 3 else decoded[step].last_hidden_state
        of_pass = hidden[0, 0 if step else padding :].float()
        steps.append(ReferenceStep(logits[0].float(), [layer[0, -1] for layer in states], head_input[0, -1], of_pass))
    return steps


class _Forced(LogitsProcessor):
    """Forces the given tokens, in order."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.tokens.pop(0) if self.tokens else 10
        return torch.full_like(scores, -torch.inf).index_fill_(1, torch.tensor([token]), 0.0)


def _pass_on(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """A forward hook: the layer's output becomes its input."""
    states = inputs[0] if inputs else named["hidden_states"]
    return states if isinstance(output, Tensor) else (states, *output[1:])


def _layers(model: Any, prompt: Prompt) -> list[nn.Module]:
    """The decoder's layers that a text goes through: of the first list of modules of the configured length."""
    config = text_config(model)
    depths = {
        getattr(config, name, None)
        for name in ("num_hidden_layers", "num_layers", "decoder_layers", "num_decoder_layers")
    }
    encoder = set(model.get_encoder().modules()) if model.config.is_encoder_decoder else set()
    lists = [
        module for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) in depths and module not in encoder
    ]  # fmt: skip
    ran = set[nn.Module]()
    handles = [
        layer.register_forward_hook(lambda module, _inputs, _output: ran.add(module))
        for layers in lists
        for layer in layers
    ]
    try:
        reference_steps(
            model, prompt if encoder else Prompt([10, 11], {})
        )  # without an image, whose encoder has layers too
    finally:
        for handle in handles:
            handle.remove()
    in_use = [[layer for layer in layers if layer in ran] for layers in lists]
    decoder = next((layers for layers in in_use if layers), None)
    if decoder is None:
        raise ModelError(f"{type(model).__name__}: no list of {depths} layers")
    return decoder
