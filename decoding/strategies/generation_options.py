"""Options of transformers' ``GenerationConfig`` that may stand beside a strategy: their values, as text and in Python.

Those that a strategy or a command has itself are refused with the name that they have there. Nothing here needs model
code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from decoding.errors import OptionError, nearest, shown
from decoding.parameters import plain_number, plain_numbers
from decoding.strategies import option_checks as checks
from decoding.strategies.parameters_text import from_text, named_values

if TYPE_CHECKING:
    from decoding.strategies.registry import StrategySpec

__all__ = [
    "DRAFTS",
    "EVALUATIONS_REFUSE",
    "NO_OPTIONS",
    "OPTIONS",
    "REFUSED",
    "Option",
    "applies",
    "check_apply",
    "check_together",
    "check_tokens",
    "checked_call",
    "checked_options",
    "options_from_text",
]


@dataclass(frozen=True)
class Option:
    """An option of a generation config.

    Attributes:
        kind: its type, as :func:`decoding.strategies.parameters_text.from_text` reads it; list and dict are JSON.
        check: raises OptionError where a value is out of range.
        needs: "sampling", "beams" or "one beam", without which it has no effect; "" for none of them.
        neutral: a value that changes nothing, beside None.
    """

    kind: Any
    check: checks.Check
    needs: str = ""
    neutral: Any = None


# The parameters of transformers' WatermarkingConfig, and those of its QuantizedCache.
WATERMARKING: Mapping[str, checks.Check] = {
    "greenlist_ratio": checks.share,
    "bias": checks.any_number,
    "hashing_key": checks.whole,
    "seeding_scheme": checks.choice("lefthash", "selfhash"),
    "context_width": checks.count(1),
}
QUANTIZED_CACHE: Mapping[str, checks.Check] = {
    "backend": checks.choice("quanto", "hqq", "fp8"),
    "nbits": checks.count(1),
    "axis_key": checks.whole,
    "axis_value": checks.whole,
    "q_group_size": checks.count(1),
    "residual_length": checks.count(0),
}
# Options of this library, which transformers keeps in its configs and does not know.
DRAFTS: Mapping[str, Option] = {
    "drafts": Option(str, checks.drafts, "one beam"),
    "draft_tokens": Option(int | str, checks.draft_tokens, "one beam"),
}

OPTIONS: Mapping[str, Option] = {
    "repetition_penalty": Option(float, checks.number(0.0, open_=True), neutral=1.0),
    "no_repeat_ngram_size": Option(int, checks.count(0), neutral=0),
    "encoder_repetition_penalty": Option(float, checks.number(0.0, open_=True), neutral=1.0),
    "encoder_no_repeat_ngram_size": Option(int, checks.count(0), neutral=0),
    "min_p": Option(float, checks.share, "sampling", neutral=0.0),
    "top_h": Option(float, checks.share_above_0, "sampling"),
    "epsilon_cutoff": Option(float, checks.share, "sampling", neutral=0.0),
    "eta_cutoff": Option(float, checks.share, "sampling", neutral=0.0),
    "length_penalty": Option(float, checks.any_number, "beams", neutral=1.0),
    "early_stopping": Option(bool | str, checks.early_stopping, "beams", neutral=False),
    "min_length": Option(int, checks.count(0), neutral=0),
    "min_new_tokens": Option(int, checks.count(0), neutral=0),
    "exponential_decay_length_penalty": Option(Sequence, checks.growth),
    "bad_words_ids": Option(list, checks.words),
    "sequence_bias": Option(list, checks.biases),
    "suppress_tokens": Option(Sequence, checks.tokens),
    "begin_suppress_tokens": Option(Sequence, checks.tokens),
    "forced_bos_token_id": Option(int, checks.one_token),
    "forced_eos_token_id": Option(int | Sequence, checks.token),
    "decoder_start_token_id": Option(int, checks.one_token),
    "eos_token_id": Option(int | Sequence, checks.token),
    "stop_strings": Option(str | list, checks.strings),
    "max_time": Option(float, checks.number(0.0, open_=True)),
    "guidance_scale": Option(float, checks.number(0.0), neutral=1.0),
    "watermarking_config": Option(dict, checks.settings(WATERMARKING)),
    "remove_invalid_values": Option(bool, checks.flag, neutral=False),
    "renormalize_logits": Option(bool, checks.flag, neutral=False),
    "use_cache": Option(bool, checks.flag, neutral=True),
    "cache_implementation": Option(str, checks.cache),
    "cache_config": Option(dict, checks.settings(QUANTIZED_CACHE)),
    **DRAFTS,
}
"""The options that may be given, by name."""

_SAMPLER = "is a parameter of strategies that sample: --strategy sampling:{name}=VALUE"
_ASSISTED = "belongs to transformers' assisted decoding; drafts=MODEL and draft_tokens=N do the same here"
_OUTPUT = "asks for more than tokens, and only these are read"
_GONE = "belongs to a search that transformers no longer has"
_COMPILED = "is set by --compile of decoding generate"
_OWN = "is the tokenizer's own"

REFUSED: Mapping[str, str] = {
    "max_new_tokens": "is given by --max-new-tokens N",
    "max_length": "counts the prompt too: give --max-new-tokens N",
    "num_return_sequences": "is given by --num-return-sequences N of decoding generate",
    "do_sample": "is decided by the strategy: --strategy sampling, top-k, nucleus, typical, top-n-sigma or p-less "
    "draw, the others do not",
    **dict.fromkeys(("temperature", "top_k", "top_p", "typical_p"), _SAMPLER),
    "num_beams": "is a parameter of beam search: --strategy beam:num_beams=N",
    "penalty_alpha": "is a parameter of contrastive search: --strategy contrastive-search:penalty_alpha=VALUE",
    "dola_layers": "is a parameter of DoLa: --strategy dola:layers=VALUE",
    "low_memory": "is not needed: every strategy here needs little memory for its candidates",
    "prefill_chunk_size": "is given by --prefill-chunk N",
    "token_healing": "changes the prompt, from whose end new tokens are counted; call decoding.generate in Python",
    **dict.fromkeys(("pad_token_id", "bos_token_id"), _OWN),
    **dict.fromkeys(("compile_config", "disable_compile", "max_cache_len"), _COMPILED),
    **dict.fromkeys(("num_beam_groups", "diversity_penalty", "constraints", "force_words_ids"), _GONE),
    **dict.fromkeys(
        (
            "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
        ),
        _OUTPUT,
    ),
    "prompt_lookup_num_tokens": "is drafts=prompt-lookup here, with draft_tokens=N",
    "assistant_early_exit": "is drafts=exit:LAYER here",
    "use_mtp": "needs heads that predict several tokens, which no strategy reads",
    **dict.fromkeys(
        (
            "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold",
            "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "max_matching_ngram_size",
            "speculation_type",
        ),
        _ASSISTED,
    ),
    "continuous_batching_config": "belongs to continuous batching, which no strategy runs under",
}  # fmt: skip
"""Options of transformers that may not be given, and what to do instead."""

EVALUATIONS_REFUSE: Mapping[str, str] = {
    "stop_strings": "would end texts where the task does not: its own strings do",
    "max_time": "would make figures depend on the machine",
    "use_cache": "changes time and memory alone, and batches here continue from a cache",
    "cache_implementation": "changes time and memory alone, and batches here continue from a cache",
    "cache_config": "changes time and memory alone, and batches here continue from a cache",
}
"""Options that an evaluation refuses besides."""

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

# How a call in Python may give options otherwise than a command, and options that commands have themselves.
# The names of caches are left to transformers, whose versions differ in them.
_IN_PYTHON: Mapping[str, checks.Check] = {
    **{name: option.check for name, option in OPTIONS.items() if name != "cache_implementation"},
    **dict.fromkeys(("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id"), checks.token_or_none),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), checks.tokens_or_none),
    **dict.fromkeys(("max_length", "num_beams", "num_return_sequences", "top_k"), checks.count(0)),
    **dict.fromkeys(("max_new_tokens", "prefill_chunk_size"), checks.count(1)),
    "temperature": checks.temperatures,
    "max_time": checks.number(0.0),
    **dict.fromkeys(("top_p", "typical_p"), checks.share),
    **dict.fromkeys(("do_sample", "return_dict_in_generate", "output_scores", "output_logits"), checks.flag),
}  # fmt: skip


def options_from_text(pairs: Sequence[str], refused: Mapping[str, str] = NO_OPTIONS) -> dict[str, Any]:
    """The options of ``name=value`` strings, as ``--generation-config`` takes them.

    Args:
        pairs: of a name and a value; lists of numbers have commas between, lists of lists and objects are JSON.
        refused: further names that may not be given, and why.

    Raises:
        OptionError: an unknown name (with the nearest ones), a name of the command or strategy, a wrong value.

    Example:
        >>> options_from_text(["repetition_penalty=1.2", "suppress_tokens=5,6"])
        {'repetition_penalty': 1.2, 'suppress_tokens': [5, 6]}
    """
    options = {
        name: _from_text(name, text.strip(), _known(name, refused, "--generation-config ").kind)
        for name, text in named_values("--generation-config", pairs, "repetition_penalty=1.2").items()
    }
    return _checked(options, "--generation-config ")


def checked_options(given: Mapping[str, Any], refused: Mapping[str, str] = NO_OPTIONS) -> dict[str, Any]:
    """The options of a mapping in Python, checked as :func:`options_from_text` does.

    Raises:
        OptionError: likewise.
    """
    if not isinstance(given, Mapping):
        raise OptionError(
            f"generation_config={shown(given)}: must be a mapping of options, {{'repetition_penalty': 1.2}}"
        )
    for name in given:
        _known(str(name), refused, "generation_config ")
    return _checked({name: _plain(value) for name, value in given.items() if value is not None}, "generation_config ")


def check_together(options: Mapping[str, Any], value: Callable[[str], Any]) -> None:
    """Raise OptionError where an option has no effect, or cannot be honoured, with the others of its call.

    Args:
        options: that were given.
        value: of any option by its name, the model's own where the call has none.
    """
    if options.get("cache_config") and value("cache_implementation") != "quantized":
        raise OptionError(
            "cache_config: has an effect with cache_implementation=quantized alone, and that is "
            f"{value('cache_implementation')!r}"
        )
    if options.get("exponential_decay_length_penalty") and value("eos_token_id") is None:
        raise OptionError("exponential_decay_length_penalty: needs an end token, such as eos_token_id=2")
    if options.get("draft_tokens") is not None and value("drafts") is None:
        raise OptionError(
            f"draft_tokens={options['draft_tokens']}: has an effect with drafts alone; pass drafts as well"
        )


def checked_call(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call of ``decoding.generate``, the numbers of its options as Python's.

    Args:
        given: options, and inputs of the model, which pass; None is an option that is not given.

    Raises:
        OptionError: an option of the wrong kind, or out of range.
    """
    checked = dict(given)
    for name, value in given.items():
        if name == "continuous_batching_config" and value is not None:
            raise OptionError(f"{name}: {REFUSED[name]}")
        if name in _IN_PYTHON and value is not None and not _is_watermarking(name, value):
            checked[name] = _plain(value)
            _IN_PYTHON[name](name, checked[name])
    return checked


