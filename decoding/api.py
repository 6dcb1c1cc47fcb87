"""``decoding.generate``: ``model.generate`` with a strategy."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CompileConfig, GenerationConfig, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria

from decoding.drafts.options import draft_options
from decoding.drafts.record import DraftRecord, require_record
from decoding.errors import InputError, OptionError, shown
from decoding.generation.strategy import Strategy
from decoding.models.devices import input_device
from decoding.models.forward_errors import within_memory
from decoding.models.inputs import check_inputs, check_whole, with_named_inputs
from decoding.models.segments import cuts_segments
from decoding.models.wrappers import check_model, text_tokenizer
from decoding.parameters import plain_number, require_flag
from decoding.strategies.baselines import Baseline
from decoding.strategies.contrastive_search.strategy import ContrastiveSearch
from decoding.strategies.dola import DoLa
from decoding.strategies.effective_config import NEUTRAL_SAMPLERS, with_strategy
from decoding.strategies.generation_options import check_together, checked_call
from decoding.strategies.given import GivenStrategy, given_strategy
from decoding.strategies.model_logits import ModelLogits
from decoding.strategies.registry import StrategySpec
from decoding.strategies.stored import stored_strategy

__all__ = ["generate", "generate_with", "pipeline_kwargs"]


def generate(
    model: Any,
    inputs: Tensor | Mapping[str, Any] | None = None,
    *,
    strategy: GivenStrategy | None = None,
    generation_config: GenerationConfig | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: Any = None,
    tokenizer: Any = None,
    compile: bool = False,
    seeds: Sequence[int] | None = None,
    drafts: Any = None,
    draft_tokens: int | Literal["auto"] | None = None,
    draft_record: DraftRecord | None = None,
    **kwargs: Any,
) -> Any:
    """``model.generate`` with a strategy: takes all that it takes, the arguments that transformers dropped included.

    Args:
        model: a generating transformers model.
        inputs: (batch, length) token ids, or what a tokenizer or processor returns; or as keyword ``input_ids``,
            ``inputs_embeds``, ...
        strategy: how to choose tokens. As text, as what ``parse_strategy`` made, or as a baseline of transformers
            (``"dola:layers=2"``, ``"nucleus"``) it decodes as commands do: it draws where it is a sampler and not
            otherwise, whatever the generation config says; arguments of the call have priority. None takes it from the
            generation config of a model that was exported (see :func:`decoding.export`), from the arguments, or else
            from the model's generation config: ``penalty_alpha`` > 0 with ``top_k`` > 1 is ``ContrastiveSearch``,
            ``dola_layers`` is ``DoLa`` as transformers had it (one premature layer for the whole batch); without them
            this is plain ``model.generate``.
        generation_config: as in ``model.generate``.
        stopping_criteria: as in ``model.generate``.
        streamer: as in ``model.generate``; receives the prompt, each token and the end.
        tokenizer: needed for ``stop_strings`` and ``token_healing``, and for a strategy that has texts but no
            tokenizer. A processor does as well.
        compile: capture the decode step and replay it for each token: the same tokens, and a GPU that does not wait
            between kernels (docs/compile.md: when it pays, memory, what is refused).
        seeds: a whole number for each row (each returned sequence), with ``do_sample=True``: a row draws from its own,
            what it would draw alone after ``torch.manual_seed``. So its tokens do not depend on its batch. Without a
            strategy it samples as plain ``model.generate`` does. None draws from torch's global generator.
        drafts: proposes tokens ahead, which all readers then read in one pass; those stay that the strategy chooses
            itself (docs/drafts.md). The same tokens as without, and of sampled ones the same distribution. One of
            "prompt-lookup" (what followed the last tokens in the prompt, a context or the text before), "amateur" (the
            strategy's), "exit:LAYER" (the model after its first layers), or a model of the same tokens: an object, a
            folder or a name. Without a strategy it is greedy search, or sampling, with drafts. None takes it from the
            generation config, which may have it as text; "none" reads no drafts in any case.
        draft_tokens: how many drafts a round has; "auto", the default, adapts their number, down to none where they
            do not pay. None takes it from the generation config.
        draft_record: a ``decoding.DraftRecord()``, which is told what became of the drafts; explanations show it.
        kwargs: everything else that ``model.generate`` takes.

    Returns:
        What ``model.generate`` returns: (batch, length) token ids, or its output object with
        ``return_dict_in_generate=True``.

    Raises:
        OptionError: an option that the strategy cannot honour, or that contradicts another one.
        InputError: an empty prompt, a row of padding alone, a prompt as long as the context.
        ModelError: what is given as the model does not generate text, or does not fit the strategy.

    Example:
        >>> decoding.generate(model, **tokenizer("The town lies", return_tensors="pt"), penalty_alpha=0.6, top_k=4)
    """
    check_model(model)
    tokenizer = text_tokenizer(tokenizer, required=False)
    inputs, kwargs = with_named_inputs(inputs, kwargs)
    if isinstance(inputs, Tensor) and getattr(model, "main_input_name", None) == "input_ids":
        check_whole(inputs)
    kwargs = _checked_arguments(generation_config, stopping_criteria, streamer, compile, kwargs)
    if isinstance(temperatures := kwargs.get("temperature"), (list, tuple)) and not cuts_segments(model):
        raise OptionError(
            f"temperature={shown(temperatures)}: must be a number from 0 up; {type(model).__name__} tries no text again"
        )
    config = model.generation_config if generation_config is None else generation_config
    if cuts_segments(model) and kwargs.get("do_sample", config.do_sample) and kwargs.get("temperature") is None:
        kwargs["temperature"] = config.temperature or 1.0  # whose own generate() draws only where it is given one
    check_together(kwargs, lambda name: kwargs.get(name, getattr(config, name)))
    text_options = _text_options(config, model.generation_config)
    if tokenizer is None and kwargs.get("token_healing", text_options.get("token_healing")):
        raise OptionError("token_healing=True: pass tokenizer=... as well, to find the tokens that the last one begins")
    if strategy is not None and not isinstance(strategy, Strategy):
        spec = given_strategy(strategy).with_tokenizer(tokenizer)
        if kwargs.get("custom_generate") is not None:
            raise OptionError(f"custom_generate: would decode in place of {spec.name}; leave one of them out")
        return generate_with(
            spec, model, inputs=inputs, generation_config=generation_config, stopping_criteria=stopping_criteria,
            streamer=streamer, tokenizer=tokenizer, compile=compile, seeds=seeds, drafts=drafts,
            draft_tokens=draft_tokens, draft_record=draft_record, **kwargs,
        )  # fmt: skip
    if strategy is None:
        strategy = stored_strategy(model, generation_config, kwargs, tokenizer)
    if strategy is None:
        strategy = _strategy_of_arguments(kwargs, config)
    if not isinstance(in_config := getattr(generation_config, "drafts", None), (str, type(None))):
        raise OptionError(
            f"generation_config: drafts={type(in_config).__name__}: must be text, since configs are copied; pass the "
            "model as drafts=... of the call"
        )
    with_drafts = draft_options(drafts, draft_tokens, config, model.generation_config) is not None
    require_record(draft_record)
    if strategy is None and (seeds is not None or with_drafts or draft_record is not None):
        if with_drafts and (beams := kwargs.get("num_beams", config.num_beams) or 1) > 1:
            raise OptionError(f"num_beams={beams}: beam search reads no drafts; leave one of them out")
        strategy = ModelLogits()
    # Some models' own generate() calls its first parameter pixel_values, or input_ids: given by name it stays that.
    positional = () if inputs is None else (inputs,)
    if strategy is None:
        if compile:
            raise OptionError(
                "compile=True captures the steps of this library's strategies, and transformers decodes this call: "
                "pass strategy=decoding.ContrastiveSearch() or another"
            )
        return model.generate(
            *positional, generation_config=generation_config, stopping_criteria=stopping_criteria, streamer=streamer,
            tokenizer=tokenizer, **kwargs,
        )  # fmt: skip
    strategy = strategy.with_tokenizer(tokenizer)
    if kwargs.pop("custom_generate", None) is not None:
        raise OptionError(f"custom_generate: would decode in place of {strategy.name}; leave one of them out")
    kwargs.pop("low_memory", None)  # every call here needs little memory for its candidates
    if kwargs.get("cache_implementation", config.cache_implementation) == "paged":
        raise OptionError(
            f"cache_implementation='paged': continuous batching would leave out {strategy.name}; drop the option"
        )
    prompt = inputs if inputs is not None else kwargs.get("input_ids")
    if isinstance(prompt, Tensor) and prompt.numel() == 0 and kwargs.get("inputs_embeds") is None:
        raise InputError("the prompt is empty: give at least one token (for text from nothing, the model's bos token)")
    stop_strings = kwargs.pop("stop_strings", None) or text_options.get("stop_strings")
    if stop_strings:
        if tokenizer is None:
            raise OptionError(f"stop_strings={stop_strings!r}: pass tokenizer=... as well, to find where strings end")
        stopping_criteria = StoppingCriteriaList(stopping_criteria or [])
        stopping_criteria.append(StopStringCriteria(tokenizer, stop_strings))
    if kwargs.pop("token_healing", text_options.get("token_healing")):
        prompt = _healed(model, prompt, kwargs, tokenizer)
        if inputs is None:
            kwargs["input_ids"] = prompt
        else:
            positional = (prompt,)
    if text_options:
        # Both are done here. transformers would do them too, and miss the tokenizer that it never passes to a callable.
        # Not by without_stop_strings(): a config beside the caller's arguments is warned of, and there may be none.
        done = {"stop_strings": None, "token_healing": False}
        if generation_config is not None:
            generation_config = copy.deepcopy(generation_config)
            generation_config.update(**done)
        if generation_config is None or model.generation_config.stop_strings:  # from which None is filled in
            kwargs.update(done)
    if strategy.replaces_language and kwargs.get("decoder_input_ids") is None and model.config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = _language_prompt(strategy, model, config, inputs, kwargs)
    custom: Any = strategy if streamer is None else functools.partial(strategy, streamer=streamer)
    with within_memory(model, "its prompt"):
        return model.generate(
            *positional,
            generation_config=generation_config,
            stopping_criteria=stopping_criteria,
            custom_generate=custom,
            **({"compile": True} if compile else {}),
            **({"seeds": seeds} if seeds is not None else {}),
            **({"drafts": drafts} if drafts is not None else {}),
            **({"draft_tokens": draft_tokens} if draft_tokens is not None else {}),
            **({"draft_record": draft_record} if draft_record is not None else {}),
            **kwargs,
        )


def pipeline_kwargs(strategy: GivenStrategy, **options: Any) -> dict[str, Any]:
    """The arguments with which a pipeline of transformers generates as :func:`generate` does.

    ``custom_generate=strategy`` alone is not enough: text-generation pipelines sample at temperature 0.7, and pipelines
    for speech search with five beams, unless the call or the model's own generation config says otherwise.

    Args:
        strategy: how to choose tokens, in any form that :func:`generate` takes; one with texts needs its tokenizer. A
            baseline of transformers becomes its options.
        options: of ``generate``, such as ``max_new_tokens``, for which pipelines have defaults of their own (256). They
            have priority: with ``do_sample=True`` the strategy samples.

    Returns:
        Keyword arguments of a call of the pipeline. Pipelines of images and text take them as ``generate_kwargs``.

    Raises:
        OptionError: no strategy, or an option of the wrong kind.

    Example:
        >>> pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        >>> pipe("The town lies", **decoding.pipeline_kwargs(ContrastiveSearch(), max_new_tokens=64))
    """
    spec = given_strategy(strategy)
    text_tokenizer(options.get("tokenizer"), required=False)
    options = checked_call(options)
    draft_options(options.get("drafts"), options.get("draft_tokens"))
    if isinstance(spec.strategy, Baseline):
        return {"do_sample": spec.is_stochastic, "num_beams": 1, **spec.parameters, **options}
    if isinstance(strategy, Strategy):
        return {"custom_generate": strategy, "do_sample": False, "num_beams": 1, **options}
    samplers = NEUTRAL_SAMPLERS if spec.is_stochastic else {}
    return {"custom_generate": spec.strategy, "do_sample": spec.is_stochastic, "num_beams": 1, **samplers, **options}


def _checked_arguments(
    config: Any, criteria: Any, streamer: Any, compile: Any, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The keyword arguments of :func:`generate`, numbers as Python's.

    Raises:
        OptionError: an argument is of another kind than it must be.
    """
    if config is not None and not isinstance(config, GenerationConfig):
        raise OptionError(
            f"generation_config={shown(config)}: must be a transformers.GenerationConfig; options may be given by name "
            "too, such as max_new_tokens=64"
        )
    for name, given in (("stopping_criteria", criteria), ("logits_processor", options.get("logits_processor"))):
        if given is not None and not (isinstance(given, (list, tuple)) and all(map(callable, given))):
            raise OptionError(f"{name}={shown(given)}: must be a list of them, each a callable of transformers' kind")
    if streamer is not None and not all(callable(getattr(streamer, method, None)) for method in ("put", "end")):
        raise OptionError(f"streamer={shown(streamer)}: must have put() and end(), such as transformers.TextStreamer")
    require_flag("compile", compile)
    compile_config = options.get("compile_config")
    if compile_config is not None and not isinstance(compile_config, CompileConfig):
        raise OptionError(
            f"compile_config={shown(compile_config)}: must be a transformers.CompileConfig; compile=True captures the "
            "steps of a strategy"
        )
    return checked_call(options)


def _text_options(*configs: GenerationConfig) -> dict[str, Any]:
    """The options of configs, the first that says something, for which ``generate`` needs a tokenizer."""
    options = {}
    for name in ("stop_strings", "token_healing"):
        value = next((getattr(config, name) for config in configs if getattr(config, name) is not None), None)
        if value:
            options[name] = value
    return options


def _healed(model: Any, prompt: Any, kwargs: dict[str, Any], tokenizer: Any) -> Tensor:
    """The prompt with its last token replaced by what ``heal_tokens`` of transformers finds; the mask goes along.

    transformers has no tokenizer for it where a callable decodes.
    """
    if not isinstance(prompt, Tensor) or model.config.is_encoder_decoder:
        raise OptionError("token_healing=True: needs a decoder-only model and a prompt of input_ids; leave it out")
    if tokenizer.pad_token_id is None:
        raise OptionError("token_healing=True: the tokenizer has no pad token; set tokenizer.pad_token")
    # heal_tokens() generates, with the options of the model's own config, and fails where they ask for these two.
    quiet = copy.copy(model)
    quiet.generation_config = copy.deepcopy(model.generation_config)
    quiet.generation_config.update(stop_strings=None, token_healing=False)
    healed: Tensor = quiet.heal_tokens(prompt, tokenizer)
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.shape != healed.shape:  # spaces at the end of a prompt are left out
        kwargs["attention_mask"] = (healed != tokenizer.pad_token_id).to(mask.dtype)
    return healed


def _language_prompt(
    strategy: Strategy, model: Any, config: GenerationConfig, inputs: Any, kwargs: Mapping[str, Any]
) -> Tensor:
    """The decoder's prompt (rows, 2) of its start token and the target language, which ``forced_bos_token_id`` names.

    As the decoder's prompt has it already, transformers does not force it as the first new token.
    """

    def option(name: str) -> Any:
        values = (kwargs.get(name), getattr(config, name), getattr(model.generation_config, name))
        return next((value for value in values if value is not None), None)

    start, language = option("decoder_start_token_id"), option("forced_bos_token_id")
    start = option("bos_token_id") if start is None else start
    if not isinstance(start, int) or not isinstance(language, int):
        raise InputError(
            f"language: {strategy.name} replaces the target language, and the call names none: give "
            "forced_bos_token_id=ID (--generation-config on the command line), or decoder_input_ids that end in it"
        )
    first = inputs if inputs is not None else kwargs.get("input_ids")
    rows = next(value for value in (first, *kwargs.values()) if isinstance(value, Tensor)).shape[0]
    return torch.tensor([[start, language]], device=input_device(model)).expand(rows, 2)


def generate_with(spec: StrategySpec, model: Any, **inputs: Any) -> Any:
    """``decoding.generate`` with the strategy or baseline of a spec, whatever the model's generation config prefers.

    Args:
        spec: the strategy or baseline.
        model: a generating transformers model.
        inputs: everything else that ``decoding.generate`` takes, ``input_ids`` (batch, length) among it.

    Raises:
        OptionError: parameters that do not fit the model.
        InputError: an empty prompt, or one as long as the model's context.
    """
    spec.check(model)
    config = with_strategy(spec, copy.deepcopy(inputs.pop("generation_config", None) or model.generation_config))
    strategy = spec.strategy if isinstance(spec.strategy, Strategy) else None
    if strategy is None:
        prompt = inputs.get("input_ids")
        if prompt is None and getattr(model, "main_input_name", None) == "input_ids":
            prompt = inputs.get("inputs")
        if prompt is not None:
            check_inputs(model, prompt, inputs)
    own = {"temperature": inputs.pop("temperature", None)} if cuts_segments(model) else {}  # an argument there alone
    # transformers wants options either in the config or beside it; update() returns what is no option.
    inputs = {**config.update(**inputs), **own}
    with within_memory(model, "its prompt"):  # of a baseline too, which transformers decodes
        return generate(model, strategy=strategy, generation_config=config, **inputs)


def _strategy_of_arguments(kwargs: dict[str, Any], config: GenerationConfig) -> Strategy | None:
    """The strategy that transformers' former arguments name; these are removed from ``kwargs``."""
    dola_layers = kwargs.pop("dola_layers", getattr(config, "dola_layers", None))
    if dola_layers is not None:
        if kwargs.get("penalty_alpha"):
            raise OptionError(
                "dola_layers and penalty_alpha name two strategies, dola and contrastive-search: give one"
            )
        return DoLa(dola_layers, per_row=False)  # as transformers had it
    alpha = plain_number(kwargs.get("penalty_alpha", getattr(config, "penalty_alpha", None)))
    top_k = plain_number(kwargs.get("top_k", config.top_k))
    named = "penalty_alpha" in kwargs and kwargs["penalty_alpha"] is not None
    if alpha is None or (not named and (not alpha or not top_k or top_k == 1)):
        return None
    if top_k is None:
        raise OptionError(f"penalty_alpha={alpha}: contrastive-search needs top_k as well; the paper uses 3 to 5")
    kwargs.pop("penalty_alpha", None)
    kwargs.pop("top_k", None)
    return ContrastiveSearch(penalty_alpha=alpha, top_k=top_k)
