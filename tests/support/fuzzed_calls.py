"""Calls of ``generate`` as nobody should make them, drawn by hypothesis: mostly tame, with a few odd ends each."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from decoding.strategies.registry import STRATEGIES

__all__ = ["Call", "calls"]


@dataclass(frozen=True)
class Call:
    """One call in plain data, each field at its tame value unless it was drawn odd; :mod:`fuzz_rule` makes it.

    Attributes:
        model: a name of ``fuzz_rule.ZOO``.
        strategy: a name of ``decoding.strategies.registry.STRATEGIES``.
        form: how the strategy comes in: "facade" (``decoding.generate``), "custom" (``custom_generate``), "processor",
            or "choice" (``StrategySpec.generate``, the only form of the baselines).
        parameters: of the strategy; names of models stand for these.
        weights: what was done to the model.
        rows: of the prompt.
        length: likewise.
        tokens: what the prompt's ids are like.
        mask: what its attention mask is like.
        cache: what ``past_key_values`` is.
        callback: a processor, criterion or streamer of the user's that misbehaves.
        failure: what a forward pass raises, and how many go well before.
        change: what happens to the model between two calls with one strategy.
        options: of ``generate``.
        seed: of ids and draws.
    """

    model: str = "llama"
    strategy: str = "contrastive-search"
    form: str = "facade"
    parameters: dict[str, Any] = field(default_factory=dict)
    weights: str = "random"
    rows: int = 2
    length: int = 6
    tokens: str = "random"
    mask: str = "none"
    cache: str = "none"
    callback: str = "none"
    failure: tuple[str, int] | None = None
    change: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


def calls() -> st.SearchStrategy[Call]:
    """A model, a strategy and a form, with up to four odd ends."""
    return _calls()


ODD_NUMBERS = [float("nan"), float("inf"), -1, -0.5, 0, 1, 1e-30, 1e30, 2.5, "0.5", None, True]
ODD_COUNTS = [0, -1, 1, 2, 7, 10**6, 2.5, "4", None, True]
AMATEURS = [
    "@other", "@self", "@nan", "@half", "@wider", "@narrow", "@tiny-context", "@encoder-decoder", "@prompt-ids",
    "@prompt-text", "@prompt-past", "@prompt-negative", "@prompt-empty", "@prompt-none", "@prompt-rows",
    "@prompt-number", "prompt:lie",
    "./nowhere", "liar", 5, None,
]  # fmt: skip
TEXTS = [
    "text", [], [5, 6], [[5], [6, 7]], [[5], [], [6]], [-1], [10**6], [5.5], [None], 5, None, {"en": [5]}, "", [[]],
]  # fmt: skip
LAYERS = ["low", "high", "middle", [], [0], [1], [0, 1], [2], [99], [-1], [1.5], [True], 1, None, "1"]
SHARES = [[0.5], [1], [0], [0.5, 1], [], [1.5], [-1], [99], [float("nan")], [None], 1, 0.5, None, "1", ["a"]]

# For each strategy: what it needs, and odd values of each of its parameters.
PARAMETERS: dict[str, tuple[dict[str, Any], dict[str, list[Any]]]] = {
    "contrastive-search": ({}, {"penalty_alpha": ODD_NUMBERS, "top_k": ODD_COUNTS}),
    "contrastive-decoding": (
        {"amateur": "@other"},
        {
            "amateur": AMATEURS, "alpha": ODD_NUMBERS, "beta": ODD_NUMBERS, "form": ["log_probs", "log", None],
            "amateur_temperature": ODD_NUMBERS, "amateur_context": ["last_token", "half", None],
        },
    ),
    "dola": (
        {},
        {
            "layers": LAYERS, "alpha": ODD_NUMBERS, "divergence": ["jensen-shannon", "kl", None],
            "final_norm": [True, None], "per_row": [False, None],
        },
    ),
    "context-aware": ({"context": [5, 6]}, {"context": TEXTS, "alpha": ODD_NUMBERS}),
    "lol": (
        {"amateur": "@other", "lower_layers": [1]},
        {
            "amateur": AMATEURS, "lower_layers": SHARES, "guidance": [*TEXTS, "default"], "amateur_weight": ODD_NUMBERS,
            "lower_amateur_weight": ODD_NUMBERS, "fusion_weight": ODD_NUMBERS, "fusion": ["entropy", "sum", None],
            "refocus_weight": ODD_NUMBERS, "alpha": ODD_NUMBERS, "final_norm": [False], "language": ["fi", None],
        },
    ),
    "greedy": ({}, {}),
    "sampling": (
        {},
        {"temperature": ODD_NUMBERS, "top_k": ODD_COUNTS, "top_p": ODD_NUMBERS, "typical_p": ODD_NUMBERS},
    ),
    "top-k": ({}, {"top_k": ODD_COUNTS}),
    "nucleus": ({}, {"top_p": ODD_NUMBERS}),
    "typical": ({}, {"typical_p": ODD_NUMBERS}),
    "beam": ({}, {"num_beams": [0, -1, 1, 2, 7, 40, 2.5, "4", None, True]}),
}  # fmt: skip
# For the parameters that are not listed, those of new strategies among them.
ODD_ANYTHING = [*ODD_NUMBERS, *ODD_COUNTS, "system", "prefix", "half", "", [], [0.5]]


def _completed(name: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The entry of a strategy of the registry, with all its parameters."""
    needed, odd = PARAMETERS.get(name, ({}, {}))
    fields = [field for field in dataclasses.fields(STRATEGIES[name]) if field.repr]
    examples = {field.name: field.metadata["example"] for field in fields if field.default is dataclasses.MISSING}
    return examples | needed, {field.name: ODD_ANYTHING for field in fields} | odd