def _is_watermarking(name: str, value: Any) -> bool:
    """True of an object of transformers that makes a watermark, which has more kinds than a mapping can tell."""
    return name == "watermarking_config" and hasattr(value, "construct_processor") and not isinstance(value, type)


def check_apply(options: Mapping[str, Any], specs: Sequence[StrategySpec]) -> None:
    """Raise OptionError where an option has no effect on any of the strategies."""
    for name in options:
        needs = OPTIONS[name].needs
        if needs and not any(applies(name, spec) for spec in specs):
            if needs == "one beam":
                raise OptionError(f"{name}: {specs[0].name} reads no drafts; expected another strategy")
            example = "beam" if needs == "beams" else "sampling"
            raise OptionError(
                f"{name}: has an effect with {needs} alone, and {specs[0].name} has none: --strategy {example}"
            )


def check_tokens(options: Mapping[str, Any], vocabulary: int) -> None:
    """Raise OptionError where an option names a token that the model does not have.

    Args:
        options: checked ones.
        vocabulary: the number of the model's tokens.
    """
    for name, value in options.items():
        if OPTIONS[name].check in (checks.token, checks.one_token, checks.tokens, checks.words):
            for token in _numbers_in(value):
                if token >= vocabulary:
                    raise OptionError(f"{name}={token}: the model's tokens are 0 to {vocabulary - 1}")


