"""The one token loop, and ``decoding.generate``."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput, GenerateEncoderDecoderOutput

from decoding.contrastive_search import ContrastiveSearch
from decoding.dola import DoLa
from decoding.errors import DecodingError, InputError, OptionError
from decoding.failures import not_a_number, within_memory
from decoding.placement import agreed
from decoding.strategy import Session, Strategy, most_probable

__all__ = ["SETTINGS", "decode", "generate"]

SETTINGS = "decoding_strategy"  # the attribute of a generation config that holds a strategy's name and parameters


def generate(
    model: Any,
    inputs: Tensor | None = None,
    *,
    strategy: Strategy | None = None,
    generation_config: GenerationConfig | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    streamer: Any = None,
    tokenizer: Any = None,
    compile: bool = False,
    **kwargs: Any,
) -> Any:
    """``model.generate`` with a strategy: takes all that it takes, the arguments that transformers dropped included.

    Args:
        model: a generating transformers model.
        inputs: (batch, length) token ids, or as keyword ``input_ids``, ``inputs_embeds``, ...
        strategy: how to choose tokens. None takes it from the generation config of a model that was exported (see
            :func:`decoding.export`), from the arguments, or else from the model's generation config:
            ``penalty_alpha`` > 0 with ``top_k`` > 1 is ``ContrastiveSearch``, ``dola_layers`` is ``DoLa`` as
            transformers had it (one premature layer for the whole batch); without them this is plain
            ``model.generate``.
        generation_config: as in ``model.generate``.
        stopping_criteria: as in ``model.generate``.
        streamer: as in ``model.generate``; receives the prompt, each token and the end.
        tokenizer: needed for ``stop_strings``, and for a strategy with texts of its own and no tokenizer.
        compile: capture the decode step and replay it for each token: the same tokens, and a GPU that does not wait
            between kernels (docs/compile.md: when it pays, memory, what is refused).
        kwargs: everything else that ``model.generate`` takes.

    Returns:
        What ``model.generate`` returns: (batch, length) token ids, or its output object with
        ``return_dict_in_generate=True``.

    Raises:
        OptionError: an option that the strategy cannot honour, or that contradicts another one.
        InputError: an empty prompt, a row of padding alone, a prompt as long as the context.

    Example:
        >>> decoding.generate(model, **tokenizer("The town lies", return_tensors="pt"), penalty_alpha=0.6, top_k=4)
    """
    from decoding.exported import stored_strategy  # which builds strategies by name, and they stand on this module

    config = generation_config or model.generation_config
    strategy = (
        strategy
        or stored_strategy(model, generation_config, kwargs, tokenizer)
        or _strategy_of_arguments(kwargs, config)
    )
    # Some models' own generate() calls its first parameter pixel_values, or input_ids: given by name it stays that.
    first = () if inputs is None else (inputs,)
    if strategy is None:
        if compile:
            raise OptionError("compile=True captures the steps of a strategy, and none is given: pass strategy=...")
        return model.generate(
            *first, generation_config=generation_config, stopping_criteria=stopping_criteria, streamer=streamer,
            tokenizer=tokenizer, **kwargs,
        )  # fmt: skip
    if not isinstance(strategy, Strategy):
        raise OptionError(f"strategy={strategy!r}: accepted are strategies such as decoding.ContrastiveSearch()")
    strategy = strategy.with_tokenizer(tokenizer)
    kwargs.pop("low_memory", None)  # its purpose, less memory for the candidates, is how every call works here
    if kwargs.get("cache_implementation", config.cache_implementation) == "paged":
        raise OptionError(
            f"cache_implementation='paged': continuous batching would leave out {strategy.name}; drop the option"
        )
    given = inputs if inputs is not None else kwargs.get("input_ids")
    if isinstance(given, Tensor) and given.numel() == 0 and kwargs.get("inputs_embeds") is None:
        raise InputError("the prompt is empty: give at least one token (for text from nothing, the model's bos token)")
    stop_strings = kwargs.pop("stop_strings", None) or config.stop_strings
    if stop_strings:
        if tokenizer is None:
            raise OptionError(f"stop_strings={stop_strings!r}: pass tokenizer=... as well, it tells where strings end")
        stopping_criteria = StoppingCriteriaList(stopping_criteria or [])
        stopping_criteria.append(StopStringCriteria(tokenizer, stop_strings))
        # transformers builds this criterion only where it finds a tokenizer, which it never hands to a callable
        generation_config = copy.deepcopy(config)
        generation_config.stop_strings = None
    custom: Any = strategy if streamer is None else functools.partial(strategy, streamer=streamer)
    with within_memory(model, "its prompt"):
        return model.generate(
            *first,
            generation_config=generation_config,
            stopping_criteria=stopping_criteria,
            custom_generate=custom,
            **({"compile": True} if compile else {}),
            **kwargs,
        )


def _strategy_of_arguments(kwargs: dict[str, Any], config: GenerationConfig) -> Strategy | None:
    """The strategy that the arguments of old name; these are taken out of ``kwargs``."""
    dola_layers = kwargs.pop("dola_layers", getattr(config, "dola_layers", None))
    if dola_layers is not None:
        if kwargs.get("penalty_alpha"):
            raise OptionError(
                "dola_layers and penalty_alpha name two strategies, DoLa and contrastive search: give one"
            )
        return DoLa(dola_layers, per_row=False)  # as transformers had it
    alpha = kwargs.get("penalty_alpha", getattr(config, "penalty_alpha", None))
    top_k = kwargs.get("top_k", config.top_k)
    named = "penalty_alpha" in kwargs and kwargs["penalty_alpha"] is not None
    if alpha is None or (not named and (not alpha or not top_k or top_k < 2)):
        return None
    if top_k is None:
        raise OptionError(f"penalty_alpha={alpha}: contrastive search needs top_k as well; the paper uses 3 to 5")
    kwargs.pop("penalty_alpha", None)
    kwargs.pop("top_k", None)
    return ContrastiveSearch(penalty_alpha=alpha, top_k=top_k)


@torch.no_grad()
def decode(
    strategy: Strategy,
    model: Any,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    synced_gpus: bool,
    streamer: Any,
    model_kwargs: dict[str, Any],
) -> Any:
    """Choose token after token until every row is finished; the contract of transformers' ``GenerationMixin._sample``.

    Args:
        strategy: opens the session that scores.
        model: the generating model.
        input_ids: (batch, length) the prompt.
        logits_processor: acts on the model's logits.
        stopping_criteria: as transformers prepared them.
        generation_config: likewise.
        synced_gpus: whether all ranks must run the same number of forward passes.
        streamer: has had the prompt; None for none.
        model_kwargs: masks, positions, cache, encoder outputs.

    Returns:
        (batch, length) token ids, or a ``Generate...Output`` where ``return_dict_in_generate`` asks for it.
    """
    logits_processor, temperature = strategy.split_temperature(logits_processor)
    as_dict = generation_config.return_dict_in_generate
    cache = model_kwargs.get("past_key_values")
    cache_outlives = as_dict or getattr(cache, "_is_user_defined", False)
    encoder_outputs = model_kwargs.get("encoder_outputs")
    record = _Record(generation_config, model.config.is_encoder_decoder)
    pad: Any = generation_config._pad_token_tensor  # transformers sets it wherever there is an eos token
    if pad is not None:
        pad = pad.to(input_ids.device)
    has_eos = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
    rows, length = input_ids.shape
    what = f"{rows} rows of {length} tokens and more"
    with within_memory(model, what):
        session = strategy.session(model, input_ids, model_kwargs, generation_config, restorable=bool(cache_outlives))
    unfinished = torch.ones(rows, dtype=torch.long, device=input_ids.device)
    finished_here = False
    try:
        with within_memory(model, what), model._optimize_model_for_decode():
            while True:
                scores = None
                if generation_config.do_sample or record.scores is not None:
                    scores = session.scores(input_ids, logits_processor)
                if scores is None:
                    chosen = session.greedy(input_ids, logits_processor)
                elif generation_config.do_sample:
                    chosen = agreed(model, _drawn(scores / temperature))
                else:
                    chosen = most_probable(scores)
                if not finished_here:
                    record.step(session, scores)
                    stuck = (chosen < 0) & (unfinished > 0)
                    tokens = chosen.clamp(min=0)
                    if has_eos:
                        tokens = tokens * unfinished + pad * (1 - unfinished)
                    input_ids = torch.cat([input_ids, tokens[:, None]], dim=1)
                    unfinished = unfinished & ~stopping_criteria(input_ids, record.scores)
                    # Asked together: a GPU is waited for once.
                    finished_here, is_stuck = torch.stack([unfinished.max() == 0, stuck.any()]).tolist()
                    if is_stuck:
                        raise _no_token(model, session, int(stuck.nonzero()[0]), input_ids.shape[1] - length - 1)
                    if streamer is not None:
                        streamer.put(tokens.cpu())
                # Under synced_gpus a rank that is done goes on with forward passes until all are, on the tokens it has.
                if not model._has_unfinished_sequences(finished_here, synced_gpus, device=input_ids.device):
                    break
                session.advance(tokens)
        cache = session.close() if cache_outlives else None
    finally:
        session.release()
    if streamer is not None:
        streamer.end()
    return record.output(input_ids, cache, encoder_outputs) if as_dict else input_ids


def _drawn(scores: Tensor) -> Tensor:
    """(batch,) tokens drawn from the softmax of (batch, vocab) scores; -1 where there is nothing to draw from."""
    best = scores.amax(-1)
    nothing = ~best.isfinite()  # all excluded, NaN or infinite: multinomial would refuse, and on a GPU end the process
    probabilities = scores.masked_fill(nothing[:, None], 0).softmax(-1)
    return torch.multinomial(probabilities, num_samples=1).squeeze(1).masked_fill(nothing, -1)


def _no_token(model: Any, session: Session, row: int, step: int) -> DecodingError:
    """Why no token could be chosen."""
    where = f"at step {step} (row {row})"
    if bool(session.logits[row].isnan().any()):
        return not_a_number(model, "model", row, step)
    return OptionError(
        f"no token is left to choose {where}: the call's logits processors exclude every one, or make scores that are "
        "no numbers"
    )


class _Record:
    """What ``return_dict_in_generate`` asks to be kept of each step."""

    def __init__(self, config: GenerationConfig, encoder_decoder: bool) -> None:
        def wanted(flag: bool | None) -> tuple[Any, ...] | None:
            return () if config.return_dict_in_generate and flag else None

        self.encoder_decoder = encoder_decoder
        self.scores = wanted(config.output_scores)
        self.logits = wanted(config.output_logits)
        self.attentions = wanted(config.output_attentions)
        self.cross_attentions = wanted(config.output_attentions and encoder_decoder)
        self.hidden_states = wanted(config.output_hidden_states)

    def step(self, session: Any, scores: Tensor | None) -> None:
        """Keep one step: its scores, where they are wanted, and the forward pass that its logits came from."""
        reading = session.reading
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (session.logits.to(dtype=torch.float32, copy=True),)
        if self.attentions is not None:
            self.attentions += (reading.attentions,)
        if self.cross_attentions is not None:
            self.cross_attentions += (reading.cross_attentions,)
        if self.hidden_states is not None:
            self.hidden_states += (reading.hidden_states,)

    def output(self, sequences: Tensor, cache: Any, encoder_outputs: Any) -> Any:
        """The output object that ``model.generate`` would return."""
        common = {
            "sequences": sequences,
            "scores": self.scores,
            "logits": self.logits,
            "past_key_values": cache,
        }
        if not self.encoder_decoder:
            return GenerateDecoderOnlyOutput(**common, attentions=self.attentions, hidden_states=self.hidden_states)
        return GenerateEncoderDecoderOutput(
            **common,
            encoder_attentions=encoder_outputs.get("attentions") if self.attentions is not None else None,
            encoder_hidden_states=encoder_outputs.get("hidden_states") if self.hidden_states is not None else None,
            decoder_attentions=self.attentions,
            cross_attentions=self.cross_attentions,
            decoder_hidden_states=self.hidden_states,
        )
