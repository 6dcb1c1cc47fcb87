"""The arguments of a fuzzed call, made of its plain data, and the tiny models that it is made on."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch
from fuzzed_calls import Call
from tiny_models import BUILDERS, LLAMA_LIKE, tiny_model
from torch import Tensor
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    StaticCache,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

import decoding
from decoding.api import generate_with
from decoding.strategies.registry import STRATEGIES, StrategySpec

__all__ = ["ZOO", "CallersError", "Made", "fresh", "pooled", "vocab_of"]


class CallersError(Exception):
    """What callbacks of the caller's raise."""


class Made:
    """The arguments of a call, from its plain data; calling it makes the call.

    Args:
        call: in plain data.
        model: that it is made on.
        strategy: the object, where there is one already.
        plain: leave the strategy out.
        vocab: of the amateur, where that is not the model's.
    """

    def __init__(
        self, call: Call, model: Any, strategy: Any = None, plain: bool = False, vocab: int | None = None
    ) -> None:
        self.call, self.model, self.plain = call, model, plain
        self.raised: list[BaseException] = []  # by callbacks
        self.under_way = False
        self.vocab = model.config.get_text_config(decoder=True).vocab_size
        self.strategy = strategy
        self.parameters_vocab = vocab or self.vocab
        ids = _ids(call, self.vocab)
        self.given: dict[str, Any] = {"input_ids": ids}
        rows = call.rows if call.mask != "none" else 1
        bos = torch.full((rows, 1), model.generation_config.bos_token_id or 0)  # what generate begins with by itself
        self.ids = ids if isinstance(ids, Tensor) else bos
        if call.mask != "none":
            self.given["attention_mask"] = _mask(call)
        if call.cache != "none":
            self.given["past_key_values"] = _cache(call, model, self.ids)
        self.options = {name: self._resolved(name, value) for name, value in call.options.items()}
        if "max_length" not in self.options:
            self.options.setdefault("max_new_tokens", 4)
        self.options.update(_callback(call.callback, self.raised))
        if plain and call.form != "processor":
            for name in ("penalty_alpha", "dola_layers", "low_memory", "compile"):
                self.options.pop(name, None)
            self.options.pop("streamer", None)  # is given the prompt at another moment
        self.copies = {name: _copied(value) for name, value in self.given.items()}

    def __call__(self) -> Any:
        self.under_way = True
        try:
            return self._call()
        finally:
            self.under_way = False

    def _call(self) -> Any:
        call, model = self.call, self.model
        inputs = {name: value for name, value in self.given.items() if value is not None}
        if self.plain:
            return model.generate(**inputs, **self.options)
        if self.strategy is None:
            values = {name: _value(value, model, self.parameters_vocab) for name, value in call.parameters.items()}
            self.strategy = STRATEGIES[call.strategy](**values)
        if call.form == "choice":
            return generate_with(StrategySpec(call.strategy, self.strategy), model, **inputs, **self.options)
        if call.form == "facade":
            return decoding.generate(model, **inputs, strategy=self.strategy, **self.options)
        if call.form == "custom":
            return model.generate(**inputs, custom_generate=self.strategy, **self.options)
        own = {} if model.config.is_encoder_decoder is False else {"input_ids": inputs.get("input_ids")}
        if "attention_mask" in inputs:
            own["attention_mask"] = inputs["attention_mask"]
        processor = self.strategy.logits_processor(model, **own)
        others = self.options.pop("logits_processor", [])
        return model.generate(**inputs, logits_processor=LogitsProcessorList([*others, processor]), **self.options)

    @property
    def rows(self) -> int:
        return len(self.ids) * (self.options.get("num_return_sequences") or 1)

    @property
    def config(self) -> dict[str, Any]:
        """The end and pad tokens of the call, and how many tokens it may make."""
        own = self.model.generation_config
        names = ("eos_token_id", "pad_token_id")
        config = {name: self.options.get(name) for name in names}
        config = {name: getattr(own, name) if value is None else value for name, value in config.items()}
        return config | {"max_new_tokens": self.options.get("max_new_tokens")}

    @property
    def changed(self) -> str | None:
        """The name of an argument that is not as it was."""
        kept = {name: value for name, value in self.given.items() if name != "past_key_values"}
        return next((name for name, value in kept.items() if not _same(value, self.copies[name])), None)

    def _resolved(self, name: str, value: Any) -> Any:
        if name == "assistant_model":
            return pooled("llama", "random", 5)
        if name in ("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "eos_token_id") and isinstance(
            value, str
        ):
            tokens = {"half": range(self.vocab // 2, self.vocab), "all": range(self.vocab), "past": [self.vocab + 3]}
            return [[token] for token in tokens[value]] if name == "bad_words_ids" else list(tokens[value])
        return self.vocab + 3 if value == "past" else value


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return bool(one == other)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.copy(value)


def _ids(call: Call, vocab: int) -> Any:
    generator = torch.Generator().manual_seed(call.seed)
    ids = torch.randint(min(3, vocab - 1), vocab, (call.rows, call.length), generator=generator)
    last = ids[-1:, -1:]
    if call.tokens == "same":
        ids = ids.fill_(min(7, vocab - 1))
    elif call.tokens == "pads":
        ids[-1:, : call.length // 2] = 0
    elif call.tokens == "all-pads":
        ids = ids.fill_(0)
    elif call.tokens in ("negative", "past"):
        last.fill_(-1 if call.tokens == "negative" else vocab)
    shaped: dict[str, Callable[[], Any]] = {
        "int32": ids.int, "float": ids.float, "list": ids.tolist, "none": lambda: None,
        "one-dimension": lambda: ids[0] if len(ids) else ids.flatten(), "three-dimensions": lambda: ids[None],
    }  # fmt: skip
    return shaped.get(call.tokens, lambda: ids)()


def _mask(call: Call) -> Any:
    mask = torch.ones(call.rows, call.length, dtype=torch.long)
    first, half = mask[:1], call.length // 2
    if call.mask in ("left", "bool-left", "float-left"):
        first[:, :half] = 0
    elif call.mask == "right":
        first[:, half:] = 0
    elif call.mask == "holes":
        mask[:, 1::3] = 0
    elif call.mask in ("zero-row", "zeros"):
        (first if call.mask == "zero-row" else mask).fill_(0)
    elif call.mask in ("twos", "negative"):
        mask = mask.fill_(2 if call.mask == "twos" else -1)
    shaped: dict[str, Callable[[], Any]] = {
        "bool-left": mask.bool, "float-left": mask.float, "list": mask.tolist,
        "wide": lambda: torch.ones(call.rows, call.length + 2, dtype=torch.long), "narrow": lambda: mask[:, 1:],
        "few-rows": lambda: mask[1:], "three-dimensions": lambda: mask[:, None],
        "four-dimensions": lambda: mask[:, None, None],
    }  # fmt: skip
    return shaped.get(call.mask, lambda: mask)()


@torch.no_grad()
def _cache(call: Call, model: Any, ids: Tensor) -> Any:
    """``past_key_values``; what cannot be made for this prompt is an empty one."""
    if call.cache == "nonsense":
        return ((torch.zeros(1), torch.zeros(1)),)
    if call.cache == "encoder-decoder":
        return EncoderDecoderCache(DynamicCache(), DynamicCache())
    if call.cache == "static":
        return StaticCache(config=model.config, max_cache_len=64)
    source = pooled("gpt2", "random") if call.cache == "of-another" else model
    read = ids if call.cache == "longer" or ids.dim() < 2 else ids[:, :-1]
    cache = DynamicCache(config=source.config)
    usable = read.dim() == 2 and read.dtype == torch.long and read.numel() and int(read.min()) >= 0
    usable = usable and int(read.max()) < vocab_of(source) and read.shape[1] < 100
    if call.cache != "empty" and usable and not source.config.is_encoder_decoder and call.model != "mamba":
        cache = source(
            torch.cat([read, read], 1) if call.cache == "longer" else read, past_key_values=cache
        ).past_key_values
    return cache


def vocab_of(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)


def _callback(kind: str, raised: list[BaseException]) -> dict[str, Any]:
    """A processor, criterion or streamer as keyword arguments."""

    def fail(*_: Any, **__: Any) -> Any:
        raised.append(CallersError("of the caller's"))
        raise raised[-1]

    def filled(number: float, rows: slice = slice(None), columns: slice = slice(None)) -> Callable[..., Tensor]:
        def process(_ids: Tensor, scores: Tensor) -> Tensor:
            scores = scores.clone()
            scores[rows, columns] = number
            return scores

        return process

    processors = {
        "nan": filled(float("nan")), "inf": filled(float("inf"), columns=slice(0, 1)), "none-left": filled(-torch.inf),
        "none-left-in-row": filled(-torch.inf, rows=slice(0, 1)), "raises": fail,
        "one-left": filled(-torch.inf, columns=slice(1, None)),
    }  # fmt: skip
    if kind in processors:
        return {"logits_processor": LogitsProcessorList([processors[kind]])}
    if kind in ("stops-at-once", "criterion-raises"):
        stop = lambda ids, _scores, **_: torch.ones(len(ids), dtype=torch.bool)  # noqa: E731
        return {"stopping_criteria": StoppingCriteriaList([fail if kind == "criterion-raises" else stop])}
    if kind in ("streams", "stream-raises"):
        streamer = _Streamer()
        if kind == "stream-raises":
            streamer.put = fail  # type: ignore[method-assign]
        return {"streamer": streamer}
    return {}


class _Streamer(BaseStreamer):
    def put(self, value: Tensor) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


def _value(value: Any, model: Any, vocab: int) -> Any:
    """A parameter: what begins with @ stands for a model or a prompt."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    prompts = {
        "@prompt-ids": [5, 6], "@prompt-text": "lie", "@prompt-past": [10**6], "@prompt-negative": [-1],
        "@prompt-empty": [], "@prompt-none": None, "@prompt-rows": [[5], [6, 7]], "@prompt-number": 5,
    }  # fmt: skip
    if value in prompts:
        return decoding.Prompt(prompts[value])
    return model if value == "@self" else amateur(value.removeprefix("@"), vocab)


# --- models -----------------------------------------------------------------------------------------------------------


def _llama(**changes: Any) -> Any:
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, "num_hidden_layers": 2, **changes})).eval()
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.mul_(4)
    return model


ZOO: dict[str, Callable[[], Any]] = {
    **{name: functools.partial(tiny_model, name) for name in BUILDERS},
    "one-token": lambda: _llama(vocab_size=1, bos_token_id=None, eos_token_id=None, pad_token_id=None),
}


@functools.cache
def pooled(name: str, weights: str, seed: int = 0) -> Any:
    """A model that many calls share."""
    return fresh(name, weights, seed)


@functools.cache
def amateur(kind: str, vocab: int) -> Any:
    """An amateur for a vocabulary."""
    changes: dict[str, dict[str, Any]] = {
        "wider": {"vocab_size": vocab + 1}, "narrow": {"vocab_size": max(vocab // 2, 1)},
        "tiny-context": {"max_position_embeddings": 8},
    }  # fmt: skip
    if kind == "encoder-decoder":
        return pooled("t5", "random")
    model = _llama(
        **{
            "vocab_size": vocab,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **changes.get(kind, {}),
        }
    )
    return _weighted(model, {"nan": "nan", "half": "bfloat16"}.get(kind, "random"))


def fresh(name: str, weights: str, seed: int = 0) -> Any:
    """A model of its own."""
    model = ZOO[name]() if name not in BUILDERS else tiny_model(name, seed)
    return _weighted(model, weights)


@torch.no_grad()
def _weighted(model: Any, weights: str) -> Any:
    if weights in ("nan", "inf"):
        model.get_output_embeddings().weight[-1] = float(weights)
    elif weights in ("zero", "large"):
        for parameter in model.parameters():
            parameter.mul_(0.0 if weights == "zero" else 1e18)
    elif weights in ("bfloat16", "float16"):
        model.to(getattr(torch, weights))
    elif weights == "meta":
        model.to("meta")
    return model.train() if weights == "train" else model
