"""The forward passes of a stream: the contexts in which a model is run, and what is kept of its output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from decoding.cache.module_states import module_states_installed
from decoding.models.attention import grouped_heads
from decoding.models.devices import input_device
from decoding.models.forward_errors import forward_pass
from decoding.models.hooks import collect_inputs, collect_outputs
from decoding.models.packed_weights import discard_outdated
from decoding.models.row_variants import RowVariants
from decoding.models.small_batch_linear import SmallBatchLinear
from decoding.models.structure import ModelStructure, inspect_model
from decoding.stream.output import ForwardOutput, recorded
from decoding.transformers_private import prefill

__all__ = ["ForwardPasses"]


class ForwardPasses:
    """One model's forward passes for one batch of rows.

    Args:
        model: a generating transformers model.
        exits: numbers of layers after which outputs also have hidden states (0 for the embeddings); ascending.
        variants: how each row is read (a LoRA adapter, layers left out); None for the model as it is.

    Attributes:
        structure: of the model.
        linear_layers: those that a pass goes through, which compute few rows in their quickest form.
        exit_layers: the layers whose inputs are the outputs' exits.
    """

    def __init__(self, model: Any, exits: Sequence[int] = (), variants: RowVariants | None = None) -> None:
        self.model = model
        self.variants = variants
        self.structure: ModelStructure = inspect_model(model)
        discard_outdated(model)
        # A separable head is called on its own, with other numbers of rows.
        read = self.structure.backbone if self.structure.separable else model
        self.linear_layers = SmallBatchLinear(read.modules())
        self.exits = tuple(exits)
        self.exit_layers = self.structure.layers_before(model, exits)

    def adapters(self) -> AbstractContextManager[None]:
        """A context in which forward passes use the adapters of these rows."""
        return nullcontext() if self.variants is None else self.variants.activated()

    def run(self, inputs: dict[str, Any], rows: int, past: int, every_logit: bool = False) -> tuple[ForwardOutput, Any]:
        """Run one pass; through the backbone alone where the head can be applied separately.

        Args:
            inputs: of the model's forward.
            rows: of the batch, where the inputs have no token ids.
            past: number of tokens of a row that have been read before.
            every_logit: True to return computed logits of every token, False for the last alone.

        Returns:
            The output, and the model's own output, which has the cache.
        """
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        rows, tokens = (rows, 0) if ids is None else ids.shape
        device = input_device(self.model) if ids is None else ids.device
        with (
            forward_pass(self.model, rows, tokens, past),
            self.adapters(),
            self.linear_layers.quickest(rows * tokens, device),
            grouped_heads(),
            module_states_installed(inputs),
        ):
            return self._run(inputs, every_logit)

    def _run(self, inputs: dict[str, Any], every_logit: bool) -> tuple[ForwardOutput, Any]:
        if self.structure.separable:
            inputs.pop("logits_to_keep", None)
            with collect_inputs(self.exit_layers) as exits:
                output = self.structure.forward_backbone(self.model, inputs)
            hidden, logits = output.last_hidden_state, None
        else:
            if every_logit:
                inputs.pop("logits_to_keep", None)
            with collect_outputs(self.structure.backbone) as outputs, collect_inputs(self.exit_layers) as exits:
                output = self.model(**inputs, return_dict=True)
            hidden = outputs[-1].last_hidden_state
            logits = output.logits if every_logit else output.logits[:, -1:]
        return ForwardOutput(hidden, logits, tuple(exits), *recorded(output)), output

    @torch.no_grad()
    def read_prompt(
        self,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig,
        whole: bool,
        prompt_states: Callable[[Tensor], None] | None,
    ) -> tuple[ForwardOutput, int, Any]:
        """Read a prompt as ``generate`` does.

        Args:
            input_ids: (batch, length).
            model_kwargs: what ``generate`` passes to a decoding method beside them.
            generation_config: of the call.
            whole: True returns the hidden states of all tokens, False those of the last.
            prompt_states: is called with the hidden states (batch, n, dim) of each forward pass.

        Returns:
            The output, the number of tokens read, and the model's own output.
        """

        def states(output: Any) -> tuple[Tensor, int]:
            hidden = output.last_hidden_state
            if prompt_states is not None:
                prompt_states(hidden)
            return hidden if whole else hidden[:, -1:].clone(), hidden.shape[1]

        # transformers' own prefill: chunks, continued caches and multimodal inputs behave as in every other decoding.
        with (
            forward_pass(self.model, len(input_ids), input_ids.shape[1], 0),
            self.adapters(),
            module_states_installed(model_kwargs),
            collect_outputs(self.structure.backbone, states) as chunks,
            collect_inputs(self.exit_layers, last=True) as exits,
        ):
            output = prefill(self.model, input_ids, generation_config, model_kwargs)
        hidden = torch.cat([states for states, _ in chunks], dim=1) if whole else chunks[-1][0]
        result = ForwardOutput(hidden, output.logits[:, -1:], tuple(exits[-len(self.exit_layers) :]), *recorded(output))
        return result, sum(read for _, read in chunks), output
