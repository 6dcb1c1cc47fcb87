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

from decoding.errors import OptionError, nearest
from decoding.parameters import plain_number, plain_numbers, require_count, require_number, require_range
from decoding.strategies.parameters_text import from_text, named_values

if TYPE_CHECKING:
    from decoding.strategies.registry import StrategySpec

__all__ = [
    "EVALUATIONS_REFUSE",
    "NO_OPTIONS",
    "OPTIONS",
    "REFUSED",
    "Option",
    "applies",
    "check_apply",
    "check_tokens",
    "checked_options",
    "options_from_text",
]

Check = Callable[[str, Any], None]


@dataclass(frozen=True)
class Option:
    """An option of a generation config.

    Attributes:
        kind: its type, as :func:`decoding.strategies.parameters_text.from_text` reads it; list and dict are JSON.
        check: raises OptionError where a value is out of range.
        needs: "sampling" or "beams", without which it has no effect; "" for neither.
        neutral: a value that changes nothing, beside None.
    """

    kind: Any
    check: Check
    needs: str = ""
    neutral: Any = None


def _number(low: float, open_: bool = False) -> Check:
    return lambda name, value: require_number(name, value, low, open_)


def _share(name: str, value: Any) -> None:
    require_range(name, value, 0.0, 1.0)


def _share_above_0(name: str, value: Any) -> None:
    require_range(name, value, 0.0, 1.0)
    require_number(name, value, 0.0, open_=True)


def _count(name: str, value: Any) -> None:
    require_count(name, value, 0)


def _any_number(name: str, value: Any) -> None:
    require_range(name, value, -1e9, 1e9)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: must be true or false")


def _early_stopping(name: str, value: Any) -> None:
    if not isinstance(value, bool) and value != "never":
        raise OptionError(f"{name}={value!r}: must be true, false or never")


def _token(name: str, value: Any) -> None:
    for token in [value] if not isinstance(value, (list, tuple)) else value or [None]:
        if not isinstance(token, int) or isinstance(token, bool) or token < 0:
            raise OptionError(f"{name}={value!r}: must be a token's number, or several with commas between")


def _one_token(name: str, value: Any) -> None:
    if isinstance(value, (list, tuple)):
        raise OptionError(f"{name}={value!r}: must be one token's number")
    _token(name, value)


def _tokens(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)):
        raise OptionError(f"{name}={value!r}: must be tokens' numbers with commas between")
    _token(name, value)


def _growth(name: str, value: Any) -> None:
    start, factor = value if isinstance(value, (list, tuple)) and len(value) == 2 else (None, None)
    if not isinstance(start, int) or start < 0 or not isinstance(factor, (int, float)) or factor <= 0:
        raise OptionError(f"{name}={value!r}: must be a number of tokens and a factor above 0, such as 30,1.05")


def _words(name: str, value: Any) -> None:
    if not isinstance(value, (list, tuple)) or not value or not all(isinstance(word, (list, tuple)) for word in value):
        raise OptionError(f"{name}={value!r}: must be lists of tokens' numbers, such as [[5], [6, 7]]")
    for word in value:
        _tokens(name, word)


def _biases(name: str, value: Any) -> None:
    pairs = value if isinstance(value, (list, tuple)) and value else [None]
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not isinstance(pair[1], float):
            raise OptionError(f"{name}={value!r}: must be pairs of tokens and a bias, such as [[[5, 6], -10.0]]")
        _tokens(name, pair[0])


def _settings(name: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        raise OptionError(f"{name}={value!r}: must be a JSON object")


def _cache(name: str, value: Any) -> None:
    caches = ("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "quantized")
    if value not in caches:
        raise OptionError(f"{name}={value!r}{nearest(str(value), caches)}")


def _strings(name: str, value: Any) -> None:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, (list, tuple)) or not strings or not all(isinstance(s, str) and s for s in strings):
        raise OptionError(f'{name}={value!r}: must be a text, or texts such as ["\\n", "Q:"]')


OPTIONS: Mapping[str, Option] = {
    "repetition_penalty": Option(float, _number(0.0, open_=True), neutral=1.0),
    "no_repeat_ngram_size": Option(int, _count, neutral=0),
    "encoder_repetition_penalty": Option(float, _number(0.0, open_=True), neutral=1.0),
    "encoder_no_repeat_ngram_size": Option(int, _count, neutral=0),
    "min_p": Option(float, _share, "sampling", neutral=0.0),
    "top_h": Option(float, _share_above_0, "sampling"),
    "epsilon_cutoff": Option(float, _share, "sampling", neutral=0.0),
    "eta_cutoff": Option(float, _share, "sampling", neutral=0.0),
    "length_penalty": Option(float, _any_number, "beams", neutral=1.0),
    "early_stopping": Option(bool | str, _early_stopping, "beams", neutral=False),
    "min_length": Option(int, _count, neutral=0),
    "min_new_tokens": Option(int, _count, neutral=0),
    "exponential_decay_length_penalty": Option(Sequence, _growth),
    "bad_words_ids": Option(list, _words),
    "sequence_bias": Option(list, _biases),
    "suppress_tokens": Option(Sequence, _tokens),
    "begin_suppress_tokens": Option(Sequence, _tokens),
    "forced_bos_token_id": Option(int, _one_token),
    "forced_eos_token_id": Option(int | Sequence, _token),
    "decoder_start_token_id": Option(int, _one_token),
    "eos_token_id": Option(int | Sequence, _token),
    "stop_strings": Option(str | list, _strings),
    "max_time": Option(float, _number(0.0, open_=True)),
    "guidance_scale": Option(float, _number(0.0), neutral=1.0),
    "watermarking_config": Option(dict, _settings),
    "remove_invalid_values": Option(bool, _flag, neutral=False),
    "renormalize_logits": Option(bool, _flag, neutral=False),
    "use_cache": Option(bool, _flag, neutral=True),
    "cache_implementation": Option(str, _cache),
    "cache_config": Option(dict, _settings),
}
"""The options that may be given, by name."""

_SAMPLER = "is a parameter of strategies that sample: --strategy sampling:{name}=VALUE"
_ASSISTED = "belongs to assisted decoding, which these commands do not run"
_OUTPUT = "asks for more than tokens, and only these are read"
_GONE = "belongs to a search that transformers no longer has"
_COMPILED = "is set by --compile of decoding generate"
_OWN = "is the tokenizer's own"

REFUSED: Mapping[str, str] = {
    "max_new_tokens": "is given by --max-new-tokens N",
    "max_length": "counts the prompt too: give --max-new-tokens N",
    "num_return_sequences": "is given by --num-return-sequences N of decoding generate",
    "do_sample": "is decided by the strategy: --strategy sampling, top-k, nucleus or typical draw, the others do not",
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
    **dict.fromkeys(
        (
            "use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule",
            "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "target_lookbehind",
            "assistant_ensemble_weight", "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type",
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
        raise OptionError(f"generation_config={given!r}: must be a mapping of options, {{'repetition_penalty': 1.2}}")
    for name in given:
        _known(str(name), refused, "generation_config ")
    return _checked({name: _plain(value) for name, value in given.items() if value is not None}, "generation_config ")


def check_apply(options: Mapping[str, Any], specs: Sequence[StrategySpec]) -> None:
    """Raise OptionError where an option has no effect on any of the strategies."""
    for name in options:
        needs = OPTIONS[name].needs
        if needs and not any(applies(name, spec) for spec in specs):
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
        if OPTIONS[name].check in (_token, _one_token, _tokens, _words):
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
    if needs == "beams":
        return bool(spec.parameters.get("num_beams", 1) > 1)
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
