"""vLLM's model with readers: one forward pass gives the hidden states of all of them, side by side.

The pass returns, for each token, the model's last hidden state, then those of its lower layers, the amateur's last one,
those of the amateur's lower layers, and the token's number in the step, as one wide row. vLLM cuts, captures and keeps
such rows as it does any hidden states. ``compute_logits`` takes them apart: heads are applied to the rows that are
sampled, and to those of lower layers and the amateur where a request reads them.

The amateur's attention layers have the same block tables as the model's, so vLLM's paged cache, chunked prefill, prefix
caching, preemption and tensor parallelism serve both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix

from decoding.errors import ModelError, OptionError
from decoding.serving.vllm.engines import MODELS
from decoding.serving.vllm.groups import Entry, GroupInBatch, share_tokens
from decoding.serving.vllm.prompt_scores import PromptScores, token_numbers
from decoding.serving.vllm.rows import RowReaders, Rows
from decoding.serving.vllm.scores import masked_scores, scores_of
from decoding.serving.vllm.search import HiddenSlots, StepReads, search
from decoding.serving.vllm.settings import readers_of

__all__ = ["ReadersMixin", "Step"]

AMATEUR = "amateur"
FINAL_NORMS = ("norm", "final_layernorm", "ln_f", "final_norm", "norm_f")


@dataclass
class Step:
    """What the sampler's processor needs of a step.

    Attributes:
        hidden: (rows, width) wide rows of hidden states.
        expert: (rows, vocab) the model's logits, before anything changes them.
        returned: (rows, vocab) what ``compute_logits`` returned, before anything changes it.
        forced: rows whose token is chosen, and these tokens.
    """

    hidden: Tensor
    expert: Tensor
    returned: Tensor
    forced: tuple[Tensor, Tensor] | None = None
    _readers: dict[Rows, RowReaders] = field(default_factory=dict)

    def readers_of(self, model: ReadersMixin, rows: Rows) -> RowReaders:
        """What rows of the step show: the same each time, so that heads are applied once."""
        if rows not in self._readers:
            second = None if rows.second_at is None else (self.hidden[rows.second_at], self.expert[rows.second_at])
            self._readers[rows] = RowReaders(model, self.hidden[rows.at], self.expert[rows.at], second)
        return self._readers[rows]


if TYPE_CHECKING:
    VllmModel: TypeAlias = Any  # one of vLLM's classes, beside which the mixin stands
else:
    VllmModel = object


class ReadersMixin(VllmModel):
    """Reads lower layers and an amateur beside a class of vLLM's models."""

    def __init__(self, *, vllm_config: Any, prefix: str = "", **options: Any) -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, **options)
        settings, amateur_config = readers_of(vllm_config)
        self.vllm_config = vllm_config
        self.readers, self.default = settings.readers, settings.default
        self.width = vllm_config.model_config.get_hidden_size()
        self.keeps_steps = False  # whether a request of the step needs it
        self.step: Step | None = None
        self.groups: list[GroupInBatch] = []  # in the V1 runner's batch
        self.prompts: PromptScores | None = (
            None  # of the step, where a request asks for log-probabilities of its prompt
        )
        self.sampled = False  # whether the step's logits to sample from were computed
        self.reads: StepReads | None = None
        self.history: HiddenSlots | None = None
        # Drafts on the V1 runner leave out the processor, which else applies plausibility after all other processors.
        self.masks_logits = vllm_config.speculative_config is not None and not vllm_config.use_v2_model_runner
        self.vocab_size = vllm_config.model_config.hf_text_config.vocab_size
        # Heads for some rows of a batch. In a tuple they are no modules, which vLLM would wrap for adapters: what wraps
        # them takes whole batches. The second is without the model's scale and soft cap.
        self.bare_heads: tuple[Any, Any] = (getattr(self, "logits_processor", None), LogitsProcessor(self.vocab_size))
        if self.readers.layers:
            show_layers(self, self.readers.layers)
        self.amateur: Any = None
        self.amateur_vocab = self.vocab_size
        if amateur_config is not None:
            self.amateur = init_vllm_registered_model(
                vllm_config, hf_config=amateur_config, prefix=maybe_prefix(prefix, AMATEUR)
            )
            self.amateur_width = amateur_config.hidden_size
            self.amateur_vocab = amateur_config.vocab_size
            self.plain_amateur_head = LogitsProcessor(self.amateur_vocab)
            if self.readers.amateur_layers:
                show_layers(self.amateur, self.readers.amateur_layers)
            source = DefaultModelLoader.Source(self.readers.amateur, None, prefix=f"{AMATEUR}.")
            self.secondary_weights = (*getattr(self, "secondary_weights", ()), source)
        MODELS[vllm_config.instance_id] = self

    def begin_step(self, entries: Iterable[tuple[int, Entry]], starts: Sequence[int] | None = None) -> None:
        """Take note of a step's requests.

        Args:
            entries: places in the batch, and what stands there.
            starts: where the tokens of each place start; None where the forward pass will know.
        """
        entries = list(entries)
        asked = any(entry.scores_prompt for _, entry in entries)
        self.prompts = PromptScores(entries, starts) if asked else None
        self.keeps_steps = bool(entries) and not self.masks_logits
        self.sampled = False

    def forward(self, input_ids: Tensor | None, positions: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The wide rows (tokens, width)."""
        asked = self.groups or self.readers.candidates or self.prompts is not None
        metadata = step_metadata() if asked else None
        if metadata is not None and self.groups and input_ids is not None:
            share_tokens(self.groups, input_ids, positions, metadata.query_start_loc)
        parts = as_parts(super().forward(input_ids, positions, *args, **kwargs))
        self.reads = None
        if metadata is not None and self.readers.candidates and input_ids is not None:
            self._keep_history(parts[0], input_ids, metadata)
        if self.amateur is not None:
            assert input_ids is not None  # an engine with an amateur takes no embeddings
            if self.amateur_vocab < self.vocab_size:
                # A plain request may have a token of the model's alone, at which the engine would end.
                input_ids = input_ids.clamp(max=self.amateur_vocab - 1)
            parts += as_parts(self.amateur(input_ids, positions))
        if metadata is not None and self.prompts is not None and self.prompts.starts is None:
            self.prompts.starts = metadata.query_start_loc.tolist()
        return torch.cat([*parts, token_numbers(parts[0])], -1) if len(parts) > 1 else parts[0]

    def _keep_history(self, hidden: Tensor, input_ids: Tensor, metadata: Any) -> None:
        """Keep the hidden states of a step's tokens, and what contrastive search asks of the step."""
        if self.history is None:
            cache = self.vllm_config.cache_config
            slots = cache.num_gpu_blocks * cache.block_size
            self.history = HiddenSlots(slots, self.width, cache.block_size, hidden.dtype, hidden.device)
        self.history.write(hidden, metadata.slot_mapping)
        last = metadata.query_start_loc[1:] - 1
        self.reads = StepReads(input_ids[last], metadata.seq_lens, metadata.block_table)

    def compute_logits(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The engine's own strategy on wide rows, without plausibility; the model's logits where it has none.

        The first logits of a step are those to sample from, others are of prompts, whose requests have them scored.
        """
        if self.prompts is not None and self.sampled:
            head = super().compute_logits
            return self.prompts.of(self, hidden_states, lambda rows: head(rows[:, : self.width], *args, **kwargs))
        self.sampled = True
        forced: tuple[Tensor, Tensor] | None = None
        searches = [group for group in self.groups if group.searches] if self.reads is not None else []
        if searches:
            logits, places, tokens = search(self, hidden_states, searches)
            forced, self.reads = (places, tokens), None
        else:
            logits = super().compute_logits(hidden_states[:, : self.width], *args, **kwargs)
        returned = logits
        if self.default is not None:
            rows = Rows([self.default], logits.device)
            readers = RowReaders(self, hidden_states, logits)
            returned = scores_of(rows, readers)
            if self.masks_logits:
                returned = masked_scores(rows, returned, readers)
        if self.keeps_steps:
            # Processors change what is returned in place.
            expert = logits.clone() if returned is logits else logits
            base = expert if returned is logits else returned.clone()
            self.step = Step(hidden_states, expert, base, forced)
        return returned

    @property
    def compute_logits_local(self) -> Any:
        """Not there: logits of a part of the vocabulary would go round the contrast."""
        raise AttributeError("compute_logits_local")

    def some_logits(self, hidden_states: Tensor) -> Tensor:
        """The model's logits of (rows, at least the model's width) that are no whole batch, without adapters."""
        hidden = hidden_states[:, : self.width]
        if self.vllm_config.lora_config is None:
            return super().compute_logits(hidden)
        return self.bare_heads[0](self.lm_head, hidden)

    def exit_logits(self, hidden_states: Tensor, layers: Sequence[int], norm: bool) -> Tensor:
        """Logits (layers, rows, vocab) at lower layers, which the engine shows, of wide rows."""
        at = [self.width * (1 + self.readers.layers.index(layer)) for layer in layers]
        hidden = torch.cat([hidden_states[:, start : start + self.width] for start in at])
        logits = self.some_logits(final_norm(self)(hidden)) if norm else self.bare_heads[1](self.lm_head, hidden)
        return logits.view(len(layers), len(hidden_states), -1)

    def amateur_logits(self, hidden_states: Tensor) -> Tensor:
        """The amateur's logits (rows, vocab) of wide rows."""
        assert self.amateur is not None
        start = self.width * (1 + len(self.readers.layers))
        return self.amateur.compute_logits(hidden_states[:, start : start + self.amateur_width])

    def amateur_exit_logits(self, hidden_states: Tensor, layers: Sequence[int], norm: bool) -> Tensor:
        """The amateur's logits (layers, rows, vocab) at the shares of its depth that belong to the model's layers."""
        assert self.amateur is not None
        shown = sorted(set(self.readers.amateur_layers))
        first = self.width * (1 + len(self.readers.layers)) + self.amateur_width
        numbers = [self.readers.amateur_layers[self.readers.layers.index(layer)] for layer in layers]
        at = [first + self.amateur_width * shown.index(number) for number in numbers]
        hidden = torch.cat([hidden_states[:, start : start + self.amateur_width] for start in at])
        if norm:
            logits = self.amateur.compute_logits(final_norm(self.amateur)(hidden))
        else:
            logits = self.plain_amateur_head(self.amateur.lm_head, hidden)
        return logits.view(len(layers), len(hidden_states), -1)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the model's weights and the amateur's, which come under its prefix."""
        own: list[tuple[str, Tensor]] = []
        others: list[tuple[str, Tensor]] = []
        for name, weight in weights:
            is_others = self.amateur is not None and name.startswith(f"{AMATEUR}.")
            (others if is_others else own).append((name.removeprefix(f"{AMATEUR}.") if is_others else name, weight))
        loaded = set(super().load_weights(own))
        if self.amateur is not None:
            loaded |= {f"{AMATEUR}.{name}" for name in self.amateur.load_weights(others)}
        return loaded

    def get_model_state_cls(self) -> Any:
        """The V2 runner's state of this model, whose sampler contrasts before all other processors."""
        from decoding.serving.vllm.model_state import model_state_class

        return model_state_class(self, getattr(super(), "get_model_state_cls", None))


def step_metadata() -> Any:
    """What attention knows of a step's requests; None in a step without requests."""
    metadata = get_forward_context().attn_metadata
    return next(iter(metadata.values())) if isinstance(metadata, dict) and metadata else None


def as_parts(output: Any) -> list[Tensor]:
    """A forward pass's last hidden states, then those of its lower layers."""
    if isinstance(output, tuple):
        return [output[0], *output[1]]
    return [output]


def show_layers(model: Any, layers: Sequence[int]) -> None:
    """Make a model of vLLM return the hidden states of lower layers, each as how many layers were read.

    Raises:
        OptionError: the architecture does not.
    """
    if not supports_eagle3(model):
        raise OptionError(
            f"{type(model).__name__.removeprefix('Contrast')} does not show lower layers in vLLM; serve it through the "
            'Transformers backend (architecture TransformersForCausalLM), or start the engine with "layers": []'
        )
    model.set_aux_hidden_state_layers(tuple(layers))


def final_norm(model: Any) -> nn.Module:
    """The norm between a model's last layer and its head.

    Raises:
        ModelError: it was not found.
    """
    inner = getattr(model, "model", getattr(model, "transformer", model))
    for name in FINAL_NORMS:
        if isinstance(norm := getattr(inner, name, None), nn.Module):
            return norm
    raise ModelError(f"{type(model).__name__}: its final norm was not found; ask for final_norm=false")
