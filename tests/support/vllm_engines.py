"""Engines of vLLM that serve the embedded models, and what the library itself continues their prompts with."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from tiny_models import left_padded
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm import LLM, SamplingParams

import decoding
from decoding.evals import miniature

__all__ = [
    "AMATEUR",
    "CASES",
    "EXPERT",
    "PROMPTS",
    "Case",
    "block_pool",
    "continuation",
    "engine",
    "new_tokens",
    "one_of_a_kind",
    "prompt_ids",
    "read_together",
    "sampling",
    "scheduler",
    "start_of",
]

EXPERT, AMATEUR = (str(miniature.folder(name)) for name in ("expert", "amateur"))
BEGINNINGS = (
    "The capital of",
    "Q: What is the",
    "Q: Who wrote the",
    "The shepherd looked",
    "Once upon a time there was a",
    "Q: Where does the river",
    "The king said to",
)
# 28 prompts of 4 to 11 tokens.
PROMPTS = [beginning + end for beginning in BEGINNINGS for end in ("", " old", " red", " big")]


@dataclass(frozen=True)
class Case:
    """A strategy as a request of vLLM has it, and as the library has it.

    Attributes:
        fields: of ``vllm_xargs``; None for a request that names no strategy.
        strategy: None for the model's own logits.
    """

    fields: Mapping[str, Any] | None
    strategy: Any


def _dola(**fields: Any) -> Case:
    return Case({"strategy": "dola", **fields}, decoding.DoLa(**fields))


def _contrastive_decoding(**fields: Any) -> Case:
    return Case({"strategy": "contrastive-decoding", **fields}, decoding.ContrastiveDecoding(amateur=AMATEUR, **fields))


def _lol(**fields: Any) -> Case:
    return Case({"strategy": "lol", **fields}, decoding.LOL(amateur=AMATEUR, **fields))


def _lower(name: str, strategy: Any, **fields: Any) -> Case:
    return Case({"strategy": name, **fields}, strategy(**fields))


def _weighted(expert: float, amateur: float, **fields: Any) -> Case:
    terms = f"{expert}*expert {'+' if amateur > 0 else '-'} {abs(amateur)}*amateur"
    strategy = decoding.WeightedContrast([("expert", expert), (AMATEUR, amateur)], **fields)
    return Case({"strategy": "weighted-contrast", "terms": terms, **fields}, strategy)


# By name. Of each strategy there are settings that the same launch must keep apart.
CASES = {
    "plain": Case(None, None),
    "none": Case({"strategy": "none"}, None),
    "dola": _dola(),
    "dola-low": _dola(layers="low", alpha=0.3),
    "dola-one-layer": _dola(layers=[1], alpha=0.0),
    "dola-all-layers": _dola(layers=[0, 1, 2, 3]),
    "dola-norm": _dola(layers=[1, 2, 3], final_norm=True),
    # With the norm: raw lower layers are all but certain of a token, and their divergences differ in the last bit.
    "dola-jensen-shannon": _dola(layers=[1, 2, 3], divergence="jensen-shannon", final_norm=True),
    "cd": _contrastive_decoding(),
    "cd-strong": _contrastive_decoding(beta=2.0, alpha=0.02),
    "cd-log-probs": _contrastive_decoding(form="log_probs", beta=1.0, amateur_temperature=0.5),
    "cd-log-probs-weak": _contrastive_decoding(form="log_probs", beta=0.25, alpha=0.3),
    "lol": _lol(lower_layers=[1, 3]),
    "lol-strong": _lol(lower_layers=[2], amateur_weight=0.5, lower_amateur_weight=2.0, fusion_weight=1.5),
    "lol-unfused": _lol(lower_layers=[1], fusion_weight=0.0),
    "lol-entropy": _lol(lower_layers=[1, 3], fusion="entropy"),
    "lol-entropy-raw": _lol(lower_layers=[0.5], fusion="entropy", final_norm=False),
    "sled": _lower("sled", decoding.SLED),
    "sled-norm": _lower("sled", decoding.SLED, layers=[1, 3], evolution_rate=2.5, evolution_scale=75, final_norm=True),
    "deco": _lower("deco", decoding.DeCo),
    "deco-strong": _lower("deco", decoding.DeCo, layers=[1, 2, 3], alpha=2.0, threshold_top_k=5),
    "weighted": _weighted(1.5, -0.5),
    "weighted-log-probs": _weighted(2.5, -1.5, form="log_probs", alpha=0.0),  # guidance, from the amateur
    "weighted-jsd": _weighted(2.5, -1.5, weight_by="jsd", mask="top-n-sigma"),
    "weighted-entropy": _weighted(1.5, -0.5, weight_by="entropy", form="log_probs", plausible="reader 2"),
    "weighted-gated": _weighted(3.0, -2.0, when="divergence > 0.3", mask="p-less", plausible="reader 2"),
}
SHOWN = [0, 1, 2, 3]  # the lower layers that engines show


def one_of_a_kind() -> dict[str, Case]:
    """A case of every strategy, and one without: for what costs seconds a case."""
    return {name: CASES[name] for name in ("plain", "dola", "cd", "cd-log-probs", "lol", "lol-entropy")}


@contextlib.contextmanager
def engine(
    folder: str = EXPERT, amateur: str | None = AMATEUR, contrast: Mapping[str, Any] | None = None,
    runner: str = "V1", **options: Any,
) -> Iterator[LLM]:  # fmt: skip
    """An engine in float32, which must end with as many free blocks as it began with.

    Args:
        folder: of the model.
        amateur: folder of the amateur; None for none.
        contrast: further settings of the plug-in; all lower layers are shown unless it says otherwise.
        runner: "V1" or "V2".
        options: of ``vllm.LLM``.
    """
    settings = {"layers": SHOWN, **({} if amateur is None else {"amateur": amateur}), **(contrast or {})}
    options = {
        "dtype": "float32", "enforce_eager": True, "distributed_executor_backend": "uni", "block_size": 32,
        "max_model_len": 256, "max_num_seqs": 32, "hf_overrides": {"architectures": ["ContrastLlamaForCausalLM"]},
        "additional_config": {"contrast": settings}, **options,
    }  # fmt: skip
    with patch.dict(os.environ, VLLM_USE_V2_MODEL_RUNNER=str(int(runner == "V2"))):
        llm = LLM(folder, **options)
        try:
            yield llm
            if options["distributed_executor_backend"] == "uni":
                assert free_blocks(llm) == block_pool(llm).num_gpu_blocks - 1, "a block was leaked"  # one is no block
        finally:
            # By hand, since the traceback of a failure would keep it, and the next one would not have its place.
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()


def scheduler(llm: LLM) -> Any:
    """The scheduler of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.scheduler