PARAMETERS = {name: _completed(name) for name in STRATEGIES}
BASELINES = ("greedy", "sampling", "top-k", "nucleus", "typical", "beam")

MODELS = [
    "llama",
    "llama",
    "llama",
    "gpt2",
    "opt",
    "mistral-sliding",
    "gemma2",
    "bloom",
    "mamba",
    "t5",
    "bart",
    "one-token",
]

OPTIONS: dict[str, list[Any]] = {
    "max_new_tokens": [1, 2, 0, -1, 12, 140],
    "max_length": [0, 3, 7, 9, 20],
    "min_length": [0, 5, 50],
    "min_new_tokens": [0, 3, 50],
    "max_time": [0.0, 10.0],
    "eos_token_id": [None, 2, [2, 3], "half", "all", "past", -1, []],
    "pad_token_id": [None, 0, 2, 5, "past", -1],
    "num_beams": [1, 2, 3, 0],
    "num_return_sequences": [1, 2, 3, 0],
    "do_sample": [True],
    "temperature": [0.0, 0.7, 1e-5, 100.0, -1.0, float("nan"), float("inf")],
    "top_k": [0, 1, 3, -1, 1000],
    "top_p": [0.0, 0.5, 1.0, 2.0],
    "min_p": [0.1, 2.0],
    "typical_p": [0.5],
    "repetition_penalty": [1.3, 0.0, -1.0, float("nan")],
    "no_repeat_ngram_size": [1, 2],
    "bad_words_ids": ["half", "all", [], [[-1]], "past"],
    "suppress_tokens": ["half", "all", [-1]],
    "begin_suppress_tokens": ["all"],
    "forced_eos_token_id": [2, "past"],
    "sequence_bias": [{(3,): 5.0}, {(3,): float("-inf")}, {(10**6,): 1.0}],
    "exponential_decay_length_penalty": [(1, 1.5)],
    "renormalize_logits": [True],
    "remove_invalid_values": [True],
    "guidance_scale": [1.5],
    "stop_strings": ["a", ["b", "c"]],
    "use_cache": [False],
    "return_dict_in_generate": [True],
    "output_scores": [True],
    "output_logits": [True],
    "output_attentions": [True],
    "output_hidden_states": [True],
    "cache_implementation": ["static", "dynamic", "offloaded", "offloaded_static", "quantized", "paged", "nonsense"],
    "penalty_alpha": [0.6, 0.0, 7.0],
    "dola_layers": ["high", [1]],
    "low_memory": [True],
    "prompt_lookup_num_tokens": [2],
    "prefill_chunk_size": [1, 2, 0],
    "compile": [True],
    "assistant_model": ["other"],
    "synced_gpus": [True],
    "token_healing": [True],
    "no_such_option": [1],
}  # fmt: skip

AXES: dict[str, list[Any]] = {
    "weights": ["nan", "inf", "zero", "large", "train", "bfloat16", "float16", "meta"],
    "rows": [0, 1, 3],
    "length": [0, 1, 2, 20, 127, 128, 200],
    "tokens": [
        "same", "pads", "all-pads", "negative", "past", "int32", "float", "one-dimension", "three-dimensions", "list",
        "none",
    ],
    "mask": [
        "ones", "left", "right", "holes", "zero-row", "zeros", "bool-left", "float-left", "twos", "negative", "wide",
        "narrow", "few-rows", "three-dimensions", "four-dimensions", "list",
    ],
    "cache": ["empty", "own", "longer", "of-another", "static", "encoder-decoder", "nonsense"],
    "callback": [
        "nan", "inf", "none-left", "none-left-in-row", "one-left", "raises", "stops-at-once", "criterion-raises",
        "streams", "stream-raises",
    ],
    "failure": [
        (kind, passes)
        for kind in ("out-of-memory", "cpu-memory", "device", "interrupt")
        for passes in (0, 1, 2, 3, 5, 8)
    ],
    "change": [
        "bfloat16", "float64", "resized", "edited", "train", "nan", "adapter", "merged", "shallower", "pruned", "eager",
        "moved", "untied",
    ],
}  # fmt: skip


@st.composite
def _calls(draw: st.DrawFn) -> Call:
    strategy = draw(st.sampled_from(sorted(PARAMETERS)))
    needed, odd = PARAMETERS[strategy]
    forms = ["choice"] if strategy in BASELINES else ["facade", "custom", "processor", "choice"]
    fields: dict[str, Any] = {"model": draw(st.sampled_from(MODELS)), "form": draw(st.sampled_from(forms))}
    for axis in draw(st.lists(st.sampled_from(sorted(AXES)), max_size=2, unique=True)):
        fields[axis] = draw(st.sampled_from(AXES[axis]))
    parameters = dict(needed)
    if odd:
        for name in draw(st.lists(st.sampled_from(sorted(odd)), max_size=1)):
            parameters[name] = draw(st.sampled_from(odd[name]))
    options = {}
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True)):
        options[name] = draw(st.sampled_from(OPTIONS[name]))
    if options.get("cache_implementation") == "paged" and fields["form"] != "facade":
        del options["cache_implementation"]  # transformers decodes without a look at custom_generate
    seed = draw(st.integers(0, 999))
    return Call(strategy=strategy, parameters=parameters, options=options, seed=seed, **fields)
