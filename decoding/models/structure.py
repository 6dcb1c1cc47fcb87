"""A model's decoder layers, final norm and head, found by running it and checked against its own logits.

Strategies need three things that ``forward()`` does not return separately: the hidden states after the final norm,
logits of some of these only, and (for early exits) the layers in between. Names of attributes are not trusted: a head
that is called outside the model must return the model's own logits, or the model's own forward is used instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from decoding.errors import ModelError, OptionError
from decoding.models.autocast import autocast_to, recorded_autocast
from decoding.models.backbone import as_one_module, call_backbone, find_backbone, find_layers, is_separable
from decoding.models.devices import input_device
from decoding.models.forward_errors import forward_pass
from decoding.models.head import HEAD_TRANSFORMS, NOT_ELEMENTWISE, HeadTransform, unpadded
from decoding.models.hooks import recorded_calls
from decoding.models.memo import PerModelMemo, model_cache_key
from decoding.models.probe import NO_NUMBERS, PROBED, probe_inputs
from decoding.models.small_batch_linear import SmallBatchLinear, is_plain_linear
from decoding.models.text_config import text_config

__all__ = ["ModelStructure", "inspect_model"]


@dataclass(frozen=True)
class ModelStructure:
    """The parts of a generating model; :func:`inspect_model` finds them.

    Attributes:
        backbone: the module whose ``last_hidden_state`` goes into the head; called directly in place of the model
            where ``separable``.
        head: the output embeddings, with the modules before them that a model has (BERT's transform).
        head_transform: the name in ``HEAD_TRANSFORMS`` of the way from hidden states to logits; None where no transform
            rebuilds the model's own logits.
        separable: True where ``backbone(**inputs)`` and the head transform equal the model's own forward.
        layers: the decoder layers in order; None where they were not found.
        final_norm: the modules between the last layer and the head; None where there are none or they were not found.
        projection: those of them without which a layer's output does not fit the head: the projection from a wider
            model (OPT-350m), the merging of several residual streams (DeepSeek-V4). None where every output fits.
        state_dims: dimensions of a layer's input for one token: 1, or 2 for several residual streams.
        no_early_exit: the reason why the output of a lower layer cannot be read as logits; None where it can.
        autocast: the dtype that the model's own ``forward`` computes in under autocast (accelerate's mixed precision);
            None where it has no autocast. Calls of its parts from outside are put under the same.
    """

    backbone: nn.Module
    head: nn.Module
    head_transform: str | None
    separable: bool
    layers: nn.ModuleList | None
    final_norm: nn.Module | None
    projection: nn.Module | None
    state_dims: int
    no_early_exit: str | None
    autocast: torch.dtype | None = None

    def forward_backbone(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The backbone's output for the model's own inputs; needs ``separable``."""
        with autocast_to(self.autocast, input_device(model)):
            return call_backbone(model, self.backbone, inputs)

    def logits(self, model: Any, hidden: Tensor) -> Tensor:
        """Logits (..., vocab) of hidden states (..., dim) after the final norm; needs ``head_transform``."""
        before, after = self._head_transform(model)
        return after(model, self._product(before(model, hidden)))

    def before_head(self, states: Tensor, final_norm: bool) -> Tensor:
        """The head's input (..., dim) for the input of a lower layer.

        Args:
            states: (..., dim), or (..., streams, dim) where there are several residual streams.
            final_norm: True for the head's input if the model ended there; False for the raw state, as in DoLa.
        """
        module = self.final_norm if final_norm else self.projection
        if module is None:
            return states
        with autocast_to(self.autocast, states.device):
            if self.state_dims == 1:
                return module(states)
            tokens = states.shape[: -self.state_dims]
            return module(states.reshape(1, -1, *states.shape[len(tokens) :])).reshape(*tokens, -1)

    def exit_logits(self, model: Any, states: Tensor, final_norm: bool) -> Tensor:
        """Logits (..., vocab) of the input of a lower layer.

        With the final norm they are the logits of the model if it ended there: head, soft-cap and scale as after its
        last layer. Without it they are those of the head alone on the raw state.
        """
        states = self.before_head(states, final_norm)
        return self.logits(model, states) if final_norm else unpadded(model, self._product(states))

    @property
    def selects_tokens(self) -> bool:
        """True where the logits of a few tokens can be computed without those of the others: the head is a plain linear
        layer in float32 on a CPU, and what comes after it is elementwise.

        The same product would be right in half precision and on a GPU. There it is left out: in half precision another
        order of the sums changes logits by up to a tenth, and with them the choice; on a GPU the host would have to
        wait in each step for the number of tokens, and that it pays has not been measured.
        """
        transform = self.head_transform
        elementwise = transform is not None and transform not in NOT_ELEMENTWISE
        return self.separable and elementwise and self.autocast is None and is_plain_linear(self.head)

    def all_logits(
        self,
        model: Any,
        hidden: Tensor,
        normed: Tensor | None,
        bare: Tensor | None = None,
        tokens: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Final and early logits from one matrix product, which reads the head's weights once.

        Args:
            model: the model.
            hidden: (rows, ..., dim) after the final norm.
            normed: (early rows, ..., dim) inputs of lower layers for logits with the final norm, see
                :meth:`exit_logits`; None for none.
            bare: the same for logits without it.
            tokens: (n,) ids of the tokens whose logits are wanted, which needs :attr:`selects_tokens`; None for all.

        Returns:
            Logits (rows, ..., vocab) of each of the three; (rows, ..., n) of the tokens.
        """
        before, after = self._head_transform(model)
        nothing = hidden[:0]
        early = nothing if normed is None else before(model, self.before_head(normed, True))
        raw = nothing if bare is None else self.before_head(bare, False)
        states = torch.cat([before(model, hidden), early.to(hidden.device), raw.to(hidden.device)])
        product = self._product(states) if tokens is None else self._product_at(states, tokens)
        final, lower, raw = product.split([len(hidden), len(early), len(raw)])
        return after(model, final), after(model, lower), unpadded(model, raw)

    def _product(self, states: Tensor) -> Tensor:
        """The head's output for (..., dim) states; in float32 where the model's own ``forward`` converts it to that."""
        rows = states.numel() // states.shape[-1]
        with autocast_to(self.autocast, states.device), SmallBatchLinear([self.head]).quickest(rows, states.device):
            product: Tensor = self.head(states)
        return product if self.autocast is None else product.float()

    def _product_at(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The columns ``tokens`` of the head's output."""
        assert isinstance(self.head, nn.Linear)
        bias = None if self.head.bias is None else self.head.bias[tokens]
        return nn.functional.linear(states, self.head.weight[tokens], bias)

    def _head_transform(self, model: Any) -> HeadTransform:
        if self.head_transform is None:
            raise ModelError(f"{type(model).__name__}: its logits cannot be rebuilt from its hidden states")
        return HEAD_TRANSFORMS[self.head_transform]

    def layers_before(self, model: Any, exits: Sequence[int]) -> list[nn.Module]:
        """The layers whose inputs are the hidden states after each of these numbers of layers.

        Raises:
            ModelError: the layers of this model cannot be read.
            OptionError: an exit that is not from 0 to the number of layers - 1.
        """
        if not exits:
            return []
        if self.layers is None or self.no_early_exit is not None:
            raise ModelError(f"{type(model).__name__}: no early exit from its lower layers: {self.no_early_exit}")
        for exit_ in exits:
            if not 0 <= exit_ < len(self.layers):
                raise OptionError(
                    f"layer {exit_}: {type(model).__name__} has {len(self.layers)} layers; an exit must be after 0 "
                    f"(the embeddings) to {len(self.layers) - 1} of them"
                )
        return [self.layers[exit_] for exit_ in exits]


_structures: PerModelMemo[ModelStructure] = PerModelMemo()


@torch.no_grad()
def inspect_model(model: Any) -> ModelStructure:
    """The parts of a generating model.

    They are found in one forward pass over six tokens, once per model, and again where its dtype, device, attention or
    training mode, its head or its list of layers has changed.

    Raises:
        ModelError: the model has no output embeddings, so it cannot generate text.
    """
    parts = _replaceable(model)

    def inspect() -> ModelStructure:
        # Parts that were replaced need not be kept.
        _structures.discard(model, lambda key: key[-1] != parts)
        with forward_pass(model, 1, PROBED, 0):
            return _examine(model)

    # NaN logits say nothing about the model once its weights are mended.
    return _structures.get(
        model, (*model_cache_key(model), parts), inspect, lambda structure: structure.no_early_exit != NO_NUMBERS
    )


def _replaceable(model: Any) -> tuple[Any, ...]:
    """The head and the lists of layers, which are replaced when a model is cut or resized, and which ``forward`` it
    has: accelerate wraps it.
    """
    head = model.get_output_embeddings()
    lists = () if head is None else model.get_decoder().children()
    # The wrapper's id: it holds the model, which would live as long as the memo.
    forward = id(vars(model).get("forward"))
    return forward, head, *(module for module in lists if isinstance(module, nn.ModuleList))


def _examine(model: Any) -> ModelStructure:
    if model.get_output_embeddings() is None:
        raise ModelError(
            f"{type(model).__name__} has no output embeddings (lm_head): only models that generate text can be decoded"
        )
    inputs = probe_inputs(model)
    with recorded_calls(model) as calls, recorded_autocast(model) as autocasts:
        logits = model(**inputs, use_cache=False, return_dict=True).logits
    autocast = autocasts[0] if autocasts else None
    with autocast_to(autocast, input_device(model)):
        backbone, hidden, head_transform, head = find_backbone(model, calls, logits)
        separable = head_transform is not None and is_separable(model, backbone, inputs, hidden)
    layers, rest, reason = find_layers(backbone, calls, hidden, text_config(model))
    changing = [call for call in rest if getattr(call.given, "shape", None) != getattr(call.returned, "shape", None)]
    entry = next((call.given for call in calls if layers is not None and call.module is layers[0]), None)
    state_dims = 1 if entry is None else entry.dim() - 2
    if head_transform is None:
        reason = NO_NUMBERS if bool(logits.isnan().any()) else "its logits could not be rebuilt from its hidden states"
    final_norm, projection = as_one_module(rest), as_one_module(changing)
    return ModelStructure(
        backbone, head, head_transform, separable, layers, final_norm, projection, state_dims, reason, autocast
    )