def block_pool(llm: LLM) -> Any:
    """The blocks of an engine in this process."""
    return scheduler(llm).kv_cache_manager.block_pool


def free_blocks(llm: LLM) -> int:
    """How many of an engine's blocks no request has."""
    return block_pool(llm).get_num_free_blocks()


@functools.cache
def loaded(folder: str) -> tuple[Any, Any]:
    """A model in float32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def prompt_ids(text: str, folder: str = EXPERT) -> list[int]:
    """A prompt's tokens, which vLLM's tokenizer gives too."""
    ids: list[int] = loaded(folder)[1](text)["input_ids"]
    return ids


def as_lists(value: Any) -> Any:
    """Tuples as lists, within others too."""
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


USUAL_TOKENS = 24  # at least so many are computed: tests that ask for fewer find them
# By what was asked, how many tokens it was computed for and what they are.
_CONTINUED: dict[tuple[Any, ...], tuple[int, list[int]]] = {}
_READ_TOGETHER = dict.fromkeys(PROMPTS, PROMPTS)  # by prompt, those that are continued with it


def read_together(prompts: list[str]) -> list[str]:
    """Have prompts continued in one batch as soon as one of them is asked for; they are returned."""
    for prompt in prompts:
        _READ_TOGETHER.setdefault(prompt, prompts)
    return prompts


def continuation(
    strategy: Any, prompt: str, tokens: int = 24, folder: str = EXPERT, alone: bool = False, **options: Any
) -> list[int]:
    """The greedy tokens that ``decoding.generate`` continues one prompt with, in float32; computed once a process.

    It is computed for a whole list of prompts where that is possible: rows of a batch have the tokens that they have
    alone. Processors of the call see the prompts of :data:`PROMPTS` begin their new tokens at :func:`start_of`.

    Args:
        strategy: None for the model's own logits.
        prompt: text.
        tokens: at most so many; an end token is the last.
        folder: of the model.
        alone: whether no other prompt is computed with it.
        options: of ``decoding.generate``; lists as tuples.
    """

    def asked(prompt: str) -> tuple[Any, ...]:
        return (strategy, prompt, folder, tuple(sorted(options.items())))

    computed, ids = _CONTINUED.get(asked(prompt), (0, []))
    if computed < tokens:
        computed = max(tokens, USUAL_TOKENS)
        # A repetition penalty would count the padding, and end tokens are other ones for each prompt.
        alone = alone or not options.keys() <= {"logits_processor", "bad_words_ids"}
        prompts = [prompt] if alone else _READ_TOGETHER.get(prompt, [prompt])
        model = loaded(folder)[0]
        rows = [prompt_ids(text, folder) for text in prompts]
        output = decoding.generate(
            model, **left_padded(rows), strategy=strategy, max_new_tokens=computed, do_sample=False,
            **{name: as_lists(value) for name, value in options.items()},
        )  # fmt: skip
        for text, new in zip(prompts, output[:, max(map(len, rows)) :].tolist(), strict=True):
            ended = min((new.index(end) for end in ends_of(model) if end in new), default=len(new))
            _CONTINUED[asked(text)] = computed, new[: ended + 1]
        ids = _CONTINUED[asked(prompt)][1]
    return ids[:tokens]


def start_of(prompts: Sequence[str]) -> int:
    """Where the new tokens of prompts begin that are read together."""
    return max(len(prompt_ids(prompt)) for prompt in prompts)


def ends_of(model: Any) -> list[int]:
    """The end tokens of a model."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else ends if isinstance(ends, list) else [ends]


def sampling(case: Case | None = None, tokens: int = 24, **options: Any) -> SamplingParams:
    """A greedy request, unless the options say otherwise."""
    fields = None if case is None or case.fields is None else dict(case.fields)
    return SamplingParams(**{"temperature": 0.0, "max_tokens": tokens, "extra_args": fields, **options})


def new_tokens(llm: LLM, prompts: Sequence[Any], params: Any) -> list[list[int]]:
    """The tokens of the first sample of each request."""
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]
