"""What every call of ``generate`` must do, however odd: :func:`outcome` makes one and holds it to the rule.

The rule. A call ends in one of these ways, and in no other:

- tokens: one row a prompt and return sequence, which begins with its prompt; then tokens of the vocabulary up to the
  first end token, pad tokens behind it, and no more of them than were asked for; scores, where asked for, are no NaN;
- an error of ``decoding.errors``, in one line; where memory ran out, one that is a ``torch.OutOfMemoryError`` too;
- what transformers raises of its own accord: no frame of a strategy is on the stack (but for one that runs a processor
  of transformers'), and plain ``model.generate`` refuses the same arguments too;
- what the caller's own processor, criterion or streamer raised, or Ctrl-C: the very same object.

Whatever the end: nothing hangs on the model that did not before, no cache that the call made is alive once output and
error are dropped, the inputs, the strategy and the model's generation config are as they were, and the next call with
the same strategy and model gives what it would have given without this one.
"""

from __future__ import annotations

import collections
import faulthandler
import gc
import itertools
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import torch
from fuzzed_arguments import Made, fresh, pooled, vocab_of
from fuzzed_calls import BASELINES, Call, calls
from torch import Tensor
from transformers.cache_utils import Cache

import decoding
from decoding.capabilities.branching import branching_of
from decoding.errors import DecodingError
from decoding.models.structure import inspect_model
from decoding.stream import cuda_graph_steps

__all__ = ["BrokenRuleError", "drawn", "fuzz", "outcome"]

PACKAGE = Path(decoding.__file__).parent


class BrokenRuleError(AssertionError):
    """The rule was broken."""


def fuzz(count: int, seed: int, patience: float = 60.0) -> collections.Counter[str]:
    """Make ``count`` calls, the same ones for the same seed.

    Args:
        count: how many.
        seed: of what is drawn.
        patience: seconds that a call may take; past them the process ends with the stack of every thread.

    Returns:
        How often they ended in which way.

    Raises:
        BrokenRuleError: of the simplest call found that breaks the rule.
    """
    ends: collections.Counter[str] = collections.Counter()

    def hold(call: Call) -> None:
        faulthandler.dump_traceback_later(patience, exit=True)
        try:
            ends[outcome(call)] += 1
        finally:
            faulthandler.cancel_dump_traceback_later()

    _with_drawn(hold, count, seed)
    return ends


def drawn(count: int, seed: int) -> list[Call]:
    """The calls that :func:`fuzz` would make."""
    found: list[Call] = []
    _with_drawn(found.append, count, seed)
    return found


def _with_drawn(use: Callable[[Call], Any], count: int, seed: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    @hypothesis.given(calls())
    def use_drawn(call: Call) -> None:
        use(call)

    use_drawn()


def outcome(call: Call) -> str:
    """Make a call; how it ended.

    Raises:
        BrokenRuleError: against the rule.
    """
    with warnings.catch_warnings(), _born() as caches:
        warnings.simplefilter("ignore")
        if call.failure is not None:
            return _with_failure(call, caches)
        if call.change != "none":
            return _with_change(call, caches)
        return _ended(Made(call, pooled(call.model, call.weights)), caches)[0]


def _with_failure(call: Call, caches: weakref.WeakSet[Cache]) -> str:
    """As :func:`outcome`, where a forward pass fails; then model and strategy must be as good as new."""
    assert call.failure is not None
    kind, passes = call.failure
    model, injected, counted = fresh(call.model, call.weights), [], itertools.count()
    made = Made(call, model)

    def fail(*_: Any) -> None:
        if made.under_way and next(counted) == passes:
            injected.append(FAILURES[kind]())
            raise injected[0]

    handle = model.get_decoder().register_forward_pre_hook(fail)
    how, _ = _ended(made, caches, injected)
    handle.remove()
    _as_good_as_new(made, fresh(call.model, call.weights), caches)
    return how


def _with_change(call: Call, caches: weakref.WeakSet[Cache]) -> str:
    """As :func:`outcome`, twice, the model changed in between: the second call must not remember the first."""
    model, new = (fresh(call.model, call.weights) for _ in range(2))
    made = Made(call, model)
    how, _ = _ended(made, caches)
    for changed in (model, new):
        torch.manual_seed(0)
        try:
            CHANGES[call.change](changed)
        except Exception:  # a change that this model does not allow
            return how
    return _as_good_as_new(made, new, caches)


def _as_good_as_new(made: Made, new: Any, caches: weakref.WeakSet[Cache]) -> str:
    """How a call on the model of an earlier one ends: as on a new model, with a new strategy."""
    call, model = made.call, made.model
    ended = _ended(Made(call, model, made.strategy), caches)
    expected = _ended(Made(call, new, vocab=made.vocab), caches)
    if "train" in (call.weights, call.change):  # dropout draws, and a new model is looked at first
        ended, expected = ended[:1], expected[:1]
    if call.change == "nan":  # whichever of the many things that are wrong is found first
        ended, expected = ended[:1], expected[:1]
        if call.strategy not in BASELINES and "tokens" not in (*ended, *expected):
            return ended[0]
    if ended != expected:
        raise BrokenRuleError(f"the call after it ended in {ended} where a new model and strategy give {expected}")
    plain = call.weights not in ("nan", "inf", "zero", "large") and call.change != "nan"
    trained = "train" in (call.weights, call.change)
    if ended[0] == "tokens" and call.strategy not in BASELINES and plain and not trained:
        found, sought = (
            (
                branching_of(examined).way,
                inspect_model(examined).head_transform,
                inspect_model(examined).separable,
                inspect_model(examined).no_early_exit,
            )
            for examined in (model, new)
        )
        if found != sought:
            raise BrokenRuleError(f"what is known of the model, {found}, is not what is known of a new one, {sought}")
    return ended[0]


FAILURES: dict[str, Callable[[], BaseException]] = {
    "out-of-memory": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu-memory": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 9663676416 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "device": lambda: torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
    "interrupt": KeyboardInterrupt,
}


def _adapted(model: Any) -> Any:
    from peft import LoraConfig

    names = {"gpt2": ["c_attn"], "bloom": ["query_key_value"], "mamba": ["in_proj"]}
    targets = names.get(model.config.model_type, ["q", "v", "q_proj", "v_proj"])
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False), "addition")
    return model


