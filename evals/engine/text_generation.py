"""Continuations of many prompts in one batch, where strategies that sample draw each from a seed of its own."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from decoding.api import generate_with
from decoding.errors import InputError, ModelError, OptionError
from decoding.models.devices import input_device
from decoding.models.inputs import context_of
from decoding.models.structure import inspect_model
from decoding.models.wrappers import unwrapped
from decoding.strategies.effective_config import decoded_with
from decoding.strategies.generation_options import EVALUATIONS_REFUSE, NO_OPTIONS, checked_options
from decoding.strategies.registry import StrategySpec
from decoding.text import new_text
from decoding.transformers_private import CACHE_ARGUMENT

if TYPE_CHECKING:
    from decoding.evals.engine.vllm_texts import VllmTexts

__all__ = ["GeneratedText", "TextGenerator", "check_room", "generate_texts"]


@dataclass(frozen=True)
class GeneratedText:
    """The text that a strategy generated after a prompt, up to the first stop string, and its number of tokens."""

    text: str
    tokens: int


@dataclass(frozen=True)
class TextGenerator:
    """A model that continues prompts.

    Attributes:
        model: a generating transformers model.
        tokenizer: its tokenizer.
        max_new_tokens: at most.
        stop: texts end before the first of these strings.
        engine: what generates in place of the model; None for the model itself.
    """

    model: Any
    tokenizer: Any
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    engine: VllmTexts | None = None

    def generate(
        self,
        spec: StrategySpec,
        prompts: Sequence[str],
        seeds: Sequence[int],
        generation_config: Mapping[str, Any] = NO_OPTIONS,
    ) -> list[GeneratedText]:
        """A continuation of each prompt.

        Args:
            spec: how to choose tokens.
            prompts: texts to continue.
            seeds: of the random draws, one for each prompt.
            generation_config: see :func:`generate_texts`.

        Raises:
            InputError: a prompt that is empty, or too long for the model's context with the new tokens.
        """
        rows = [self._encode(prompt) for prompt in prompts]
        return generate_texts(
            spec, self.model, self.tokenizer, rows, seeds, max_new_tokens=self.max_new_tokens, stop=self.stop,
            generation_config=generation_config, engine=self.engine,
        )  # fmt: skip

    def _encode(self, prompt: str) -> list[int]:
        ids = list(self.tokenizer(prompt)["input_ids"])
        context = context_of(self.model)
        new = 0 if self.model.config.is_encoder_decoder else self.max_new_tokens
        if not ids or (context is not None and len(ids) + new > context):
            raise InputError(
                f"the prompt has {len(ids)} tokens; with {new} new ones it must fit the model's context of {context}, "
                "and not be empty"
            )
        return ids


def check_room(model: Any, tokens: int, max_new_tokens: int) -> None:
    """Raise InputError where a model's context has no room for a prompt of so many tokens and the longest answer."""
    context = context_of(model)
    if context is not None and tokens + max_new_tokens > context:
        raise InputError(
            f"its prompt has {tokens} tokens and an answer may have {max_new_tokens}: more than the model's context of "
            f"{context}"
        )


def generate_texts(
    spec: StrategySpec,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    prefix_cache: Callable[[Sequence[int]], Any] | None = None,
    generation_config: Mapping[str, Any] = NO_OPTIONS,
    engine: VllmTexts | None = None,
) -> list[GeneratedText]:
    """Continue prompts of token ids. A continuation depends on its prompt and its seed, not on its neighbours.

    Penalties, samplers and the like of the model's own generation config are off.

    Args:
        spec: how to choose tokens.
        model: a generating transformers model.
        tokenizer: its tokenizer.
        prompts: token ids, of any lengths; shorter ones are padded on the left.
        seeds: of the random draws, one for each prompt; a text is what its prompt alone gives after
            ``torch.manual_seed``.
        max_new_tokens: at most.
        stop: texts end before the first of these strings.
        prefix_cache: returns a cache of the tokens that all prompts begin with, from each row's number of pad tokens;
            None computes them again.
        generation_config: options of transformers' ``GenerationConfig`` beside the strategy, such as
            ``{"repetition_penalty": 1.2}``: those of :attr:`decoding.evals.engine.configurations.Configuration`.
        engine: what generates in place of the model, without such options; None for the model itself.

    Raises:
        OptionError: an option that is unknown, out of range, or the strategy's or the task's own.
    """
    if engine is not None:
        if generation_config:
            raise OptionError(f"--engine vllm: does not take --generation-config {', '.join(generation_config)}")
        made = engine.tokens(spec, prompts, seeds, max_new_tokens, stop)
        return [
            _before_stop(model, tokenizer, torch.tensor([*prompt, *new]), len(prompt), stop)
            for prompt, new in zip(prompts, made, strict=True)
        ]
    options = checked_options(generation_config, EVALUATIONS_REFUSE)
    with decoded_with(model, options):
        if spec.is_stochastic and not _has_row_draws(model):
            texts = []
            for prompt, seed in zip(prompts, seeds, strict=True):
                torch.manual_seed(seed)
                texts += _generate_batch(spec, model, tokenizer, [prompt], None, max_new_tokens, stop, prefix_cache)
            return texts
        drawn_from = seeds if spec.is_stochastic else None
        return _generate_batch(spec, model, tokenizer, prompts, drawn_from, max_new_tokens, stop, prefix_cache)


def _has_row_draws(model: Any) -> bool:
    """True where the token loop of this library can run the model: in transformers' own, rows share their draws."""
    try:
        inspect_model(unwrapped(model))
    except ModelError:
        return False
    return True


def _generate_batch(
    spec: StrategySpec,
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int] | None,
    max_new_tokens: int,
    stop: Sequence[str],
    prefix_cache: Callable[[Sequence[int]], Any] | None,
) -> list[GeneratedText]:
    width = max(map(len, prompts))
    pads = [width - len(prompt) for prompt in prompts]
    pad = next((token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None), 0)
    rows = list(zip(pads, prompts, strict=True))
    sequences = generate_with(
        spec,
        model,
        input_ids=torch.tensor([[pad] * count + list(prompt) for count, prompt in rows], device=input_device(model)),
        attention_mask=torch.tensor(
            [[0] * count + [1] * len(prompt) for count, prompt in rows], device=input_device(model)
        ),
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        **({} if seeds is None else {"seeds": seeds}),
        **({"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}),
        **({CACHE_ARGUMENT: prefix_cache(pads)} if prefix_cache is not None else {}),
    ).cpu()
    if not model.config.is_encoder_decoder:
        sequences = [sequence[count:] for count, sequence in zip(pads, sequences, strict=True)]
    return [
        _before_stop(model, tokenizer, sequence, len(prompt), stop)
        for sequence, prompt in zip(sequences, prompts, strict=True)
    ]


def _before_stop(model: Any, tokenizer: Any, sequence: torch.Tensor, length: int, stop: Sequence[str]) -> GeneratedText:
    """The text before the first stop string. A row that ended there was padded while its neighbours went on."""
    text, tokens = new_text(model, tokenizer, sequence, length)
    ends = [text.find(string) for string in stop if string in text]
    if not ends:
        return GeneratedText(text, tokens)
    start = 1 if model.config.is_encoder_decoder else length

    def has_stopped(count: int) -> bool:
        shorter, _ = new_text(model, tokenizer, sequence[: start + count], length)
        return any(string in shorter for string in stop)

    return GeneratedText(text[: min(ends)], 1 + bisect.bisect_left(range(1, tokens), True, key=has_stopped))
