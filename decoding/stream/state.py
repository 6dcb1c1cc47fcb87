"""The rows that a stream has read: tokens, arguments, cache and length, and the forward passes over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import Cache

from decoding.cache.growing import grow_in_place, reserve_lookahead_slot, tokens_in
from decoding.cache.module_states import WrappedCache, with_states
from decoding.models.row_variants import RowVariants
from decoding.models.structure import ModelStructure
from decoding.models.text_config import within_vocabulary
from decoding.stream.forward import ForwardPasses
from decoding.stream.output import ForwardOutput
from decoding.transformers_private import CACHE_ARGUMENTS, cache_in, update_model_kwargs

__all__ = ["BatchState"]


class BatchState:
    """One model's state on one batch of rows. The ways of branching read and write it; streams add the verbs.

    Args:
        model: a generating transformers model.
        input_ids: (batch, length) token ids of the prompt, as ``generate`` prepares them.
        model_kwargs: what ``generate`` passes to a decoding method beside them: masks, positions, cache, encoder
            outputs. The state owns the dictionary from here on.
        restorable: True where the state before a branch may be needed again although that branch is not kept.
        exits: numbers of layers after which forward passes also return hidden states; ascending, 0 for the embeddings.
        variants: how each row is read (a LoRA adapter, layers left out); None for the model as it is.

    Attributes:
        kwargs: the model's keyword arguments for the tokens that are kept.
        length: how many slots are read and kept, padding included.
        padded: True where some of them hold padding.
        prompt: output of the prompt's forward pass.
        chunked: True where the prompt was read by chunked prefill.
        recompute_reason: why every step recomputes the whole text (:mod:`decoding.stream.recompute`): the call says
            ``use_cache=False``, or the model keeps no cache that can be continued; empty where it does.
        constant_inputs: inputs of branches that are the same at each step; None before the first branch.
        graph_steps: the static steps of the stream, where they are captured.
    """

    prompt: ForwardOutput

    def __init__(
        self,
        model: Any,
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        restorable: bool = False,
        exits: Sequence[int] = (),
        variants: RowVariants | None = None,
    ) -> None:
        self.model = model
        self.passes = ForwardPasses(model, exits, variants)
        self.structure: ModelStructure = self.passes.structure
        self.input_ids = input_ids
        self.kwargs = model_kwargs
        self.batch = input_ids.shape[0]
        self.restorable = restorable
        self.length = 0
        self.padded = False
        self.chunked = False
        self.recompute_reason = "use_cache=False" if model_kwargs.get("use_cache") is False else ""
        self.constant_inputs: dict[str, Any] | None = None
        self.graph_steps: Any = None  # CudaGraphSteps, which stand on this module
        reserve_lookahead_slot(cache_in(model_kwargs), model)
        positions = model_kwargs.get("position_ids")
        if positions is not None and positions.dim() == 2 and positions.shape[0] == 1:
            model_kwargs["position_ids"] = positions.expand(self.batch, -1)

    @property
    def cache(self) -> Any:
        """The cache, or None before the model has made one."""
        return cache_in(self.kwargs)

    @property
    def padding_mask(self) -> Tensor | None:
        """(batch, slots) 1 where a slot holds a token, 0 where padding; None where every slot holds one."""
        return self.kwargs.get("decoder_attention_mask" if self.is_encoder_decoder else "attention_mask")

    @property
    def is_encoder_decoder(self) -> bool:
        """True for an encoder-decoder, whose rows are those of its decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the hidden states, and so of the masks."""
        return self.prompt.hidden.dtype

    def read_prompt(
        self, config: GenerationConfig, whole_prompt: bool, prompt_states: Callable[[Tensor], None] | None
    ) -> None:
        """Read the prompt, by chunked prefill where ``config.prefill_chunk_size`` is set.

        Args:
            config: of the call; its ``max_length`` bounds how far the cache's storage grows.
            whole_prompt: True keeps the hidden states of every prompt token, False those of the last.
            prompt_states: is called with the prompt's hidden states (batch, n, dim) as they are computed.
        """
        cache = cache_in(self.kwargs)
        if isinstance(cache, Cache):
            grow_in_place(cache, config.max_length)
            with_states(self.model, cache)
        past = tokens_in(cache)
        self.chunked = config.prefill_chunk_size is not None
        self.prompt, read, output = self.passes.read_prompt(
            self.input_ids, self.kwargs, config, whole_prompt, prompt_states
        )
        self._take_cache(output)
        del output  # its logits are not needed any more
        self.length = past + read
        mask = self.padding_mask
        self.padded = mask is not None and not bool(mask.all())

    def run(self, inputs: dict[str, Any], every_logit: bool = False) -> ForwardOutput:
        """Run one forward pass; through the backbone alone where the head can be applied separately."""
        result, output = self.passes.run(inputs, self.batch, self.length, every_logit)
        self._take_cache(output)
        return result

    def grown_kwargs(self, n: int) -> dict[str, Any]:
        """The model's keyword arguments once n more tokens are read: masks and positions are longer."""
        return update_model_kwargs(self.model, {}, dict(self.kwargs), n)

    def cut_inputs(self, n: int) -> None:
        """Take the last n tokens out of token ids, masks and positions."""
        self.input_ids = self.input_ids[:, :-n]
        for name in ("attention_mask", "decoder_attention_mask", "position_ids", "decoder_position_ids"):
            if self.kwargs.get(name) is not None and not (self.is_encoder_decoder and name == "attention_mask"):
                self.kwargs[name] = self.kwargs[name][..., :-n]

    def inputs_beside_tokens(self, ids: Tensor, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Inputs of the model's forward for n more tokens, other than tokens, positions and mask.

        Args:
            ids: (batch, length + n) the text with these tokens.
            n: their number.
            kwargs: the model's keyword arguments with them, see :meth:`grown_kwargs`.
        """
        if self.constant_inputs is not None:
            return dict(self.constant_inputs)
        inputs = self.model.prepare_inputs_for_generation(ids, next_sequence_length=n, **kwargs)
        rest = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
        rest.pop("position_ids")
        if not any(isinstance(value, Tensor) for value in rest.values()):
            self.constant_inputs = rest  # the same at each step; preparing them again costs a percent of one
        return dict(rest)

    def readable(self, tokens: Any) -> Tensor:
        """Token ids as a tensor of ids that the model has.

        Ids beyond an amateur's shorter vocabulary carry no information for it, but must be valid.
        """
        return within_vocabulary(self.model, torch.tensor(tokens, device=self.input_ids.device))

    def _take_cache(self, output: Any) -> None:
        if self.recompute_reason:
            return
        for name in CACHE_ARGUMENTS:
            if name in output and output[name] is not None:
                held = self.kwargs.get(name)
                if output[name] is not held and not isinstance(held, WrappedCache):
                    self.kwargs[name] = with_states(self.model, output[name])
                return