def _merged(model: Any) -> None:
    for module in _adapted(model).modules():
        if hasattr(module, "merge") and hasattr(module, "lora_A"):
            module.merge()


def _shallower(model: Any, in_place: bool) -> None:
    decoder = model.get_decoder()
    name, layers = next(child for child in decoder.named_children() if isinstance(child[1], torch.nn.ModuleList))
    if in_place:
        del layers[-1]
    else:
        setattr(decoder, name, torch.nn.ModuleList(layers[:-1]))
    config = model.config.get_text_config(decoder=True)
    config.num_hidden_layers -= 1
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:-1]


@torch.no_grad()
def _edited(model: Any, factor: float) -> None:
    for parameter in model.parameters():
        parameter[..., : parameter.shape[-1] // 2] *= factor


def _untied(model: Any) -> None:
    head = model.get_output_embeddings()
    model.set_output_embeddings(
        torch.nn.Linear(head.in_features, head.out_features, bias=False, dtype=head.weight.dtype)
    )


CHANGES: dict[str, Callable[[Any], Any]] = {
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "float64": lambda model: model.to(torch.float64),
    "resized": lambda model: model.resize_token_embeddings(vocab_of(model) + 8, mean_resizing=False),
    "edited": lambda model: _edited(model, -1.5),
    "nan": lambda model: _edited(model, float("nan")),
    "train": lambda model: model.train(),
    "adapter": _adapted,
    "merged": _merged,
    "shallower": lambda model: _shallower(model, in_place=True),
    "pruned": lambda model: _shallower(model, in_place=False),
    "eager": lambda model: model.set_attn_implementation("eager"),
    "moved": lambda model: model.to("meta"),
    "untied": _untied,
}


# --- one call ---------------------------------------------------------------------------------------------------------


def _ended(made: Made, caches: weakref.WeakSet[Cache], injected: list[Any] | None = None) -> tuple[str, Any]:
    """How a call ended, and its tokens."""
    call, model = made.call, made.model
    torch.manual_seed(call.seed)
    before = _state(model)
    kept = set(caches)
    tokens = None
    try:
        output = made()
    except DecodingError as error:
        if "\n" in str(error) or not str(error).strip():
            raise BrokenRuleError(f"not one line: {error!r}") from error
        memory = bool(injected) and call.failure is not None and call.failure[0].endswith("memory")
        if memory != isinstance(error, torch.OutOfMemoryError):
            raise BrokenRuleError(f"{injected} came out as {error!r}") from error
        how = type(error).__name__
    except BaseException as error:
        how = _foreign(call, model, error, made.raised, injected or [])
    else:
        how = "tokens"
        tokens = _checked(call, model, made, output)
        if not isinstance(output, Tensor):
            kept |= {cache for cache in caches if cache is output.past_key_values}
        del output
    for exception in (*made.raised, *(injected or [])):
        exception.__traceback__ = None
    if made.changed:
        raise BrokenRuleError(f"{made.changed} was changed")
    if _state(model) != before:
        raise BrokenRuleError(f"the model is not as it was: {before} became {_state(model)}")
    if how != "tokens" and set(caches) - kept:
        gc.collect()  # of a traceback's cycles
    left = set(caches) - kept - _kept_for_the_next_call()
    if left:
        raise BrokenRuleError(f"{len(left)} caches outlive the call, which ended in {how}")
    return how, tokens


def _foreign(call: Call, model: Any, error: BaseException, raised: list[BaseException], injected: list[Any]) -> str:
    """How a call ended that raised no error of the project's."""
    frames = traceback.extract_tb(error.__traceback__)
    strategy = [frame for frame in frames if _of_a_strategy(frame)]
    if any(error is thrown for thrown in raised):
        return "the caller's own error"
    if any(error is planted for planted in injected) and (isinstance(error, KeyboardInterrupt) or not strategy):
        return "KeyboardInterrupt" if isinstance(error, KeyboardInterrupt) else "transformers: out of memory"
    if isinstance(error, BrokenRuleError) or not isinstance(error, Exception):
        raise error
    # The call's processors are transformers' own, though they run in the strategy's loop.
    if strategy and not any(Path(frame.filename).name == "logits_process.py" for frame in frames):
        where = f"{Path(strategy[-1].filename).name}:{strategy[-1].lineno}"
        raise BrokenRuleError(f"{type(error).__name__} from inside the strategy ({where}): {error}") from error
    if call.strategy not in BASELINES:
        try:
            Made(call, model, plain=True)()
        except Exception:  # perhaps of another of the faults
            return f"transformers: {type(error).__name__}"
        raise BrokenRuleError(f"{error!r}, where plain generate gives tokens") from error
    return f"transformers: {type(error).__name__}"


def _of_a_strategy(frame: traceback.FrameSummary) -> bool:
    path = Path(frame.filename)
    if not path.is_relative_to(PACKAGE):
        return False
    facade = path == PACKAGE / "api.py" and frame.name in ("generate", "generate_with")
    # Every model's plain attention goes through attention.py.
    return not facade and path != PACKAGE / "models" / "attention.py"


def _checked(call: Call, model: Any, made: Made, output: Any) -> list[list[int]]:
    """The tokens, found to be right."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    config = made.config
    problem = None
    rows, start = made.rows, 1 if model.config.is_encoder_decoder else made.ids.shape[1]
    if sequences.dtype != torch.long or sequences.dim() != 2 or sequences.shape[0] != rows:
        raise BrokenRuleError(f"sequences are {sequences.dtype} {tuple(sequences.shape)} for {rows} rows")
    if not model.config.is_encoder_decoder:
        prompt = made.ids.repeat_interleave(rows // max(len(made.ids), 1), dim=0)
        if sequences[:, :start].tolist() != prompt.tolist():
            problem = "the prompt is not kept"
    new = sequences[:, start:].tolist()
    vocab = model.config.get_text_config(decoder=True).vocab_size
    eos = config["eos_token_id"]
    ends = set() if eos is None else set(eos if isinstance(eos, list) else [eos])
    pads = {config["pad_token_id"]} if config["pad_token_id"] is not None else ends
    for row in new if call.strategy not in BASELINES or call.callback == "none" else []:
        text = list(itertools.takewhile(lambda token: token not in ends, row))
        rest = row[len(text) + 1 :]
        # A beam that found no hypothesis (scores below -1e9 count as none) is -1 from there on: transformers' own.
        beams = call.form == "processor" and (call.options.get("num_beams") or 1) > 1
        if any(not (-1 if beams else 0) <= token < vocab for token in row[: len(text) + 1]):
            problem = f"tokens {row} of a vocabulary of {vocab}"
        if call.strategy != "beam" and any(token not in pads for token in rest):
            problem = f"tokens {rest} behind the end token"
    most = config["max_new_tokens"]
    if most is not None and sequences.shape[1] - start > max(most, 1):
        problem = f"{sequences.shape[1] - start} new tokens where {most} were asked for"
    scores = getattr(output, "scores", None) or ()
    if any(bool(score.isnan().any()) for score in scores) and call.strategy not in BASELINES:
        problem = "a score is NaN"
    if problem:
        raise BrokenRuleError(problem)
    return new


def _kept_for_the_next_call() -> set[Cache]:
    """The storage of captured steps, which stays with the model by design (``compile=True`` alone)."""
    return {layout._cache for layouts in cuda_graph_steps._idle.values() for layout in layouts}


def _state(model: Any) -> tuple[Any, ...]:
    """What a call must leave as it found it."""
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    hooks = [
        hook for hook in hooks if hook.__module__ != "transformers.utils.output_capturing"
    ]  # put on once, for good
    return len(hooks), model.training, model.generation_config.to_json_string(), torch.is_grad_enabled()


@contextmanager
def _born() -> Iterator[weakref.WeakSet[Cache]]:
    """The caches that are made while the context is open, as far as they live."""
    made: weakref.WeakSet[Cache] = weakref.WeakSet()
    init = Cache.__init__

    def noted(self: Cache, *args: Any, **kwargs: Any) -> None:
        made.add(self)
        init(self, *args, **kwargs)

    Cache.__init__ = noted  # type: ignore[method-assign]
    try:
        yield made
    finally:
        Cache.__init__ = init  # type: ignore[method-assign]