def _numbers_in(value: Any) -> list[int]:
    """The numbers of a number, a list, or a list of lists."""
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers_in(item)]
    return [value]


def applies(name: str, spec: StrategySpec) -> bool:
    """Return whether an option has an effect on a strategy."""
    needs = OPTIONS[name].needs if name in OPTIONS else ""
    if needs in ("beams", "one beam"):
        return (needs == "beams") is bool(spec.parameters.get("num_beams", 1) > 1)
    return needs != "sampling" or spec.is_stochastic


def _known(name: str, refused: Mapping[str, str], where: str) -> Option:
    reason = refused.get(name) or REFUSED.get(name)
    if reason is not None:
        raise OptionError(f"{where}{name}: {reason.format(name=name)}")
    if name not in OPTIONS:
        raise OptionError(f"{where}{name}: transformers has no such option{nearest(name, OPTIONS)}")
    return OPTIONS[name]


def _checked(options: dict[str, Any], where: str) -> dict[str, Any]:
    for name, value in options.items():
        try:
            OPTIONS[name].check(name, value)
        except OptionError as error:
            raise OptionError(f"{where}{error}") from None
    return options


def _from_text(name: str, text: str, kind: Any) -> Any:
    """The value of a text: JSON where it is a list of lists, texts or an object, else as parameters are read."""
    if kind in (list, dict) or (kind == str | list and text.startswith("[")):
        try:
            return json.loads(text)
        except ValueError:
            wanted = "a JSON object" if kind is dict else "a JSON list"
            raise OptionError(f"--generation-config {name}={text!r}: must be {wanted}") from None
    try:
        return _plain(from_text(name, text, str if kind == str | list else kind))
    except OptionError as error:
        raise OptionError(f"--generation-config {error}") from None


def _plain(value: Any) -> Any:
    """A value with Python's numbers and lists in place of NumPy's and tuples."""
    return plain_numbers(plain_number(value))
